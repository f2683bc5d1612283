"""Every 5 s: whom to listen to, and for each fleet a sample, a decision, and numbers for people. Only the leader decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from pydantic import ValidationError

from moefleet_operator import names
from moefleet_operator.api import MoEFleetSpec
from moefleet_operator.api import conditions as reasons
from moefleet_operator.core.events import DecisionMade, Event, Json, Key, NumbersMeasured
from moefleet_operator.core.ports import View
from moefleet_operator.kube.clock import Clock
from moefleet_operator.metrics import Metrics
from moefleet_operator.planning.cold_start import ColdStart, cold_start, of_revision
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import Decision, State, decide, remember, resumed, shifted
from moefleet_operator.telemetry import GatewayTarget, ReplicaTarget, TelemetryHub

from .keeping import StateKeeper
from .numbers import numbers
from .policy import COLD_STARTS_MAX, policy, supply, told_cold_starts_s, told_target

# As the law expects it.
TICK_S: Final = 5.0
# New pods are listened to this soon: registration and drain wait for what they say. So is a request for a fleet that
# sleeps: a whole tick would be a large part of a short cold start.
TARGETS_EVERY_S: Final = 0.5
# The wall clock against the monotonic one: more is no drift but somebody who set the clock.
CLOCK_SET_S: Final = 2.0
# Seen this soon after its creation, a replica's whole start was seen.
BIRTH_S: Final = 60.0
# Gateways replay the last hour within a second; one that is silent for longer must not keep a fleet from being decided on.
REPLAY_MAX_S: Final = 30.0

log = structlog.get_logger("moefleet_operator.scaling")


@dataclass(slots=True)
class _Memory:
    uid: str
    since: float
    state: State | None = None
    told: tuple[int, str, bool] | None = None
    numbers: Json | None = None
    # Arrivals as of the last decision.
    arrivals: float = 0.0
    cold_starts: deque[ColdStart] = field(default_factory=lambda: deque(maxlen=COLD_STARTS_MAX))
    # Replicas whose cold start is counted, or was over before we looked.
    counted: set[str] = field(default_factory=set)
    # Replicas that we have known from their birth and that have not been Ready yet.
    unborn: set[str] = field(default_factory=set)


class Sizing:
    def __init__(
        self,
        *,
        view: View,
        hub: TelemetryHub,
        emit: Callable[[Event], None],
        clock: Clock,
        metrics: Metrics,
        sightings: Callable[[], int],
        keeper: StateKeeper | None = None,
    ) -> None:
        # Grows with everything that may change which pods there are; a thousand pods are not looked through for nothing.
        self._sightings = sightings
        self._seen = -1
        # None: nothing outlives the process but what gateways replay.
        self._keeper = keeper
        self._view = view
        self._hub = hub
        self._emit = emit
        self._clock = clock
        self._metrics = metrics
        self._memories: dict[Key, _Memory] = {}
        # What was said of fleets that could not be decided on.
        self._errors: dict[Key, str] = {}
        self._gateways: frozenset[GatewayTarget] | None = None
        # By pod uid, and what each was made from: most of a thousand pods are what they were half a second ago.
        self._replicas: dict[str, tuple[PodFacts, ReplicaTarget]] | None = None
        # Wall minus monotonic clock, as last seen.
        self._offset_s: float | None = None

    async def run(self) -> None:
        next_tick = self._clock.now()
        while True:
            self.listen()
            if self._clock.now() >= next_tick:
                next_tick = self._clock.now() + TICK_S
                self.tick()
            else:
                self.wake()
            await self._clock.sleep(TARGETS_EVERY_S)

    def listen(self) -> None:
        """Tells the hub which gateway and replica pods there are, when that may have changed."""
        sightings = self._sightings()
        if sightings == self._seen:
            return
        self._seen = sightings
        gateways = frozenset(
            GatewayTarget(pod.uid, _address(pod.ip, names.GATEWAY_PORT_CONTROL))
            for pod in self._view.gateways()
            if pod.ip
        )
        if gateways != self._gateways:
            self._hub.set_gateways(gateways)
            self._gateways = gateways
        before = self._replicas or {}
        replicas = {
            replica.uid: _replica_target(fleet, raw, replica, before.get(replica.uid))
            for fleet, raw in self._view.fleets().items()
            for replica in self._view.replicas(fleet)
            if replica.pod.ip and not replica.pod.finished
        }
        changed = replicas.keys() != before.keys() or any(
            target is not before[uid][1] for uid, (_, target) in replicas.items()
        )
        if changed or self._replicas is None:
            self._hub.set_replicas(target for _, target in replicas.values())
        self._replicas = replicas

    def tick(self) -> None:
        fleets = self._view.fleets()
        for gone in self._memories.keys() - fleets.keys():
            self._forget(gone)
        if not self._view.leading(self._clock.now()):
            # What we decided before is old when we lead again; what the streams told is not.
            for fleet in self._memories:
                self._metrics.forget(fleet.namespace, fleet.name)
                if self._keeper is not None:
                    self._keeper.forget(fleet)
            self._memories.clear()
            self._errors.clear()
            return
        self._follow_clock()
        for fleet, raw in fleets.items():
            self._try(fleet, raw, self._clock.wall())

    def wake(self) -> None:
        """Between ticks: fleets that sleep and are called are decided on at once."""
        if not any(self._view.target(fleet) == 0 for fleet in self._memories):
            return
        if not self._view.leading(self._clock.now()):
            return
        fleets = self._view.fleets()
        self._follow_clock()
        for fleet, memory in list(self._memories.items()):
            if self._view.target(fleet) != 0 or fleet not in fleets:
                continue
            arrivals, waiting = self._hub.calls(fleet)
            if waiting or arrivals > memory.arrivals:
                self._try(fleet, fleets[fleet], self._clock.wall())

    def _follow_clock(self) -> None:
        """Somebody set the clock: what is remembered moves along, or an hour would have passed in which nobody called."""
        offset_s = self._clock.wall() - self._clock.now()
        before_s, self._offset_s = self._offset_s, offset_s
        if before_s is None or abs(offset_s - before_s) < CLOCK_SET_S:
            return
        by_s = offset_s - before_s
        log.warning("ClockSet", message=f"the clock of this node was set by {by_s:+.0f} s")
        for memory in self._memories.values():
            memory.since += by_s
            if memory.state is not None:
                memory.state = shifted(memory.state, by_s)

    def _try(self, fleet: Key, raw: Json, wall: float) -> None:
        try:
            spec = MoEFleetSpec.model_validate(raw.get("spec") or {})
        except ValidationError:
            # The planner says what is wrong with it.
            return
        try:
            self._decide(fleet, raw, spec, wall)
            self._errors.pop(fleet, None)
        # One fleet that we cannot decide on must not stop the others, as in the core; it is tried again, and it is said.
        except Exception as error:
            self._failed(fleet, spec, error)

    def _failed(self, fleet: Key, spec: MoEFleetSpec, error: Exception) -> None:
        memory = self._memories.get(fleet)
        if memory is not None:
            # It may be what the law remembers that broke it.
            memory.state = None
        said = f"{type(error).__name__}: {error}"
        if self._errors.get(fleet) == said:
            return
        self._errors[fleet] = said
        log.error(reasons.INTERNAL_ERROR, fleet=str(fleet), message=said, exc_info=error)
        if memory is not None:
            memory.told = None
        if spec.scaling.mode != "External":
            self._emit(DecisionMade(fleet, None, reasons.INTERNAL_ERROR, said))

    def _decide(self, fleet: Key, raw: Json, spec: MoEFleetSpec, wall: float) -> None:
        uid, memory = _uid(raw), self._memories.get(fleet)
        if memory is None or memory.uid != uid:
            if memory is not None:
                self._forget(fleet)
            memory = self._memories[fleet] = _Memory(uid, wall)
        replicas = self._view.replicas(fleet)
        self._count_cold_starts(fleet, memory, replicas, wall)
        cold_starts = of_revision(memory.cold_starts, _newest_revision(replicas))
        target = self._view.target(fleet)
        wishes = policy(spec)
        have = supply(
            replicas,
            told_target(raw, spec.scaling.min_replicas) if target is None else target,
            [start.total_s for start in cold_starts] or told_cold_starts_s(raw),
            wall,
        )
        sample = self._hub.sample(fleet, wishes, have, wall)
        if sample.demand is not None:
            memory.arrivals = sample.demand.arrivals
        complete = sample.demand is not None and sample.silent_gateways == 0
        asked, kept = (True, None) if self._keeper is None else self._keeper.recall(fleet, uid)
        patient = wall <= memory.since + REPLAY_MAX_S
        if memory.state is None and ((complete and asked) or not patient):
            replayed = remember(self._hub.history(fleet, wall), wall) if complete else State()
            memory.state = resumed(replayed, kept, wall)
        decision = decide(memory.state, sample, wall)
        if memory.state is not None:
            memory.state = decision.state
            if self._keeper is not None:
                self._keeper.keep(fleet, decision.state)
        self._tell(fleet, memory, spec, decision, have.target)
        figures = self._hub.figures(fleet, ttft_limit_s=wishes.ttft_s, tpot_limit_s=wishes.tpot_s)
        self._measure(fleet, memory, numbers(spec, figures, decision.terms, replicas, cold_starts))

    def _tell(self, fleet: Key, memory: _Memory, spec: MoEFleetSpec, decision: Decision, before: int) -> None:
        self._metrics.decided(fleet.namespace, fleet.name, decision.replicas, decision.terms.as_dict())
        if spec.scaling.mode == "External":
            return
        needed = decision.terms.wanted + decision.terms.dead
        limited = needed > decision.replicas
        told = (decision.replicas, str(decision.reason), limited)
        if told == memory.told and self._view.remembers(fleet):
            return
        memory.told = told
        if self._keeper is not None:
            self._keeper.note(fleet, before, decision, self._clock.wall())
        log.info(
            str(decision.reason),
            fleet=str(fleet),
            replicas=decision.replicas,
            message=decision.message,
            **{k: v for k, v in decision.terms.as_dict().items() if v},
        )
        self._emit(
            DecisionMade(
                fleet,
                decision.replicas,
                str(decision.reason),
                decision.message,
                needed if limited else None,
            )
        )

    def _measure(self, fleet: Key, memory: _Memory, found: Json) -> None:
        if found != memory.numbers:
            memory.numbers = found
            self._emit(NumbersMeasured(fleet, found))

    def _count_cold_starts(
        self, fleet: Key, memory: _Memory, replicas: Sequence[Replica], wall: float
    ) -> None:
        there = {replica.uid for replica in replicas}
        memory.counted &= there
        memory.unborn &= there
        for replica in replicas:
            if replica.uid in memory.counted:
                continue
            if replica.pod.since("Ready") is None:
                if wall - replica.pod.created_at < BIRTH_S:
                    memory.unborn.add(replica.uid)
                continue
            if (start := cold_start(replica, watched=replica.uid in memory.unborn)) is not None:
                memory.counted.add(replica.uid)
                memory.cold_starts.append(start)
                self._metrics.started(fleet.namespace, fleet.name, start.total_s, start.phases_s)
                log.info(
                    "ColdStart",
                    fleet=str(fleet),
                    replica=replica.name,
                    seconds=round(start.total_s, 1),
                    **{name: round(seconds, 1) for name, seconds in start.phases_s},
                )
            memory.unborn.discard(replica.uid)

    def _forget(self, fleet: Key) -> None:
        del self._memories[fleet]
        self._errors.pop(fleet, None)
        self._hub.forget(fleet)
        self._metrics.forget(fleet.namespace, fleet.name)
        if self._keeper is not None:
            self._keeper.forget(fleet)


def _replica_target(
    fleet: Key, raw: Json, replica: Replica, before: tuple[PodFacts, ReplicaTarget] | None
) -> tuple[PodFacts, ReplicaTarget]:
    """The target of before, the same object, when it is no other."""
    pod = replica.pod
    if before is not None and before[0] is pod:
        return before
    target = ReplicaTarget(
        pod.uid, fleet, _uid(raw), _address(pod.ip, names.PORT_CONTROL), ready=replica.ready
    )
    return (pod, before[1] if before is not None and before[1] == target else target)


def _newest_revision(replicas: Sequence[Replica]) -> str:
    newest = max(replicas, key=lambda r: r.pod.created_at, default=None)
    return newest.pod.revision if newest is not None else ""


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _uid(raw: Json) -> str:
    metadata: Any = raw.get("metadata") or {}
    return str(metadata.get("uid") or "")
