"""How many replicas: the mode says whose number counts, the bounds of the spec hold in every mode."""

from __future__ import annotations

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .observed import Fleet, Observed
from .steps import Target


def target(observed: Observed) -> Target:
    fleet, decision = observed.fleet, observed.decision
    if observed.name_owner:
        return Target(
            0,
            reasons.MODEL_NAME_TAKEN,
            f"model name {fleet.model_name!r} belongs to the older fleet {observed.name_owner}",
        )
    held = _held(observed)
    match fleet.mode:
        case "External":
            wanted = held if fleet.replicas is None else fleet.replicas
            if wanted == 0:
                return Target(0, reasons.SCALED_TO_ZERO, "spec.replicas is 0")
            return _bounded(fleet, wanted, reasons.EXTERNAL_REPLICAS, f"spec.replicas is {wanted}", None)
        case "Advisory":
            advised = decision.replicas if decision is not None else None
            says = "scaling knows no number yet" if advised is None else f"scaling would take {advised}"
            # Awake at least minReplicas; a fleet that slept when it became Advisory is woken, for nobody would wake it later.
            return _bounded(fleet, held, reasons.ADVISORY_ONLY, f"{held} replicas stay; {says}", advised)
        case "Automatic":
            if decision is None or decision.replicas is None:
                why = decision.message if decision is not None else "no decision yet"
                reason = decision.reason if decision is not None else reasons.DEMAND_UNKNOWN
                if held == 0 and fleet.may_sleep:
                    return Target(0, reason, f"stays asleep: {why}")
                return _bounded(fleet, held, reason, f"{held} replicas stay: {why}", None)
            if decision.replicas == 0 and fleet.may_sleep:
                return Target(0, decision.reason, decision.message, 0)
            return _bounded(fleet, decision.replicas, decision.reason, decision.message, decision.replicas)


def _held(observed: Observed) -> int:
    """The number before, from what is observed: the last status, else the replicas that live, else the minimum."""
    last = observed.fleet.status.get("desiredReplicas")
    if isinstance(last, int):
        return last
    live = sum(1 for r in observed.replicas if r.live)
    return live or max(1, observed.fleet.min_replicas)


def _bounded(fleet: Fleet, wanted: int, reason: str, message: str, advised: int | None) -> Target:
    low = max(1, fleet.min_replicas)
    if wanted > fleet.max_replicas:
        limited = Problem(
            reasons.AT_MAXIMUM, f"{wanted} replicas wanted, maxReplicas is {fleet.max_replicas}"
        )
        return Target(fleet.max_replicas, reason, message, advised, limited)
    if wanted < low:
        limited = Problem(
            reasons.AT_MINIMUM, f"{wanted} replicas wanted, minReplicas is {fleet.min_replicas}"
        )
        return Target(min(low, fleet.max_replicas), reason, message, advised, limited)
    return Target(wanted, reason, message, advised)
