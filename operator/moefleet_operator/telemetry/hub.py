"""Holds a stream to every replica and two to every gateway, and answers what is known now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

import grpc
import structlog
from moefleet.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from moefleet.replica.v1 import replica_pb2, replica_pb2_grpc

from moefleet_operator.core.events import GatewayView, Key, ReplicaLoad, TelemetryUpdate
from moefleet_operator.scaling.types import DemandPoint, Policy, Sample, Supply
from moefleet_operator.telemetry.demand import DEMAND_STALE_S, DemandBook
from moefleet_operator.telemetry.endpoints import EndpointBook
from moefleet_operator.telemetry.figures import FigureBook, Figures, Snapshot, attained
from moefleet_operator.telemetry.replicas import LOAD_INTERVAL_S, LOAD_STALE_S, ReplicaBook
from moefleet_operator.telemetry.streams import Link, StreamEndedError, hold, listen, metadata
from moefleet_operator.telemetry.targets import GatewayTarget, ReplicaTarget
from moefleet_operator.telemetry.tokens import gateway_token, replica_token

_log = structlog.get_logger(__name__)

# Loads that only moved are told at most so often; a change of state, a new stream and a broken one at once.
UPDATE_INTERVAL_S = 1.0
# The age of a draining replica's oldest stream is told in steps of this.
DRAIN_AGE_STEP_S = 30.0

Metadata = tuple[tuple[str, str], ...]


class TelemetryHub:
    """All methods but `run` return at once; call them from the loop that runs it. `clock`: unix seconds, the `now` of samples
    and decisions, so that what is learnt from them outlives this process."""

    def __init__(
        self,
        key: bytes | None,
        on_update: Callable[[TelemetryUpdate], None],
        clock: Callable[[], float],
        *,
        load_interval_s: float = LOAD_INTERVAL_S,
    ) -> None:
        self._key = key
        self._on_update = on_update
        self._clock = clock
        self._load_interval_s = load_interval_s
        self._demand = DemandBook()
        self._endpoints = EndpointBook()
        self._replicas = ReplicaBook()
        self._figures: dict[Key, FigureBook] = {}
        self._gateway_targets: dict[str, GatewayTarget] = {}
        self._replica_targets: dict[str, ReplicaTarget] = {}
        self._links: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running = False
        self._told_loads: dict[str, ReplicaLoad | None] = {}
        self._changed_loads: set[str] = set()
        self._changed_gateways: set[str] = set()
        self._flush: asyncio.TimerHandle | None = None
        # When it will run, by the loop's clock: not every loop's handle knows.
        self._flush_at = 0.0

    # --- whom to listen to ---------------------------------------------------------------------------------------

    def set_gateways(self, gateways: Iterable[GatewayTarget]) -> None:
        """All gateway pods that have an address, ready or not. Not called yet: the demand is unknown; called with none: zero."""
        targets = {t.uid: t for t in gateways}
        self._demand.expect(targets)
        self._endpoints.expect(targets)
        before, self._gateway_targets = self._gateway_targets, targets
        for uid, old in before.items():
            if targets.get(uid) != old:
                self._stop(uid)
        if self._running:
            for uid in targets.keys() - self._tasks.keys():
                self._start(uid, self._hold_gateway(targets[uid]))

    def set_replicas(self, replicas: Iterable[ReplicaTarget]) -> None:
        """All replica pods that have an address, draining ones too."""
        targets = {t.uid: t for t in replicas}
        self._replicas.expect(targets.values())
        before, self._replica_targets = self._replica_targets, targets
        for uid, old in before.items():
            new = targets.get(uid)
            if new is old:
                continue
            if new is None or replace(new, ready=old.ready) != old:
                self._stop(uid)
        if self._running:
            for uid in targets.keys() - self._tasks.keys():
                self._start(uid, self._hold_replica(targets[uid]))
        for uid in self._told_loads.keys() - targets.keys():
            del self._told_loads[uid]

    def forget(self, fleet: Key) -> None:
        """The fleet is gone; one of the same name begins anew."""
        self._demand.forget(fleet)
        self._replicas.forget(fleet)
        self._figures.pop(fleet, None)

    async def run(self) -> None:
        """Holds the streams until cancelled."""
        self._running = True
        try:
            for gateway in self._gateway_targets.values():
                self._start(gateway.uid, self._hold_gateway(gateway))
            for replica in self._replica_targets.values():
                self._start(replica.uid, self._hold_replica(replica))
            await asyncio.Event().wait()
        finally:
            self._running = False
            if self._flush is not None:
                self._flush.cancel()
            tasks = list(self._tasks.values())
            self._tasks.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is known ---------------------------------------------------------------------------------------------

    def sample(self, fleet: Key, policy: Policy, supply: Supply, now: float) -> Sample:
        """The facts of this tick; call it once a tick, the figures rest on it. `now` is of the same clock as the hub's."""
        served = self._replicas.served(fleet)
        ttft, tpot = self._demand.latencies(fleet)
        tokens = (
            (served.prompt_tokens, served.cached_tokens, served.output_tokens) if served else (0.0, 0.0, 0.0)
        )
        self._figures.setdefault(fleet, FigureBook()).record(Snapshot(now, tokens, ttft, tpot))
        prior = policy.calibration.step if policy.calibration else None
        steps, step_time_ratio = self._replicas.steps(fleet, prior, now)
        return Sample(
            policy=policy,
            supply=supply,
            demand=self._demand.totals(fleet) if self._demand.known() else None,
            silent_gateways=self._demand.silent(now),
            queue=self._demand.queue(fleet),
            served=served,
            silent_replicas=self._replicas.silent(fleet, now),
            load=self._replicas.fleet_load(fleet, now),
            steps=steps,
            step_time_ratio=step_time_ratio,
            context_tokens=self._replicas.context_tokens(fleet),
            attained=attained(ttft, tpot, ttft_limit_s=policy.ttft_s, tpot_limit_s=policy.tpot_s),
        )

    def calls(self, fleet: Key) -> tuple[float, int]:
        """Requests that ever arrived for it, as far as is known, and those that wait in the gateways now: a few look-ups, for
        whoever waits for a first one."""
        return self._demand.totals(fleet).arrivals, self._demand.queue(fleet).requests

    def history(self, fleet: Key, now: float) -> list[DemandPoint]:
        """What gateways replayed of the last hour: `scaling.remember(hub.history(fleet, now), now)` is a first state.

        Complete once a sample's `silent_gateways` is 0."""
        return self._demand.history(fleet, now)

    def figures(self, fleet: Key, *, ttft_limit_s: float, tpot_limit_s: float) -> Figures:
        book = self._figures.get(fleet)
        return book.figures(ttft_limit_s, tpot_limit_s) if book else Figures()

    def loads(self) -> Mapping[str, ReplicaLoad | None]:
        """By pod uid; None: unknown."""
        return self._replicas.loads(self._clock())

    def registrations(self) -> Mapping[str, GatewayView | None]:
        """By gateway pod uid; None: unknown."""
        return self._endpoints.views()

    def starts_s(self, fleet: Key) -> Mapping[str, float]:
        """Seconds from process start to Serving, by pod uid. A cold start is longer: it begins when the pod is created."""
        return self._replicas.starts_s(fleet)

    def broken(self) -> Mapping[str, Link]:
        """Streams that are not well, by pod uid, with the reason."""
        return {uid: link for uid, link in self._links.items() if link.why}

    # --- streams -----------------------------------------------------------------------------------------------------

    def _start(self, uid: str, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks[uid] = asyncio.get_running_loop().create_task(coroutine, name=f"telemetry {uid}")

    def _stop(self, uid: str) -> None:
        if task := self._tasks.pop(uid, None):
            task.cancel()
        self._links.pop(uid, None)

    async def _hold_gateway(self, target: GatewayTarget) -> None:
        credential = metadata(gateway_token(self._key) if self._key else None)

        async def attend(channel: grpc.aio.Channel) -> None:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            # One connection, one fate: demand comes every 5 s, so its silence shows that endpoints would not come either.
            async with asyncio.TaskGroup() as both:
                both.create_task(self._watch_demand(target, stub, credential))
                both.create_task(self._watch_endpoints(target, stub, credential))

        await hold(
            target.uid, target.address, _first_error(attend), self._gateway_broken(target), clock=self._clock
        )

    async def _watch_demand(self, target: GatewayTarget, stub: Any, credential: Metadata) -> None:
        incarnation, seq = self._demand.resume_from(target.uid)
        request = gateway_pb2.WatchDemandRequest(incarnation=incarnation, since_seq=seq)
        async for message in listen(stub.WatchDemand(request, metadata=credential), DEMAND_STALE_S):
            self._well(target.uid, target.address)
            self._demand.put(target.uid, message.sample, self._clock())
        raise StreamEndedError("WatchDemand was ended by the gateway")

    async def _watch_endpoints(self, target: GatewayTarget, stub: Any, credential: Metadata) -> None:
        request = gateway_pb2.WatchEndpointsRequest()
        async for message in listen(stub.WatchEndpoints(request, metadata=credential), None):
            if self._endpoints.put(target.uid, message):
                self._changed_gateways.add(target.uid)
                self._tell_in(0.0)
        raise StreamEndedError("WatchEndpoints was ended by the gateway")

    async def _hold_replica(self, target: ReplicaTarget) -> None:
        credential = metadata(replica_token(self._key, target.fleet_uid) if self._key else None)
        request = replica_pb2.WatchLoadRequest(interval_ms=round(self._load_interval_s * 1000))
        silence_s = self._load_interval_s * LOAD_STALE_S / LOAD_INTERVAL_S

        async def attend(channel: grpc.aio.Channel) -> None:
            stub = replica_pb2_grpc.ReplicaServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            async for message in listen(stub.WatchLoad(request, metadata=credential), silence_s):
                self._well(target.uid, target.address)
                if self._replicas.put(target.uid, message.sample, self._clock()):
                    self._load_changed(target.uid)
            raise StreamEndedError("WatchLoad was ended by the replica")

        await hold(target.uid, target.address, attend, self._replica_broken(target), clock=self._clock)

    def _gateway_broken(self, target: GatewayTarget) -> Callable[[str], None]:
        def broken(why: str) -> None:
            self._unwell(target.uid, target.address, why)
            self._endpoints.lost(target.uid)
            self._changed_gateways.add(target.uid)
            self._tell_in(0.0)

        return broken

    def _replica_broken(self, target: ReplicaTarget) -> Callable[[str], None]:
        def broken(why: str) -> None:
            self._unwell(target.uid, target.address, why)
            self._replicas.lost(target.uid)
            self._load_changed(target.uid)

        return broken

    def _well(self, uid: str, address: str) -> None:
        link = self._links.get(uid)
        if link is None or link.why:
            self._links[uid] = Link(uid, address, why="")
            # That a new pod answers is what pods do.
            if link is not None:
                _log.info("telemetry_connected", uid=uid, address=address)

    def _unwell(self, uid: str, address: str, why: str) -> None:
        link = self._links.get(uid)
        if link is None or link.why != why:
            self._links[uid] = Link(uid, address, why)
            _log.warning("telemetry_broken", uid=uid, address=address, why=why)

    # --- telling the core ----------------------------------------------------------------------------------------------

    def _load_changed(self, uid: str) -> None:
        load, told = self._replicas.load(uid, self._clock()), self._told_loads.get(uid)
        self._changed_loads.add(uid)
        urgent = (
            load is None or told is None or load.state != told.state or load.incarnation != told.incarnation
        )
        self._tell_in(0.0 if urgent else UPDATE_INTERVAL_S)

    def _tell_in(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        if self._flush is not None:
            if self._flush_at <= at:
                return
            self._flush.cancel()
        self._flush_at = at
        self._flush = loop.call_later(delay_s, self._tell)

    def _tell(self) -> None:
        self._flush = None
        now = self._clock()
        loads: dict[str, ReplicaLoad | None] = {}
        # Not `&` with all targets: that looks at a thousand of them for each one that changed.
        for uid in self._changed_loads:
            if uid not in self._replica_targets:
                continue
            load = self._replicas.load(uid, now)
            if uid not in self._told_loads or _differs(load, self._told_loads[uid]):
                loads[uid] = self._told_loads[uid] = load
        gateways = {
            uid: self._endpoints.view(uid) for uid in self._changed_gateways if uid in self._gateway_targets
        }
        self._changed_loads.clear()
        self._changed_gateways.clear()
        if loads or gateways:
            self._on_update(TelemetryUpdate(loads=loads, gateways=gateways))


def _first_error(
    attend: Callable[[grpc.aio.Channel], Awaitable[None]],
) -> Callable[[grpc.aio.Channel], Awaitable[None]]:
    """A task group raises a group; who holds the stream wants to know the first thing that went wrong."""

    async def attended(channel: grpc.aio.Channel) -> None:
        try:
            await attend(channel)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    return attended


def _differs(load: ReplicaLoad | None, told: ReplicaLoad | None) -> bool:
    """Age alone is no news, but how long the oldest stream of a drain has been running decides when it ends."""
    if load is None or told is None:
        return load is not told
    if load.state == "DRAINING" and load.oldest_active_s >= told.oldest_active_s + DRAIN_AGE_STEP_S:
        return True
    return replace(load, oldest_active_s=0.0) != replace(told, oldest_active_s=0.0)
