"""The numbers in status that are for people: tokens/s against capacity, latencies, cost, cold starts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from moefleet_operator.api import MoEFleetSpec
from moefleet_operator.core.events import Json
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import Terms
from moefleet_operator.scaling.economics import Pricing, PricingError, Throughput, economics
from moefleet_operator.telemetry import Figures


def numbers(
    spec: MoEFleetSpec,
    figures: Figures,
    terms: Terms,
    replicas: Sequence[Replica],
    cold_starts_s: Sequence[float],
) -> Json:
    """Fields of MoEFleet.status; what is not known is absent."""
    found: dict[str, dict[str, int | str]] = figures.as_status()
    ready = sum(1 for replica in replicas if replica.ready)
    found["throughput"] = {**found.get("throughput", {}), **_capacity(figures, terms, ready)}
    cost = _economics(spec, figures, replicas)
    if cost:
        found["economics"] = dict(cost)
    if cold_starts_s:
        ordered = sorted(cold_starts_s)
        found["coldStart"] = {
            "p50": _seconds(_quantile(ordered, 0.5)),
            "p90": _seconds(_quantile(ordered, 0.9)),
        }
    return found


def _capacity(figures: Figures, terms: Terms, ready: int) -> dict[str, int | str]:
    """What the ready replicas carry of the present mix; unknown while nobody knows the mix."""
    if terms.capacity_output_tok_s <= 0 or ready == 0:
        return {}
    output_tok_s = terms.capacity_output_tok_s * ready
    return {
        "capacityInputTokensPerSecond": round(terms.capacity_input_tok_s * ready),
        "capacityOutputTokensPerSecond": round(output_tok_s),
        "utilizationPercent": round(100 * figures.output_tok_s / output_tok_s),
    }


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
    return economics(pricing, throughput, gpus_per_replica=spec.replica.gpus, replicas=paid).as_status()


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _seconds(seconds: float) -> str:
    return f"{round(seconds)}s"
