"""How many replicas: the mode says whose number counts, the bounds of the spec hold in every mode."""

from __future__ import annotations

from dataclasses import replace

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .observed import Decision, Fleet, Observed
from .steps import Target
from .wording import count, count_are


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
            if fleet.replicas is None:
                why = f"spec.replicas is not set, so {_stay(held)}"
                return _bounded(fleet, held, reasons.EXTERNAL_REPLICAS, why, None)
            if fleet.replicas == 0:
                return Target(0, reasons.SCALED_TO_ZERO, "spec.replicas is 0")
            why = f"spec.replicas is {fleet.replicas}"
            return _bounded(fleet, fleet.replicas, reasons.EXTERNAL_REPLICAS, why, None)
        case "Advisory":
            advised = decision.replicas if decision is not None else None
            says = "scaling knows no number yet" if advised is None else f"scaling would take {advised}"
            # Awake at least minReplicas; a fleet that slept when it became Advisory is woken, for nobody would wake it later.
            why = f"mode Advisory: {_stay(held)}; {says}"
            return _bounded(fleet, held, reasons.ADVISORY_ONLY, why, advised)
        case "Automatic":
            if decision is None or decision.replicas is None:
                why = decision.message if decision is not None else "nothing is known of the load yet"
                reason = decision.reason if decision is not None else reasons.DEMAND_UNKNOWN
                if held == 0 and fleet.may_sleep:
                    return Target(0, reason, f"stays asleep: {why}")
                begins = not _known_before(observed) and held == fleet.min_replicas
                said = f"minReplicas is {held} and {why}" if begins else f"{why}, so {_stay(held)}"
                return _bounded(fleet, held, reason, said, None)
            if decision.replicas == 0 and fleet.may_sleep:
                return Target(0, decision.reason, decision.message, 0)
            followed = _bounded(
                fleet, decision.replicas, decision.reason, decision.message, decision.replicas
            )
            # Scaling keeps the bounds itself, so only it can say that more is needed than it asks for.
            kept = _kept_below(fleet, decision)
            return followed if kept is None else replace(followed, limited=kept)


def _kept_below(fleet: Fleet, decision: Decision) -> Problem | None:
    if decision.needed is None or decision.replicas is None or decision.needed <= decision.replicas:
        return None
    what = count(decision.needed, "replica")
    match decision.reason:
        case reasons.AT_MAXIMUM:
            return Problem(reasons.AT_MAXIMUM, f"the load needs {what}, maxReplicas is {fleet.max_replicas}")
        case reasons.STEP_LIMITED:
            return Problem(
                reasons.STEP_LIMITED,
                f"the load needs {what}; at most {decision.replicas} for now, more when these are ready",
            )
        case _:
            return None


def _held(observed: Observed) -> int:
    """The number before, from what is observed: the last status, else the replicas that live, else the minimum."""
    last = observed.fleet.status.get("desiredReplicas")
    if isinstance(last, int):
        return last
    live = sum(1 for r in observed.replicas if r.live)
    return live or max(1, observed.fleet.min_replicas)


def _known_before(observed: Observed) -> bool:
    last = observed.fleet.status.get("desiredReplicas")
    return isinstance(last, int) or any(r.live for r in observed.replicas)


def _stay(held: int) -> str:
    return f"{count(held, 'replica')} {'stays' if held == 1 else 'stay'}"


def _bounded(fleet: Fleet, wanted: int, reason: str, message: str, advised: int | None) -> Target:
    low = max(1, fleet.min_replicas)
    if wanted > fleet.max_replicas:
        limited = Problem(
            reasons.AT_MAXIMUM,
            f"{count_are(wanted, 'replica')} wanted, maxReplicas is {fleet.max_replicas}",
        )
        return Target(fleet.max_replicas, reason, message, advised, limited)
    if wanted < low:
        limited = Problem(
            reasons.AT_MINIMUM,
            f"{count_are(wanted, 'replica')} wanted, minReplicas is {fleet.min_replicas}",
        )
        return Target(min(low, fleet.max_replicas), reason, message, advised, limited)
    return Target(wanted, reason, message, advised)
