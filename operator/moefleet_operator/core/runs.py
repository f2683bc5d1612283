"""One pass over a fleet whose effects are under way, and what is said about it when they have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.observed import Json
from moefleet_operator.planning.steps import (
    AdoptReplica,
    AnyStep,
    CallResume,
    CreateReplica,
    DeleteReplica,
    MarkConditions,
)
from moefleet_operator.planning.wording import count

from .events import Key

# Names listed in one Event; the rest is a number.
NAMES_MAX = 5

# The steps that people are told of, and the Event's action.
_TOLD: Mapping[type, tuple[str, str]] = {
    CreateReplica: ("Create", "Created"),
    AdoptReplica: ("Adopt", "Adopted"),
    DeleteReplica: ("Delete", "Deleted"),
    CallResume: ("Resume", "Resumed"),
}


@dataclass(frozen=True, slots=True)
class Notice:
    type: Literal["Normal", "Warning"]
    action: str
    reason: str
    message: str
    related: Key | None = None


@dataclass(slots=True)
class Run:
    """Effects of one pass that hold the fleet's key, so that no second plan is made on what they are changing."""

    pending: set[int] = field(default_factory=set)
    creates: int = 0
    done: list[AnyStep] = field(default_factory=list)
    # Group -> the longest wait that an answer asked for.
    failed: dict[str, float] = field(default_factory=dict)

    def fail(self, group: str, at_least_s: float) -> None:
        self.failed[group] = max(at_least_s, self.failed.get(group, 0.0))


def notices_of(steps: list[AnyStep], namespace: str) -> list[Notice]:
    """One Event for all steps of a kind and reason: 20 new replicas are one piece of news."""
    told: dict[tuple[str, str, str], list[AnyStep]] = {}
    for step in steps:
        if isinstance(step, MarkConditions):
            if step.reason not in (reasons.SCALE_DOWN, reasons.ROLLOUT, reasons.EVICTION):
                continue
            action, verb = "Drain", "Draining"
        elif type(step) in _TOLD:
            action, verb = _TOLD[type(step)]
        else:
            continue
        told.setdefault((action, verb, step.reason), []).append(step)
    out = []
    for (action, verb, reason), group in told.items():
        listed = ", ".join(s.name for s in group[:NAMES_MAX])
        more = f" and {len(group) - NAMES_MAX} more" if len(group) > NAMES_MAX else ""
        related = Key(namespace, group[0].name) if len(group) == 1 else None
        out.append(Notice("Normal", action, reason, f"{verb} {listed}{more}: {group[0].message}", related))
    return out


# Conditions whose turning bad is an Event, and the status that is bad.
_ALARMS: Mapping[str, str] = {
    reasons.STALLED: "True",
    reasons.CAPACITY_LIMITED: "True",
    reasons.ROLLOUT_HELD: "True",
    reasons.DISRUPTED: "True",
    reasons.MODEL_READY: "False",
}
_NO_ALARM = frozenset({reasons.MODEL_LOADING, reasons.MODEL_FETCHING})


def notices_of_status(before: Json, after: Json) -> list[Notice]:
    out: list[Notice] = []
    was, is_now = before.get("desiredReplicas"), after.get("desiredReplicas")
    if isinstance(was, int) and was != is_now:
        decision = (after.get("scaling") or {}).get("lastDecision") or {}
        reason = str(decision.get("reason") or reasons.SCALING_UP)
        out.append(
            Notice(
                "Normal",
                "Scale",
                reason,
                f"From {count(was, 'replica')} to {is_now}: {decision.get('message', '')}",
            )
        )
    old = {c["type"]: c for c in before.get("conditions") or ()}
    said: set[str] = set()
    for condition in after.get("conditions") or ():
        bad = _ALARMS.get(condition["type"])
        last = old.get(condition["type"]) or {}
        changed = (condition["status"], condition["reason"]) != (last.get("status"), last.get("reason"))
        if condition["status"] != bad or not changed or condition["reason"] in _NO_ALARM | said:
            continue
        # One cause often turns two conditions; it is told once.
        said.add(condition["reason"])
        out.append(Notice("Warning", "Reconcile", condition["reason"], condition["message"]))
    return out
