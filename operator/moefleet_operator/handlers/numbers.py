"""The numbers in status that are for people: tokens/s against capacity, latencies, cost, cold starts. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from moefleet_operator.api import MoEFleetSpec
from moefleet_operator.api.base import SIGNED_DECIMAL_PATTERN
from moefleet_operator.core.events import Json
from moefleet_operator.planning.cold_start import ColdStart, phase_medians_s
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import Terms
from moefleet_operator.scaling.economics import Pricing, PricingError, Throughput, economics
from moefleet_operator.telemetry import Figures

# Beyond it a number is a mistake of whoever measured, and the API server refuses a status that holds it.
SANE_MAX: Final = 1e12


def numbers(
    spec: MoEFleetSpec,
    figures: Figures,
    terms: Terms,
    replicas: Sequence[Replica],
    cold_starts: Sequence[ColdStart],
) -> Json:
    """Fields of MoEFleet.status; what is not known, or cannot be, is absent."""
    figures = _sane(figures)
    found: dict[str, dict[str, Any]] = {**figures.as_status()}
    ready = sum(1 for replica in replicas if replica.ready)
    found["throughput"] = {**found.get("throughput", {}), **_capacity(figures, terms, ready)}
    cost = _economics(spec, figures, replicas)
    if cost:
        found["economics"] = dict(cost)
    if cold := _cold_start(cold_starts):
        found["coldStart"] = cold
    return found


def _cold_start(starts: Sequence[ColdStart]) -> dict[str, Any]:
    ordered = sorted(start.total_s for start in starts if _is_sane(start.total_s))
    if not ordered:
        return {}
    phases = {name: seconds for name, seconds in phase_medians_s(starts).items() if _is_sane(seconds)}
    found: dict[str, Any] = {
        "p50": _seconds(_quantile(ordered, 0.5)),
        "p90": _seconds(_quantile(ordered, 0.9)),
        "p99": _seconds(_quantile(ordered, 0.99)),
        "starts": len(ordered),
    }
    if phases:
        found["slowestPhase"] = max(phases, key=lambda name: phases[name])
        found["phases"] = [{"name": name, "p50": _seconds(seconds)} for name, seconds in phases.items()]
    return found


def _capacity(figures: Figures, terms: Terms, ready: int) -> dict[str, int | str]:
    """What the ready replicas carry of the present mix; unknown while nobody knows the mix."""
    if terms.capacity_output_tok_s <= 0 or ready == 0:
        return {}
    output_tok_s = terms.capacity_output_tok_s * ready
    found = {
        "capacityInputTokensPerSecond": terms.capacity_input_tok_s * ready,
        "capacityOutputTokensPerSecond": output_tok_s,
        "utilizationPercent": 100 * figures.output_tok_s / output_tok_s,
    }
    return {name: round(value) for name, value in found.items() if _is_sane(value)}


def _economics(spec: MoEFleetSpec, figures: Figures, replicas: Sequence[Replica]) -> dict[str, str]:
    if spec.pricing is None:
        return {}
    try:
        pricing = Pricing.parse(spec.pricing.model_dump(by_alias=True))
    except PricingError:
        # CEL refuses such prices; an object from before the rule only lacks the numbers.
        return {}
    throughput = Throughput(figures.input_tok_s, figures.cached_tok_s, figures.output_tok_s)
    # Paid for: whoever holds GPUs, draining and starting ones too.
    paid = sum(1 for replica in replicas if replica.pod.node and not replica.pod.finished)
    found = economics(pricing, throughput, gpus_per_replica=spec.replica.gpus, replicas=paid).as_status()
    # A price divided by almost no tokens has more digits than a status takes, and says nothing.
    return {name: value for name, value in found.items() if re.fullmatch(SIGNED_DECIMAL_PATTERN, value)}


def _is_sane(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= SANE_MAX


def _sane(figures: Figures) -> Figures:
    def rate(value: float) -> float:
        return value if _is_sane(value) else 0.0

    def measured(value: float | None) -> float | None:
        return value if value is not None and _is_sane(value) else None

    return replace(
        figures,
        input_tok_s=rate(figures.input_tok_s),
        cached_tok_s=rate(figures.cached_tok_s),
        output_tok_s=rate(figures.output_tok_s),
        ttft_p99_s=measured(figures.ttft_p99_s),
        tpot_p99_s=measured(figures.tpot_p99_s),
        attainment_percent=measured(figures.attainment_percent),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _seconds(seconds: float) -> str:
    return f"{round(seconds)}s"
