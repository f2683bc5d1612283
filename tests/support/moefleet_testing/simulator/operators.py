"""Operator processes around the real core: late watches, slow and lost answers, a Lease, death at any moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from moefleet_operator.core.core import Core
from moefleet_operator.core.effects import (
    CreatePod,
    DrainReplica,
    Effect,
    Exit,
    ReadLease,
    Relist,
    ResumeReplica,
    WakeAt,
)
from moefleet_operator.core.events import (
    KINDS,
    Conflict,
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
from moefleet_operator.kube.clock import ServerClock

from .api import LEASE_EFFECTS, Api, Object, owner_of, uid_of
from .gateways import GATEWAY_NAMESPACE, Gateway
from .nodes import Nodes
from .replicas import Replica
from .world import World

CONTROL_KEY = b"0123456789abcdef0123456789abcdef"
# As in a real process.
RELIST_S = 60.0
DECIDE_S = 5.0
# From reading a LIST to working on it: pages, a busy API server, a queue of events. The watch goes on meanwhile.
RELIST_LATE_S = 4.0
STALE_LATE_S = 30.0
# A new leader waits for its LIST, so nothing else keeps it long.
RELIST_TAKEOVER_S = 1.0
LEASE = Key(GATEWAY_NAMESPACE, "moefleet-operator")

Decide = Callable[["OperatorProcess"], list[DecisionMade]]


@dataclass(slots=True)
class Weather:
    """How one operator's way to the API server, to replicas and to gateways is; each until a time."""

    errors_until: float = 0.0
    error_rate: float = 0.0
    slow_until: float = 0.0
    throttled_until: float = 0.0
    away_until: float = 0.0
    conflicts_until: float = 0.0
    # Requests for the Lease fail, all others go through.
    lease_cut_until: float = 0.0
    watch_lossy_until: float = 0.0
    watch_cut_until: float = 0.0
    watch_twice_until: float = 0.0
    watch_disordered_until: float = 0.0
    lists_stale_until: float = 0.0
    telemetry_until: float = 0.0

    def clear(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0.0)


