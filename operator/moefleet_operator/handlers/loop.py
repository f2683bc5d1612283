"""The loop around the core: one event in, its effects into their lanes, their answers back. The core is never called twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import Histogram

from moefleet_operator.core.effects import (
    Effect,
    EmitEvent,
    Exit,
    ReadLease,
    Relist,
    WakeAt,
    WriteLease,
)
from moefleet_operator.core.events import (
    DecisionMade,
    EffectDone,
    Event,
    Key,
    ObjectChanged,
    Ok,
    Outcome,
    Relisted,
    Tick,
    Transient,
)
from moefleet_operator.core.ports import Brain, EffectRunner
from moefleet_operator.kube.clock import Clock
from moefleet_operator.metrics import Metrics

from .inbox import Inbox
from .lanes import Lanes, fleet_of
from .report import Reporter

# The core may not keep the loop (HTTP, Lease, streams) for longer than this without a turn for others.
BUSY_MAX_S: Final = 0.02

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Batch:
    """What one call of the core asked for."""

    began: float
    left: int


class CoreLoop:
    def __init__(
        self,
        *,
        brain: Brain,
        runner: EffectRunner,
        relist: Callable[[], Awaitable[Outcome]],
        inbox: Inbox,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._brain = brain
        self._runner = runner
        self._relist = relist
        self._inbox = inbox
        self._clock = clock
        self._metrics = metrics
        self._reporter = Reporter(metrics)
        # Looking a child up by its labels costs more than to set it, and these are set at every event.
        self._depth = {queue: metrics.queue.labels(queue=queue) for queue in ("inbox", "lanes", "running")}
        self._took: dict[type[Event], Histogram] = {}
        self._lanes: Lanes[tuple[Effect, _Batch]] = Lanes(self._start)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        # When the core last saw an event: it has one at least every 2 s, because of the Lease.
        self.seen_at = clock.now()
        # Grows with everything that may change which pods there are.
        self.sightings = 0
        self._broken: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Until the core asks for the end; its exit code. An error in the core or in an effect ends it, too."""
        self._broken = asyncio.get_running_loop().create_future()
        self._inbox.put(Tick())
        try:
            return await self._run()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> int:
        turn_began = self._clock.now()
        while True:
            if not self._inbox:
                event = await self._next()
                turn_began = self._clock.now()
            else:
                event = self._inbox.get_nowait()
            code = self._feed(event)
            if code is not None:
                return code
            if self._clock.now() - turn_began > BUSY_MAX_S:
                await asyncio.sleep(0)
                turn_began = self._clock.now()

    async def _next(self) -> Event:
        assert self._broken is not None
        getting = asyncio.create_task(self._inbox.get())
        waited: set[asyncio.Future[Any]] = {getting, self._broken}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                # Raises what broke.
                self._broken.result()
            return getting.result()
        finally:
            getting.cancel()

    def _feed(self, event: Event) -> int | None:
        began = self._clock.now()
        effects = self._brain.on(event, began, self._clock.wall())
        ended = self.seen_at = self._clock.now()
        took = self._took.get(type(event))
        if took is None:
            took = self._took[type(event)] = self._metrics.core.labels(event=type(event).__name__)
        took.observe(ended - began)
        self._depth["inbox"].set(len(self._inbox))
        if isinstance(event, ObjectChanged | Relisted):
            self.sightings += 1
        if isinstance(event, DecisionMade):
            self._metrics.scaling.labels(reason=event.reason).inc()
        batch = _Batch(began, sum(1 for effect in effects if _of_a_fleet(effect)))
        code: int | None = None
        for effect in effects:
            match effect:
                case WakeAt():
                    self._wake_at(effect.at)
                case Exit():
                    self._reporter.report(effect, None)
                    code = effect.code
                case ReadLease() | WriteLease():
                    self._spawn(self._run_alone(effect))
                case Relist():
                    self._spawn(self._run_relist(effect))
                case _:
                    self._metrics.decisions.labels(effect=type(effect).__name__, reason=effect.reason).inc()
                    self._lanes.add(fleet_of(effect), (effect, batch))
        self._measure_lanes()
        return code

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, at - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._inbox.put, Tick())

    def _start(self, fleet: Key, job: tuple[Effect, _Batch]) -> None:
        self._spawn(self._run_in_lane(fleet, *job))

    async def _run_alone(self, effect: Effect) -> None:
        self._answer(effect, await self._runner.run(effect))

    async def _run_relist(self, effect: Relist) -> None:
        left_s = effect.not_after - self._clock.now()
        try:
            async with asyncio.timeout(left_s):
                outcome = await self._relist()
        except TimeoutError:
            outcome = Transient(f"not listed within {left_s:.0f} s")
        self._answer(effect, outcome)

    async def _run_in_lane(self, fleet: Key, effect: Effect, batch: _Batch) -> None:
        # Cancelled at the end, or failed (which ends all): then nothing more is started.
        outcome = await self._runner.run(effect)
        self._lanes.ended(fleet)
        self._answer(effect, outcome)
        if not isinstance(effect, EmitEvent):
            batch.left -= 1
            if batch.left == 0:
                self._metrics.reconcile.observe(self._clock.now() - batch.began)
        self._measure_lanes()

    def _answer(self, effect: Effect, outcome: Outcome) -> None:
        self._reporter.report(effect, outcome)
        if isinstance(effect, WriteLease) and isinstance(outcome, Ok) and effect.intent != "release":
            self._metrics.lease_renewed.set(self._clock.wall())
        self._inbox.put(EffectDone(effect.id, outcome))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # The runner answers for everything that the world does; what it raises is our bug, and the core would wait for ever.
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _measure_lanes(self) -> None:
        self._depth["lanes"].set(self._lanes.waiting)
        self._depth["running"].set(self._lanes.running)


def _of_a_fleet(effect: Effect) -> bool:
    return not isinstance(effect, WakeAt | Exit | ReadLease | Relist | WriteLease | EmitEvent)
