"""The core on a desk: it is fed by hand, the Lease is granted, and every other answer is the test's."""

from __future__ import annotations

from typing import Any, TypeVar

from moefleet_operator import names
from moefleet_operator.core.core import Core
from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    Effect,
    PatchRevision,
    ReadLease,
    Relist,
    WakeAt,
    WriteLease,
)
from moefleet_operator.core.events import (
    ESSENTIAL,
    KINDS,
    EffectDone,
    Event,
    Key,
    NotFound,
    ObjectChanged,
    Ok,
    Outcome,
    Relisted,
    Synced,
    Tick,
)
from moefleet_operator.core.leadership import SETTLE_S
from moefleet_operator.core.settings import CoreSettings

WALL = 1_800_000_000.0
FLEET = Key("models", "chat")
E = TypeVar("E", bound=Effect)


class Middle:
    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


class Desk:
    """Feeds the core and keeps what it asked for; the Lease is granted, everything else waits for the test."""

    def __init__(self, **settings: Any) -> None:
        facts: dict[str, Any] = {"identity": "op-1", "namespace": "system", "control_key": bytes(32)}
        self.core = Core(CoreSettings(**{**facts, **settings}), Middle())
        self.now = 0.0
        self.open: list[Effect] = []
        self.version = 1000
        self.lease: dict[str, Any] | None = None
        self.grants = True
        self.lists = True
        # Pods that `carry_out` creates run and are ready at once.
        self.pods_serve = False
        self.fleet: dict[str, Any] = fleet()
        # ControllerRevisions (and the other children) by name.
        self.revisions: dict[str, dict[str, Any]] = {}
        # Conditions of the last status that was asked for: type -> (status, reason, message).
        self.conditions: dict[str, tuple[str, str, str]] = {}

    def feed(self, event: Event) -> None:
        new = list(self.core.on(event, self.now, WALL + self.now))
        while new:
            effect = new.pop(0)
            if isinstance(effect, ReadLease | WriteLease) and self.grants:
                new += self.core.on(EffectDone(effect.id, self._lease(effect)), self.now, WALL + self.now)
            elif isinstance(effect, Relist) and self.lists:
                # Nothing that the watch has not told; version 0, so nothing is gone either.
                for kind in ESSENTIAL:
                    new += self.core.on(Relisted(kind, (), 0, self.now), self.now, WALL + self.now)
                new += self.core.on(EffectDone(effect.id, Ok()), self.now, WALL + self.now)
            elif not isinstance(effect, WakeAt):
                self.open.append(effect)
                if isinstance(effect, Apply) and effect.subresource:
                    found = effect.body["status"]["conditions"]
                    self.conditions = {c["type"]: (c["status"], c["reason"], c["message"]) for c in found}

    def lead(self) -> None:
        for kind in KINDS:
            self.feed(Synced(kind))
        self.feed(Tick())
        self.tick(SETTLE_S)

    def tick(self, seconds: float) -> None:
        """Time goes by in steps in which the Lease is renewed."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            self.feed(Tick())

    def take(self, kind: type[E]) -> E:
        found = self.all(kind)
        assert len(found) == 1, f"wanted one {kind.__name__}, found {len(found)} among {self.open}"
        self.open.remove(found[0])
        return found[0]

    def all(self, kind: type[E]) -> list[E]:
        return [e for e in self.open if isinstance(e, kind)]

    def answer(self, effect: Effect, outcome: Outcome) -> None:
        if effect in self.open:
            self.open.remove(effect)
        self.feed(EffectDone(effect.id, outcome))

    def carry_out(self, most: int = 10_000) -> None:
        """Everything that is open succeeds, and what follows from it, too (or only so many of them)."""
        while self.open and most:
            most -= 1
            effect = self.open.pop(0)
            body = getattr(effect, "body", None)
            match effect:
                case CreatePod() if self.pods_serve:
                    self.answer(effect, Ok(serving(self, effect)))
                case CreatePod():
                    self.answer(effect, Ok(self.stamped(body, uid=f"uid-{effect.object.name}")))
                case Apply(subresource="status"):
                    self.answer(
                        effect,
                        Ok(self.stamped({**self.fleet, "status": effect.body["status"]}, uid="fleet-uid")),
                    )
                case Apply():
                    made = self.stamped(body, uid=f"uid-{effect.body['kind']}")
                    self.revisions[effect.object.name] = made
                    self.answer(effect, Ok(made))
                case PatchRevision():
                    found = self.revisions[effect.object.name]
                    labels = {**found["metadata"]["labels"], **effect.body["metadata"]["labels"]}
                    meta = {"labels": {k: v for k, v in labels.items() if v is not None}}
                    made = self.stamped({**found, "revision": effect.body["revision"]}, **meta)
                    self.revisions[effect.object.name] = made
                    self.answer(effect, Ok(made))
                case _:
                    self.answer(effect, Ok(None))

    def settle(self, seconds: float) -> None:
        """Time goes by, and everything that is asked for succeeds."""
        for _ in range(int(seconds)):
            self.carry_out()
            self.tick(1.0)

    def stamped(self, body: Any, **meta: Any) -> dict[str, Any]:
        self.version += 1
        return {**body, "metadata": {**body["metadata"], **meta, "resourceVersion": str(self.version)}}

    def _lease(self, effect: ReadLease | WriteLease) -> Outcome:
        if isinstance(effect, ReadLease):
            return NotFound() if self.lease is None else Ok(self.lease)
        self.lease = self.stamped(effect.body)
        return Ok(self.lease)


def fleet(**meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "models",
            "name": "chat",
            "uid": "fleet-uid",
            "generation": 1,
            "resourceVersion": "5",
            "creationTimestamp": "2026-11-24T10:00:00Z",
            **meta,
        },
        "spec": {
            "model": {"name": "tiny", "source": "file:///m"},
            "engine": {"type": "Simulated", "image": "r"},
            "scaling": {"minReplicas": 1, "maxReplicas": 4},
        },
    }


def with_fleet(**settings: Any) -> Desk:
    desk = Desk(**settings)
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    desk.lead()
    return desk


def serving(desk: Desk, pod: CreatePod, conditions: dict[str, str] | None = None) -> dict[str, Any]:
    """The pod as its kubelet would report it, running and ready."""
    states = {
        "PodScheduled": "True",
        "ContainersReady": "True",
        "Ready": "True",
        names.GATE_REGISTERED: "True",
    }
    states.update(conditions or {})
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": t, "status": s, "reason": "Test", "lastTransitionTime": "2027-01-15T08:00:00Z"}
            for t, s in states.items()
        ],
        "containerStatuses": [{"name": "runtime", "ready": True, "started": True, "state": {"running": {}}}],
    }
    body = desk.stamped(pod.body, uid=f"uid-{pod.object.name}")
    return {**body, "spec": {**body["spec"], "nodeName": "n"}, "status": status}