class OperatorProcess:
    def __init__(
        self,
        world: World,
        api: Api,
        nodes: Nodes,
        *,
        gateways: list[Gateway],
        name: str,
        decide: Decide,
        check: Callable[[OperatorProcess, Effect], None],
        died: Callable[[OperatorProcess], None],
        clock_error_s: float = 0.0,
    ) -> None:
        self.world, self.api, self.nodes, self.gateways = world, api, nodes, gateways
        self.name = name
        self.alive = True
        self.weather = Weather()
        # The process stands still until then (a stopped virtual machine); what arrives waits.
        self.frozen_until = 0.0
        self._waiting: list[Event] = []
        # The clock of its machine is wrong by so much.
        self.clock_error_s = clock_error_s
        self._clock = ServerClock(lambda: world.now, lambda: world.wall + self.clock_error_s)
        self._began_wrong = clock_error_s != 0.0
        # Ends before its n-th effect from now; 0: does not.
        self.dies_at_effect = 0
        # What it missed may still be unknown to it; None: it knows everything that is not just under way.
        self.deaf_since: float | None = None
        # Fleets that it was told are being deleted or gone.
        self.knows_deleted: set[str] = set()
        self._decide, self._check, self._died = decide, check, died
        self._rng = world.stream(name)
        settings = CoreSettings(
            identity=name,
            namespace=GATEWAY_NAMESPACE,
            control_key=CONTROL_KEY,
            gateway=True,
            pods_watched="all",
            gather_s=GATHER_S,
        )
        self.core = Core(settings, random.Random(f"{world.seed}/{name}/jitter"))
        self._delivered: dict[str, float] = {}
        # When what was listed last has been worked on.
        self._lists_until = 0.0
        self._loads: dict[str, ReplicaLoad | None] = {}
        self._views: dict[str, GatewayView | None] = {}
        self._flushing = False
        self._wake = 0
        api.hooks.append(self._hook)
        world.after(self._rng.uniform(0.2, 1.5), self._begin)

    def leading(self) -> bool:
        return self.alive and self.core.leading(self.world.now)

    def stop(self) -> None:
        """SIGTERM."""
        self.world.tell(f"{self.name}: told to stop")
        self.feed(Stop())

    def kill(self, why: str = "killed") -> None:
        if not self.alive:
            return
        self.world.tell(f"{self.name}: {why}")
        self.alive = False
        self.api.hooks.remove(self._hook)
        self._died(self)

    def feed(self, event: Event) -> None:
        if not self.alive:
            return
        now = self.world.now
        if now < self.frozen_until:
            if not self._waiting:
                self.world.after(self.frozen_until - now, self._thaw)
            self._waiting.append(event)
            return
        if self._waiting:
            # It was let go before its time; what came first is seen first.
            self._thaw()
        for effect in self.core.on(event, now, self._clock.wall()):
            self._carry_out(effect)
        if self.core.errors:
            self.world.broken("the core raises nothing", repr(self.core.errors))

    def _thaw(self) -> None:
        if self._waiting and self.world.now < self.frozen_until:
            self.world.after(self.frozen_until - self.world.now, self._thaw)
            return
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.feed(event)

    def replica_changed(self, replica: Replica) -> None:
        if self.world.now >= self.weather.telemetry_until:
            self._loads[replica.uid] = replica.load()
            self._flush_soon()

    def gateway_changed(self, gateway: Gateway) -> None:
        if self.world.now >= max(self.weather.telemetry_until, gateway.silent_until):
            self._views[gateway.uid] = gateway.view() if gateway.alive else None
            self._flush_soon()

    def lose_telemetry(self, until: float, *, broken: bool) -> None:
        """`broken`: it knows that it hears nobody; otherwise it just hears nothing new."""
        if broken:
            for uid in self.nodes.replicas:
                self._loads[uid] = None
            for gateway in self.gateways:
                self._views[gateway.uid] = None
            self._flush_soon()
        self.weather.telemetry_until = until
        self.world.after(until - self.world.now, self.hear_again)

    def hear_again(self) -> None:
        for replica in self.nodes.replicas.values():
            self.replica_changed(replica)
        for gateway in self.gateways:
            self.gateway_changed(gateway)

    def be_deaf(self) -> None:
        if self.deaf_since is None:
            self.deaf_since = self.world.now

    def relist(self, late_s: float = 0.0) -> float:
        """Lists of all kinds, read now and worked on a little later; how much later the last of them is."""
        heals = self.world.now >= max(
            self.weather.watch_lossy_until, self.weather.watch_cut_until, self.weather.away_until
        )
        last_s = 0.0
        for kind in KINDS:
            self._dated(self.world.now)
            listed = Relisted(kind, tuple(self.api.all(kind)), self.api.version, self.world.now)
            # One after the other, as the process reads them.
            drawn_s = self._rng.uniform(0.0, late_s) if late_s else 0.0
            wait_s = max(drawn_s, self._lists_until - self.world.now)
            if wait_s > 0.0:
                last_s = max(last_s, wait_s)
                self.world.after(wait_s, lambda event=listed: self._listed(event))  # type: ignore[misc]
            else:
                self._listed(listed)
        self._lists_until = self.world.now + last_s
        if heals and self.deaf_since is not None:
            self.world.after(last_s, self._heard)
        return last_s

    # --- inside ---------------------------------------------------------------------------------------------

    def _dated(self, sent: float) -> None:
        """The API server answered, now, what was sent then: with the date of its own clock."""
        # Dates tell nothing to a clock that began right, and to read them all would be a tenth of a schedule's time.
        if self._began_wrong and self.alive and self.world.now >= self.frozen_until:
            self._clock.heard(formatdate(self.world.wall, usegmt=True), sent, self.world.now)

    def _heard(self) -> None:
        # Unless it has become deaf again since.
        if self.world.now >= max(self.weather.watch_lossy_until, self.weather.watch_cut_until):
            self.deaf_since = None

    def _listed(self, event: Relisted) -> None:
        if event.kind == "MoEFleet":
            self.knows_deleted |= {uid_of(f) for f in event.objects if "deletionTimestamp" in f["metadata"]}
        self.feed(event)

    def _begin(self) -> None:
        if not self.alive:
            return
        self.relist()
        for kind in KINDS:
            self.feed(Synced(kind))
        self.hear_again()
        self.world.after(self._rng.uniform(0.0, DECIDE_S), self._tick_scaling)
        self.world.after(RELIST_S * self._rng.random(), self._relist_again)
        self.feed(Tick())

    def _relist_again(self) -> None:
        if self.alive:
            if self.world.now >= self.weather.away_until:
                stale = self.world.now < self.weather.lists_stale_until
                self.relist(STALE_LATE_S if stale else RELIST_LATE_S)
            self.world.after(RELIST_S, self._relist_again)

    def _tick_scaling(self) -> None:
        if not self.alive:
            return
        if self.world.now >= self.frozen_until:
            for decision in self._decide(self):
                self.feed(decision)
        self.world.after(DECIDE_S, self._tick_scaling)

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if kind not in KINDS:
            return
        now, weather, rng = self.world.now, self.weather, self._rng
        if now < max(weather.watch_cut_until, weather.away_until):
            self.be_deaf()
            return
        if now < weather.watch_lossy_until and rng.random() < 0.4:
            self.be_deaf()
            return
        delay_s = rng.uniform(0.005, 0.1) if rng.random() > 0.02 else rng.uniform(0.5, 1.8)
        if now < weather.watch_disordered_until:
            at = now + rng.uniform(0.0, 5.0)
        else:
            at = max(now + delay_s, self._delivered.get(kind, 0.0))
            self._delivered[kind] = at
        uid = uid_of(after or before or {})
        event = ObjectChanged(kind, key, after, uid)
        deleted = kind == "MoEFleet" and (after is None or "deletionTimestamp" in after["metadata"])

        def deliver() -> None:
            if deleted and self.world.now >= self.frozen_until:
                self.knows_deleted.add(uid)
            self.feed(event)

        self.world.after(at - now, deliver)
        if now < weather.watch_twice_until:
            self.world.after(at - now + rng.uniform(0.0, 3.0), deliver)

    def _flush_soon(self) -> None:
        if self._flushing or not self.alive:
            return
        self._flushing = True
        self.world.after(self._rng.uniform(0.1, 0.5), self._flush)

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
                self.kill(f"exits, {effect.message}")
            case _:
                if not self.alive:
                    return
                if not effect.reason or not effect.message:
                    self.world.broken("every effect says why", repr(effect))
                if isinstance(effect, CreatePod) and owner_of(effect.body) in self.knows_deleted:
                    self.world.broken(
                        "a fleet that is being deleted creates nothing", f"{self.name}: {effect.object}"
                    )
                if self.dies_at_effect and not isinstance(effect, LEASE_EFFECTS):
                    self.dies_at_effect -= 1
                    if not self.dies_at_effect:
                        self.kill(f"killed at {type(effect).__name__} {effect.object}")
                sent = self.world.now
                self.world.after(self._latency(), lambda: self._arrive(effect, sent))

    def _arrive(self, effect: Effect, sent: float) -> None:
        now, weather, rng = self.world.now, self.weather, self._rng
        # What was sent before the process died arrives all the same, now and then.
        if not self.alive and rng.random() < 0.5:
            return
        if now > effect.not_after:
            self._answer(effect, Transient("past not_after", maybe_done=False))
            return
        lease = isinstance(effect, LEASE_EFFECTS)
        if now < weather.away_until or (lease and now < weather.lease_cut_until):
            self.world.after(1.0, lambda: self._answer(effect, Transient("no connection")))
            return
        if isinstance(effect, (DrainReplica, ResumeReplica)):
            self._answer(effect, self._call(effect))
            return
        if now < weather.throttled_until and not lease and rng.random() < 0.7:
            self._answer(
                effect, Transient("429 too many requests", rng.choice((None, 1.0, 5.0)), maybe_done=False)
            )
            return
        if now < weather.conflicts_until and rng.random() < 0.5:
            self._answer(effect, Conflict("the object has been modified"))
            return
        fails = now < weather.errors_until and rng.random() < weather.error_rate
        if fails and rng.random() < 0.5:
            self._answer(effect, Transient("503 before it was carried out"))
            return
        if isinstance(effect, Relist):
            stale = now < weather.lists_stale_until
            last_s = self.relist(STALE_LATE_S if stale else RELIST_TAKEOVER_S)
            self.world.after(last_s, lambda: self._answer(effect, Ok()))
            return
        self._check(self, effect)
        if not isinstance(effect, ReadLease) and effect.reason != "RenewLease":
            what = f"{type(effect).__name__} {effect.object} {effect.reason}: {effect.message}"
            self.world.tell(f"{self.name}: {what}")
        outcome = self.api.carry_out(effect)
        self._dated(sent)
        self._answer(effect, Transient("the answer was lost") if fails else outcome)

    def _call(self, effect: DrainReplica | ResumeReplica) -> Outcome:
        replica = self.nodes.replicas.get(effect.uid)
        if replica is None or not replica.answers or self.world.now < self.weather.telemetry_until:
            return Transient("unreachable")
        self.world.tell(f"{self.name}: {type(effect).__name__} {effect.object} {effect.message}")
        if isinstance(effect, DrainReplica):
            return Ok({"state": replica.drain(), "active": len(replica.streams)})
        return Ok({"state": replica.state}) if replica.resume() else Invalid("it is ending")

    def _answer(self, effect: Effect, outcome: Outcome) -> None:
        self.world.after(self._latency(), lambda: self.feed(EffectDone(effect.id, outcome)))

    def _latency(self) -> float:
        draw = self._rng.random
        if self.world.now < self.weather.slow_until:
            return 0.5 + 5.5 * draw()
        return 0.002 + (0.05 - 0.002) * draw() if draw() > 0.01 else 0.5 + 2.5 * draw()
