"""Operator processes around the real core: late watches, slow and lost answers, a Lease, death at any moment."""

from __future__ import annotations

import random
from collections.abc import Callable

from moefleet_operator.core.core import Core
from moefleet_operator.core.effects import (
    DrainReplica,
    Effect,
    Exit,
    ReadLease,
    ResumeReplica,
    WakeAt,
    WriteLease,
)
from moefleet_operator.core.events import (
    KINDS,
    DecisionMade,
    EffectDone,
    Event,
    GatewayView,
    Invalid,
    Key,
    Kind,
    ObjectChanged,
    Ok,
    Outcome,
    Relisted,
    ReplicaLoad,
    Stop,
    Synced,
    TelemetryUpdate,
    Tick,
    Transient,
)
from moefleet_operator.core.settings import GATHER_S, CoreSettings

from .api import Api, Object
from .gateways import GATEWAY_NAMESPACE, Gateway
from .nodes import Nodes
from .replicas import Replica
from .world import World

CONTROL_KEY = b"0123456789abcdef0123456789abcdef"
# More often than in a real process, so that each story has many.
RELIST_S = 12.0
# From reading a LIST to working on it: pages, a busy API server, a queue of events. The watch goes on meanwhile.
RELIST_LATE_S = 4.0
DECIDE_S = 5.0

Decide = Callable[[], list[DecisionMade]]


