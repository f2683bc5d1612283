"""The life of an endpoint: offered to Envoy, registered (Envoy has it, may be chosen), withdrawn, forgotten.

Envoy must know an endpoint before it may be chosen, and forgets it only after it is no longer chosen and nothing
runs on it. An endpoint that is not in this table is neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from moefleet_gateway.picking.choose import Candidate
from moefleet_gateway.picking.facts import Load, Replica

# From our answer until the request shows in Envoy's `rq_active` of the replica that takes it, retries included.
TRANSIT_S = 1.0
# Envoy's own count is the truth about a withdrawn endpoint (after a retry we do not know who serves); when the
# admin socket gives none for this long, our count has to do.
COUNT_PATIENCE_S = 5.0


class State(Enum):
    OFFERED = "offered"
    REGISTERED = "registered"
    WITHDRAWN = "withdrawn"


@dataclass(slots=True)
class Endpoint:
    replica: Replica
    state: State
    candidate: Candidate
    offered_version: int
    reason: str = ""  # why it is not eligible
    tracked: int = 0  # our picks that name it first and have not ended
    envoy_active: int = 0
    envoy_counted_at_s: float = float("-inf")
    withdrawn_at_s: float = float("inf")

    def in_flight(self) -> int:
        if self.state is State.WITHDRAWN and self.envoy_counted_at_s >= self.withdrawn_at_s + TRANSIT_S:
            return self.envoy_active
        return max(self.tracked, self.envoy_active)


def why_not(replica: Replica, load: Load | None) -> str:
    """Empty when the replica may be registered; else the reason, for the log and the metric."""
    if replica.draining:
        return "Draining"
    if not replica.ready:
        return "ContainersNotReady"
    if not replica.control:
        return ""
    if load is None:
        return "NoLoadStream"
    if load.pod_uid != replica.uid:
        return "WrongPod"  # the address has a new owner
    if not load.serving:
        return f"State{load.state}"
    return ""


class Endpoints:
    def __init__(self) -> None:
        self.by_uid: dict[str, Endpoint] = {}
        self.version = 1  # of what Envoy should have; the fleets' clusters count too
        self.acknowledged = 0  # of what Envoy confirmed on its present connection
        self._by_fleet: dict[str, dict[str, Endpoint]] = {}
        self._choosable: dict[str, list[Candidate]] = {}

    def observe(self, replica: Replica, load: Load | None, inherited: int, now: float) -> str | None:
        """Brings one replica up to date; the new state's name when it changed, else None.

        `inherited` is what Envoy had running on the address before this process began.
        """
        reason = why_not(replica, load)
        entry = self.by_uid.get(replica.uid)
        if entry is not None and entry.replica.address != replica.address:
            self._remove(entry)  # a pod's address never changes; a file's may
            entry = None
        if entry is None:
            if reason and not inherited:
                return None
            entry = Endpoint(
                replica,
                State.OFFERED,
                Candidate(replica.uid, replica.address, load),
                0,
                envoy_active=inherited,
            )
            self.by_uid[replica.uid] = entry
            self._by_fleet.setdefault(replica.fleet, {})[replica.uid] = entry
            self.bump()
            entry.offered_version = self.version
            if reason:
                entry.state, entry.withdrawn_at_s, entry.reason = State.WITHDRAWN, now, reason
            return entry.state.value
        entry.replica = replica
        if reason:
            return self.withdraw(replica.uid, reason, now)
        if entry.state is State.WITHDRAWN:
            # Still in EDS: chosen again at once, if Envoy has confirmed it on this connection.
            confirmed = entry.offered_version <= self.acknowledged
            entry.state = State.REGISTERED if confirmed else State.OFFERED
            entry.reason, entry.withdrawn_at_s = "", float("inf")
            self._choosable.pop(replica.fleet, None)
            return entry.state.value
        return None

    def withdraw(self, uid: str, reason: str, now: float) -> str | None:
        entry = self.by_uid.get(uid)
        if entry is None:
            return None
        if entry.state is State.WITHDRAWN:
            entry.reason = reason
            return None
        entry.reason = reason
        if entry.state is State.OFFERED and entry.in_flight() == 0 and self.acknowledged > 0:
            self._remove(entry)  # never chosen
            return "gone"
        entry.state, entry.withdrawn_at_s = State.WITHDRAWN, now
        self._choosable.pop(entry.replica.fleet, None)
        return entry.state.value

    def acknowledge(self, version: int) -> list[Endpoint]:
        """Envoy confirmed everything up to `version`; returns what became registered by it."""
        self.acknowledged = max(self.acknowledged, version)
        fresh = [
            e
            for e in self.by_uid.values()
            if e.state is State.OFFERED and e.offered_version <= self.acknowledged
        ]
        for entry in fresh:
            entry.state = State.REGISTERED
            self._choosable.pop(entry.replica.fleet, None)
        return fresh

    def envoy_lost(self) -> None:
        """The xDS stream ended: what the next Envoy knows is not known, so nothing may be chosen."""
        self.acknowledged = 0
        self._choosable.clear()
        for entry in self.by_uid.values():
            if entry.state is State.REGISTERED:
                entry.state = State.OFFERED

    def counted(self, active: Mapping[tuple[str, str], int], began_s: float) -> None:
        """Envoy's running requests by (cluster, address), asked for at `began_s`."""
        for entry in self.by_uid.values():
            entry.envoy_active = active.get((entry.replica.cluster, entry.replica.address), 0)
            entry.envoy_counted_at_s = began_s

    def sweep(self, now: float) -> list[str]:
        """Forgets withdrawn endpoints on which nothing runs; returns their uids."""
        gone = []
        for entry in list(self.by_uid.values()):
            if entry.state is not State.WITHDRAWN or entry.in_flight() > 0:
                continue
            counted = entry.envoy_counted_at_s >= entry.withdrawn_at_s + TRANSIT_S
            if counted or now >= entry.withdrawn_at_s + COUNT_PATIENCE_S:
                self._remove(entry)
                gone.append(entry.replica.uid)
        return gone

    def choosable(self, fleet: str) -> list[Candidate]:
        known = self._choosable.get(fleet)
        if known is None:
            entries = self._by_fleet.get(fleet, {}).values()
            known = [e.candidate for e in entries if e.state is State.REGISTERED]
            self._choosable[fleet] = known
        return known

    def coming(self, fleet: str) -> bool:
        """Somebody may be chosen, or will be as soon as Envoy has confirmed it."""
        return any(e.state is not State.WITHDRAWN for e in self._by_fleet.get(fleet, {}).values())

    def clusters(self, fleets: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What Envoy should have: addresses by cluster. A cluster outlives its fleet while something runs in it."""
        out: dict[str, tuple[str, ...]] = dict.fromkeys(fleets, ())
        for key, entries in self._by_fleet.items():
            if entries:
                # Two pods may share an address for a moment; Envoy wants each once.
                out[key] = tuple(sorted({e.replica.address for e in entries.values()}))
        return out

    def bump(self) -> None:
        self.version += 1

    def _remove(self, entry: Endpoint) -> None:
        del self.by_uid[entry.replica.uid]
        fleet = entry.replica.fleet
        self._by_fleet[fleet].pop(entry.replica.uid, None)
        if not self._by_fleet[fleet]:
            del self._by_fleet[fleet]
        self._choosable.pop(fleet, None)
        self.bump()
