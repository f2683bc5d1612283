"""What is said of a fleet that has no replicas because none is wanted."""

from __future__ import annotations

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .observed import Json, Observed


def at_zero(observed: Observed) -> Problem:
    """Reason and sentence of Ready and Available at zero replicas."""
    if observed.fleet.mode == "External":
        return Problem(reasons.SCALED_TO_ZERO, "spec.replicas is 0")
    start = cold_start(observed).get("p50")
    takes = f", which takes about {start}" if start else ""
    return Problem(reasons.ASLEEP, f"nobody asks; the next request wakes the fleet{takes}")


def cold_start(observed: Observed) -> Json:
    """As measured; else as the status has it. A fleet that sleeps has no replica whose start could be seen, gateways must
    know what a wake takes, and an operator that has just begun has measured nothing."""
    found = observed.numbers.get("coldStart") or observed.fleet.status.get("coldStart")
    return found if isinstance(found, dict) else {}
