"""Policies by name, and the text "name:knob=value,knob=value" that the command line takes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moefleet_replay import ours
from moefleet_replay.policies import (
    aibrix,
    chiron,
    dynamo,
    hpa,
    keda,
    knative,
    oracle,
    predictive_hpa,
    ray_serve,
    sageserve,
    static,
    wva,
    wva_queue,
)
from moefleet_replay.policy import Knob, PolicyError, PolicySpec

# One module per family, in the order in which `moefleet policies` shows them.
_FAMILIES: Final = (
    ours,
    static,
    oracle,
    hpa,
    keda,
    knative,
    ray_serve,
    aibrix,
    dynamo,
    wva,
    wva_queue,
    sageserve,
    chiron,
    predictive_hpa,
)

REGISTRY: Final[dict[str, PolicySpec]] = {spec.name: spec for family in _FAMILIES for spec in family.SPECS}


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A line of `moefleet policies`."""

    name: str
    summary: str
    knobs: tuple[Knob, ...]
    source: str
    foresees: bool


def table() -> tuple[PolicyRow, ...]:
    return tuple(PolicyRow(s.name, s.summary, s.knobs, s.source, s.foresees) for s in REGISTRY.values())


def tuned_knob(spec: PolicySpec) -> Knob:
    """The one knob that a frontier turns."""
    (knob,) = (k for k in spec.knobs if k.tuned)
    return knob


def parse(text: str) -> tuple[PolicySpec, dict[str, float]]:
    """`hpa-arrival:target=0.6` to the spec and all of its knobs, those not named at their defaults.

    PolicyError names the policy or knob that is unknown, malformed or out of range, and what there is.
    """
    name, colon, rest = text.strip().partition(":")
    spec = REGISTRY.get(name)
    if spec is None:
        raise PolicyError(
            f"policy {name!r} is unknown; there are {', '.join(_nearest(name, list(REGISTRY)))}"
        )
    knobs = {k.name: k.default for k in spec.knobs}
    if colon and not rest.strip():
        raise PolicyError(f"policy {name}: wanted knob=value after ':', found nothing")
    given: set[str] = set()
    for part in rest.split(",") if rest else ():
        knob_name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not knob_name:
            raise PolicyError(f"policy {name}: wanted knob=value, found {part.strip()!r}")
        if knob_name in given:
            raise PolicyError(f"policy {name}: knob {knob_name} is given twice")
        given.add(knob_name)
        knobs[knob_name] = _value(spec, knob_name, value)
    return spec, knobs


def checked(spec: PolicySpec, knobs: Mapping[str, float]) -> dict[str, float]:
    """Knobs from a program instead of a text: the same rules."""
    full = {k.name: k.default for k in spec.knobs}
    for name, value in knobs.items():
        full[name] = _value(spec, name, repr(value))
    return full


def _value(spec: PolicySpec, knob_name: str, text: str) -> float:
    by_name = {k.name: k for k in spec.knobs}
    knob = by_name.get(knob_name)
    if knob is None:
        known = ", ".join(_nearest(knob_name, list(by_name))) or "none"
        raise PolicyError(f"policy {spec.name}: knob {knob_name!r} is unknown; there are {known}")
    try:
        value = float(text)
    except ValueError:
        raise PolicyError(f"policy {spec.name}: {knob_name}: wanted a number, found {text!r}") from None
    if not (math.isfinite(value) and knob.low <= value <= knob.high):
        raise PolicyError(
            f"policy {spec.name}: {knob_name}: wanted {knob.low:g} to {knob.high:g} ({knob.meaning}), found {text}"
        )
    return value


def _nearest(name: str, known: list[str]) -> list[str]:
    """All of them, those that the writer may have meant first."""
    meant = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return meant + [k for k in known if k not in meant]
