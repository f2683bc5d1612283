"""One log line and one count for each effect and what became of it. A Lease that is only renewed is no news."""

from __future__ import annotations

from typing import Any, Final

import structlog

from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    Effect,
    EmitEvent,
    Exit,
    PatchPod,
    PatchPodConditions,
    ReadLease,
    Relist,
    WriteLease,
)
from moefleet_operator.core.events import AlreadyExists, NotFound, Ok, Outcome
from moefleet_operator.metrics import Metrics

log = structlog.get_logger("moefleet_operator.effects")

# verb and kind of what each effect writes; RPCs to replicas count as verb "call".
_WRITES: Final[dict[type[Effect], tuple[str, str]]] = {
    CreatePod: ("create", "Pod"),
    PatchPodConditions: ("patch", "Pod/status"),
    PatchPod: ("patch", "Pod"),
    DeletePod: ("delete", "Pod"),
    EmitEvent: ("create", "Event"),
    WriteLease: ("update", "Lease"),
}


class Reporter:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # What last went wrong with the Lease, which is tried every 2 s: told once.
        self._lease_problem = ""

    def report(self, effect: Effect, outcome: Outcome | None) -> None:
        if not isinstance(effect, ReadLease | Relist | Exit):
            verb, kind = _written(effect)
            self._metrics.writes.labels(verb=verb, kind=kind, outcome=type(outcome).__name__).inc()
        fine = outcome is None or isinstance(outcome, Ok | AlreadyExists | NotFound)
        problem = "" if fine else str(getattr(outcome, "message", ""))
        if isinstance(effect, ReadLease | WriteLease):
            known, self._lease_problem = self._lease_problem, problem
            if problem and problem == known:
                return
        if fine and not _news(effect):
            return
        fields: dict[str, Any] = {
            "effect": type(effect).__name__,
            "object": str(effect.object),
            "reason": effect.reason,
            "message": effect.message,
        }
        if outcome is not None:
            fields["outcome"] = type(outcome).__name__
        if problem:
            fields["problem"] = problem
        (log.info if fine else log.warning)(effect.reason, **fields)


def _news(effect: Effect) -> bool:
    match effect:
        case ReadLease():
            return False
        case WriteLease():
            return effect.intent != "renew"
        case EmitEvent():
            # Its decision has its own line.
            return False
        case Apply():
            # Numbers in status are for the status; what they led to is a line of its own.
            return effect.subresource != "status"
        case _:
            return True


def _written(effect: Effect) -> tuple[str, str]:
    if isinstance(effect, Apply):
        kind = str(effect.body.get("kind"))
        return (
            "create" if effect.create else "apply",
            f"{kind}/{effect.subresource}" if effect.subresource else kind,
        )
    return _WRITES.get(type(effect), ("call", type(effect).__name__))
