"""Leadership by a Lease, as a state machine without I/O: client-go's numbers, release on exit, and no act after the deadline.

A leader may act until RENEW_DEADLINE_S after the last renewal that it *sent* and that succeeded, by its own monotonic
clock. A follower takes over LEASE_DURATION_S after it last *saw* the record change, by its own clock. No two clocks are
compared, and the difference of the two numbers is the margin for requests that are under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .events import AlreadyExists, Conflict, Json, NotFound, Ok, Outcome
from .wire import rfc3339_micro

LEASE_DURATION_S = 15.0
RENEW_DEADLINE_S = 10.0
RETRY_PERIOD_S = 2.0


@dataclass(frozen=True, slots=True)
class Read:
    pass


@dataclass(frozen=True, slots=True)
class Write:
    intent: Literal["acquire", "renew", "release"]
    body: Json


Act = Read | Write


class LeaseMachine:
    def __init__(
        self, identity: str, namespace: str, name: str, owner: tuple[str, str] | None = None
    ) -> None:
        """`owner`: name and uid of the ServiceAccount that the Lease is to end with."""
        self._identity = identity
        self._namespace = namespace
        self._name = name
        self._owner = owner
        # The newest record that we know, what of it is asked for all the time, and when (our clock) it last changed.
        self._record: Mapping[str, Any] | None = None
        self._version = ""
        self._holder = ""
        self._lasts_s = LEASE_DURATION_S
        self._seen_change_at = 0.0
        self._must_read = True
        self._next_at = 0.0
        self._acting: Act | None = None
        self._acting_since = 0.0
        # Monotonic end of our right to act; 0: we do not lead.
        self._act_until = 0.0
        self._releasing = False
        self.released = False

    def leading(self, now: float) -> bool:
        return now < self._act_until and not self._releasing

    @property
    def act_until(self) -> float:
        """The `not_after` of everything that the leader starts."""
        return self._act_until

    @property
    def busy(self) -> bool:
        return self._acting is not None

    @property
    def next_at(self) -> float:
        return self._next_at

    @property
    def holder(self) -> str:
        return self._holder

    def step(self, now: float, wall: float) -> Act | None:
        """What to do about the Lease now, if anything. One request at a time."""
        if self._acting is not None or self.released or now < self._next_at:
            return None
        act: Act | None
        if self._releasing:
            act = self._release(wall)
        elif self._must_read:
            act = Read()
        elif now < self._act_until:
            act = Write("renew", self._body(wall, self._transitions()))
        elif self._free(now):
            taken_over = self.holder not in ("", self._identity)
            act = Write("acquire", self._body(wall, self._transitions() + (1 if taken_over else 0)))
        else:
            act = Read()
        self._acting, self._acting_since = act, now
        return act

    def release(self, now: float) -> None:
        """Stop acting at once and give the Lease back with the next step."""
        if self._releasing or self.released:
            return
        self._releasing = True
        self._next_at = now
        if now >= self._act_until:
            self.released = True

    def done(self, outcome: Outcome, now: float) -> None:
        """The answer to the act that `step` returned."""
        act, sent_at = self._acting, self._acting_since
        self._acting = None
        self._next_at = max(now, sent_at + RETRY_PERIOD_S)
        match act, outcome:
            case Read(), Ok(object=record) if record is not None:
                self._observe(record, now)
                self._must_read = False
                # A leader that had to read (conflict) and one that may take over act now, not in 2 s.
                if now < self._act_until:
                    if self.holder != self._identity:
                        self._act_until = 0.0
                    self._next_at = now
                elif self._free(now):
                    self._next_at = now
            case Read(), NotFound():
                self._record, self._holder, self._must_read = None, "", False
                self._next_at = now
            case Write(intent="release"), _:
                # Failed or not: we act no more, and in 15 s anybody may take it.
                self.released = True
            case Write(), Ok(object=record) if record is not None:
                self._observe(record, now)
                self._act_until = sent_at + RENEW_DEADLINE_S
            case Write(intent="renew"), (Conflict() | AlreadyExists() | NotFound()):
                self._must_read = True
                self._next_at = now
            case Write(), (Conflict() | AlreadyExists() | NotFound()):
                self._must_read = True
            case _:
                # Cannot know whether a write arrived: read before the next one, or the resourceVersion is stale for ever.
                self._must_read = True
        if self._releasing:
            self._next_at = now

    def _release(self, wall: float) -> Act | None:
        if self._act_until <= 0.0 or self._record is None:
            self.released = True
            return None
        self._act_until = 0.0
        body = self._body(wall, self._transitions())
        spec = {**body["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        return Write("release", {**body, "spec": spec})

    def _free(self, now: float) -> bool:
        if self._record is None or self._holder in ("", self._identity):
            return True
        return now > self._seen_change_at + self._lasts_s

    def _observe(self, record: Mapping[str, Any], now: float) -> None:
        version, spec = _version(record), _spec(record)
        if self._record is None or self._version != version:
            self._seen_change_at = now
        self._record, self._version = record, version
        self._holder = str(spec.get("holderIdentity") or "")
        self._lasts_s = max(float(spec.get("leaseDurationSeconds") or LEASE_DURATION_S), LEASE_DURATION_S)

    def _transitions(self) -> int:
        return int(_spec(self._record).get("leaseTransitions") or 0)

    def _owners(self) -> list[Any]:
        """Set with the creation and then kept: where OwnerReferencesPermissionEnforcement is on, changing them takes the
        right to delete the Lease."""
        if self._record is not None:
            return list((self._record.get("metadata") or {}).get("ownerReferences") or ())
        if self._owner is None:
            return []
        name, uid = self._owner
        return [{"apiVersion": "v1", "kind": "ServiceAccount", "name": name, "uid": uid}]

    def _body(self, wall: float, transitions: int) -> Json:
        held = _spec(self._record)
        acquired = held.get("acquireTime") if self.holder == self._identity else None
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        owners = self._owners()
        if owners:
            metadata["ownerReferences"] = owners
        if self._record is not None:
            metadata["resourceVersion"] = self._version
        renewed = rfc3339_micro(wall)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(LEASE_DURATION_S),
                "acquireTime": acquired or renewed,
                "renewTime": renewed,
                "leaseTransitions": transitions,
            },
        }


def _spec(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (record or {}).get("spec") or {}


def _version(record: Mapping[str, Any]) -> str:
    return str((record.get("metadata") or {}).get("resourceVersion") or "")
