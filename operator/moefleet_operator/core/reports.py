"""What replicas, gateways and scaling last said, and which fleets that concerns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moefleet_operator.planning.observed import Decision, Json

from .events import DecisionMade, GatewayView, Key, NumbersMeasured, ReplicaLoad, TelemetryUpdate


class Reports:
    def __init__(self) -> None:
        self.loads: dict[str, ReplicaLoad] = {}
        self.views: dict[str, GatewayView] = {}
        self.decisions: dict[Key, Decision] = {}
        self.numbers: dict[Key, Json] = {}

    def telemetry(self, update: TelemetryUpdate) -> set[str]:
        """Uids of replicas about which something changed that a plan may look at."""
        touched: set[str] = set()
        for uid, load in update.loads.items():
            before = self.loads.get(uid)
            if load is None:
                self.loads.pop(uid, None)
            else:
                self.loads[uid] = load
            if _matters(before, load):
                touched.add(uid)
        for gateway, view in update.gateways.items():
            old = self.views.get(gateway)
            if view is None:
                self.views.pop(gateway, None)
            else:
                self.views[gateway] = view
            touched |= _changed(old, view)
        return touched

    def answered(self, uid: str, answer: Json | None) -> None:
        """A replica's answer to Drain or Resume: newer than its last sample."""
        state = str((answer or {}).get("state") or "UNSPECIFIED")
        before = self.loads.get(uid, ReplicaLoad("UNSPECIFIED"))
        active = (answer or {}).get("active")
        self.loads[uid] = replace(
            before,
            state=state,  # type: ignore[arg-type]  # one of the names of the proto, or UNSPECIFIED
            active=active if isinstance(active, int) else before.active,
        )

    def decision(self, event: DecisionMade) -> bool:
        """Whether the number, its reason or being limited is news."""
        before = self.decisions.get(event.fleet)
        found = Decision(event.replicas, event.reason, event.message, event.needed)
        self.decisions[event.fleet] = found
        return before is None or _news(before) != _news(found)

    def measured(self, event: NumbersMeasured) -> None:
        self.numbers[event.fleet] = event.numbers

    def forget_fleet(self, fleet: Key) -> None:
        self.decisions.pop(fleet, None)
        self.numbers.pop(fleet, None)

    def keep(self, pods: set[str], gateways: set[str]) -> None:
        """Forget whoever is no more."""
        self.loads = {uid: load for uid, load in self.loads.items() if uid in pods}
        self.views = {uid: view for uid, view in self.views.items() if uid in gateways}


def _news(decision: Decision) -> tuple[int | None, str, bool]:
    return decision.replicas, decision.reason, decision.needed is not None


def _matters(before: ReplicaLoad | None, after: ReplicaLoad | None) -> bool:
    if before is None or after is None:
        return before is not after
    if before.state != after.state or before.message != after.message:
        return True
    # While it serves, its load only orders victims, which the next plan reads anyway.
    return after.state in ("DRAINING", "DRAINED") and (before.active, before.queued) != (
        after.active,
        after.queued,
    )


def _changed(before: GatewayView | None, after: GatewayView | None) -> set[str]:
    old: Mapping[str, object] = before.endpoints if before is not None else {}
    new: Mapping[str, object] = after.endpoints if after is not None else {}
    touched = set(old) ^ set(new)
    for uid in set(old) & set(new):
        a, b = before.endpoints[uid], after.endpoints[uid]  # type: ignore[union-attr]
        # In-flight counts matter when the replica is on its way out.
        if a.registered != b.registered or (not b.registered and a.in_flight != b.in_flight):
            touched.add(uid)
    return touched