class OperatorProcess:
    def __init__(
        self, world: World, api: Api, nodes: Nodes, *, gateways: list[Gateway], name: str, decide: Decide
    ) -> None:
        self.world, self.api, self.nodes, self.gateways = world, api, nodes, gateways
        self.name = name
        self.alive = True
        # Share of requests that fail, before or after they were carried out.
        self.fault_rate = 0.0
        # Requests for the Lease fail until then, all others go through.
        self.lease_cut_until = 0.0
        # The process stands still until then (a stopped virtual machine); what arrives waits.
        self.frozen_until = 0.0
        self._decide = decide
        settings = CoreSettings(
            identity=name,
            namespace=GATEWAY_NAMESPACE,
            control_key=CONTROL_KEY,
            gateway=bool(gateways),
            pods_watched="all",
            gather_s=GATHER_S,
        )
        self.core = Core(settings, random.Random(world.random.random()))
        self._delivered: dict[Kind, float] = {}
        self._loads: dict[str, ReplicaLoad | None] = {}
        self._views: dict[str, GatewayView | None] = {}
        self._flushing = False
        self._wake = 0
        api.hooks.append(self._hook)
        world.after(world.between(0.2, 1.5), self._begin)

    def leading(self) -> bool:
        return self.alive and self.core.leading(self.world.now)

    def stop(self) -> None:
        """SIGTERM."""
        self.world.tell(f"{self.name}: told to stop")
        self.feed(Stop())

    def kill(self) -> None:
        self.world.tell(f"{self.name}: killed")
        self.alive = False

    def feed(self, event: Event) -> None:
        if not self.alive:
            return
        if self.world.now < self.frozen_until:
            self.world.after(self.frozen_until - self.world.now, lambda: self.feed(event))
            return
        for effect in self.core.on(event, self.world.now, self.world.wall):
            self._carry_out(effect)
        if self.core.errors:
            self.world.broken("the core raises nothing", repr(self.core.errors))

    def replica_changed(self, replica: Replica) -> None:
        self._loads[replica.uid] = replica.load() if replica.alive else None
        self._flush_soon()

    def gateway_changed(self, gateway: Gateway) -> None:
        self._views[gateway.uid] = gateway.view()
        self._flush_soon()

    # --- inside ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self.alive:
            return
        self._relist()
        for kind in KINDS:
            self.feed(Synced(kind))
        for replica in self.nodes.replicas.values():
            self.replica_changed(replica)
        for gateway in self.gateways:
            self.gateway_changed(gateway)
        self.world.after(self.world.between(0.0, DECIDE_S), self._tick_scaling)
        self.world.after(RELIST_S, self._relist_again)
        self.feed(Tick())

    def _relist(self, late_s: float = 0.0) -> None:
        for kind in KINDS:
            listed = Relisted(kind, tuple(self.api.all(kind)), self.api.version)
            if late_s:
                self.world.after(self.world.between(0.0, late_s), lambda event=listed: self.feed(event))  # type: ignore[misc]
            else:
                self.feed(listed)

    def _relist_again(self) -> None:
        if self.alive:
            self._relist(RELIST_LATE_S)
            self.world.after(RELIST_S, self._relist_again)

    def _tick_scaling(self) -> None:
        if not self.alive:
            return
        if self.leading():
            for decision in self._decide():
                self.feed(decision)
        self.world.after(DECIDE_S, self._tick_scaling)

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if not self.alive or kind not in KINDS:
            return
        delay_s = (
            self.world.between(0.005, 0.1) if not self.world.chance(0.02) else self.world.between(0.5, 1.8)
        )
        at = max(self.world.now + delay_s, self._delivered.get(kind, 0.0))
        self._delivered[kind] = at
        uid = (after or before or {})["metadata"]["uid"]
        self.world.after(at - self.world.now, lambda: self.feed(ObjectChanged(kind, key, after, uid)))

    def _flush_soon(self) -> None:
        if self._flushing or not self.alive:
            return
        self._flushing = True
        self.world.after(self.world.between(0.1, 0.5), self._flush)

    def _flush(self) -> None:
        self._flushing = False
        loads, self._loads = self._loads, {}
        views, self._views = self._views, {}
        self.feed(TelemetryUpdate(loads, views))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case WakeAt():
                self._wake += 1
                serial = self._wake

                def wake() -> None:
                    if serial == self._wake:
                        self.feed(Tick())

                self.world.after(effect.at - self.world.now, wake)
            case Exit():
                self.world.tell(f"{self.name}: exits, {effect.message}")
                self.alive = False
            case _:
                if not effect.reason or not effect.message:
                    self.world.broken("every effect says why", repr(effect))
                self.world.after(self._latency(), lambda: self._arrive(effect))

    def _arrive(self, effect: Effect) -> None:
        # What was sent before the process died arrives all the same, now and then.
        if not self.alive and self.world.chance(0.5):
            return
        if self.world.now > effect.not_after:
            self._answer(effect, Transient("past not_after"))
            return
        if isinstance(effect, ReadLease | WriteLease) and self.world.now < self.lease_cut_until:
            self.world.after(1.0, lambda: self._answer(effect, Transient("no connection")))
            return
        fails = self.world.chance(self.fault_rate)
        if fails and self.world.chance(0.5):
            self._answer(effect, Transient("503 before it was carried out"))
            return
        outcome = self._outcome(effect)
        self._answer(effect, Transient("the answer was lost") if fails else outcome)

    def _answer(self, effect: Effect, outcome: Outcome) -> None:
        self.world.after(self._latency(), lambda: self.feed(EffectDone(effect.id, outcome)))

    def _outcome(self, effect: Effect) -> Outcome:
        match effect:
            case DrainReplica():
                replica = self.nodes.replicas.get(effect.uid)
                if replica is None or not replica.alive:
                    return Transient("unreachable")
                return Ok({"state": replica.drain(), "active": len(replica.streams)})
            case ResumeReplica():
                replica = self.nodes.replicas.get(effect.uid)
                if replica is None or not replica.alive:
                    return Transient("unreachable")
                return Ok({"state": replica.state}) if replica.resume() else Invalid("it is ending")
            case _:
                if not isinstance(effect, ReadLease | WriteLease):
                    self._only_the_leader_writes(effect)
                if not isinstance(effect, ReadLease) and effect.reason != "RenewLease":
                    what = f"{type(effect).__name__} {effect.object} {effect.reason}: {effect.message}"
                    self.world.tell(f"{self.name}: {what}")
                return self.api.carry_out(effect)

    def _only_the_leader_writes(self, effect: Effect) -> None:
        lease = self.api.get("Lease", Key(GATEWAY_NAMESPACE, "moefleet-operator"))
        holder = lease["spec"]["holderIdentity"] if lease is not None else ""
        if holder != self.name:
            self.world.broken(
                "only the holder of the Lease writes", f"{self.name} writes, {holder!r} holds it: {effect}"
            )

    def _latency(self) -> float:
        return (
            self.world.between(0.002, 0.05) if not self.world.chance(0.01) else self.world.between(0.5, 3.0)
        )
