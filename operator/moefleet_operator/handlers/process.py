"""The whole operator: connect, look at our rights, list, watch, feed the core, listen, serve HTTP, and end with a code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import structlog

from moefleet_operator.core.events import ESSENTIAL, Event, Key, ObjectChanged, Stop
from moefleet_operator.core.ports import Brain, View
from moefleet_operator.core.settings import CoreSettings
from moefleet_operator.kube.client import AioTransport
from moefleet_operator.kube.clock import DatedClock
from moefleet_operator.kube.connect import connect, credentials
from moefleet_operator.kube.limits import LEASE_CONNECTIONS, READ_CONNECTIONS, WRITE_CONNECTIONS
from moefleet_operator.kube.replicas import GrpcReplicas
from moefleet_operator.kube.runner import KubeRunner
from moefleet_operator.metrics import Metrics
from moefleet_operator.settings import Settings
from moefleet_operator.telemetry import TelemetryHub

from .audit import WatchAudit, version_of
from .inbox import Inbox
from .keeping import StateKeeper
from .loop import CoreLoop
from .resync import Resync
from .scope import Scope
from .sizing import Sizing
from .startup import ToldToEnd, core_settings, plan_scope, rights_changed, unless
from .watching import WatchThread
from .web import serve

# The Lease machine acts every 2 s, so a core that saw nothing for this long is stuck.
CORE_SILENT_MAX_S: Final = 30.0
# From SIGTERM to Exit. The core gives effects under way 5 s and the Lease 5 s more; kubelet gives 30 s.
STOP_MAX_S: Final = 15.0
# How often gauges are brought up to date.
MEASURE_EVERY_S: Final = 1.0

log = structlog.get_logger("moefleet_operator")


class Core(Brain, View, Protocol):
    """What the process needs of the core."""


class Operator:
    """One process. `run` returns its exit code: 0 after SIGTERM, 1 when anything ended that should not."""

    def __init__(
        self, settings: Settings, make_core: Callable[[CoreSettings], Core], clock: DatedClock
    ) -> None:
        self._settings = settings
        self._make_core = make_core
        self._clock = clock
        self._metrics = Metrics()
        self._inbox = Inbox()
        self._audit = WatchAudit(by_namespace=bool(settings.watch_namespaces))
        self._loop: CoreLoop | None = None
        self._synced = False
        self._watching: WatchThread | None = None
        # What a person would have to do before we can begin.
        self._waits_for = ""

    async def run(self) -> int:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        settings = self._settings
        async with contextlib.AsyncExitStack() as open_things:
            web, port = await serve(
                settings.metrics_host,
                settings.metrics_port,
                metrics=self._metrics,
                alive=self.wrong,
                ready=self.not_ready,
            )
            open_things.push_async_callback(web.cleanup)
            log.info("Started", identity=settings.pod_name, namespace=settings.namespace, port=port)
            configuration = await connect(settings.kubeconfig)
            writes, reads, lease = (
                AioTransport(configuration, connections, self._clock)
                for connections in (WRITE_CONNECTIONS, READ_CONNECTIONS, LEASE_CONNECTIONS)
            )
            for transport in (writes, reads, lease):
                open_things.push_async_callback(transport.close)
            runner = KubeRunner(
                writes=writes,
                lease=lease,
                replicas=GrpcReplicas(),
                clock=self._clock,
                instance=settings.pod_name,
            )

            def waiting(problem: str) -> None:
                self._waits_for = problem

            try:
                scope = await unless(told, plan_scope(settings, reads, self._clock, self._metrics, waiting))
                resync = Resync(
                    scope=scope,
                    transport=reads,
                    clock=self._clock,
                    emit=self._inbox.put,
                    metrics=self._metrics,
                    audit=self._audit,
                )
                # kopf looks for kinds only once, so the CRD has to be there before it starts.
                await unless(told, resync.first())
            except ToldToEnd:
                return 0
            watching = self._watching = self._watch(scope, lambda: credentials(configuration))
            watching.start()
            open_things.push_async_callback(watching.stop)
            self._synced = True
            core = self._make_core(core_settings(settings, scope))
            hub = TelemetryHub(settings.control_key, self._inbox.put, self._clock.wall)
            loop = self._loop = CoreLoop(
                brain=core,
                runner=runner,
                relist=resync.again,
                inbox=self._inbox,
                clock=self._clock,
                metrics=self._metrics,
            )
            keeper = StateKeeper(reads, self._clock)
            sizing = Sizing(
                view=core,
                hub=hub,
                emit=self._inbox.put,
                clock=self._clock,
                metrics=self._metrics,
                sightings=lambda: loop.sightings,
                keeper=keeper,
            )
            parts = {
                "keeping": keeper.run(),
                "resync": resync.run(),
                "measuring": self._measure(scope, core),
                "telemetry": hub.run(),
                "scaling": sizing.run(),
                "rights": rights_changed(
                    settings, reads, self._clock, self._metrics, scope, refused=resync.forbidden
                ),
            }
            return await until_the_end(loop.run(), watching.ended, told, self._inbox.put, parts)

    def wrong(self) -> list[str]:
        """Why this process should be started anew; nothing when all is well."""
        now, problems = self._clock.now(), []
        if self._loop is not None and now - self._loop.seen_at > CORE_SILENT_MAX_S:
            problems.append(f"the core has seen nothing for {now - self._loop.seen_at:.0f} s")
        dead = self._audit.dead(now)
        return [*problems, dead] if dead else problems

    def not_ready(self) -> list[str]:
        """What is missing before we may be relied upon: everything listed, every watch begun, and what matters heard of."""
        if not self._synced or self._watching is None:
            return [self._waits_for or "the first LISTs are not complete"]
        if self._watching.to_begin:
            return [f"{self._watching.to_begin} watches have not begun"]
        return [
            f"the watch of {kind} has brought nothing yet" for kind in ESSENTIAL if self._audit.silent(kind)
        ]

    def _watch(self, scope: Scope, login: Any) -> WatchThread:
        home = asyncio.get_running_loop()
        coming: deque[ObjectChanged] = deque()

        def emit(event: ObjectChanged) -> None:
            # In kopf's thread. Waking our loop is a system call, so events that come meanwhile go along.
            coming.append(event)
            if len(coming) == 1:
                # When our loop has closed, nobody wants events any more.
                with contextlib.suppress(RuntimeError):
                    home.call_soon_threadsafe(deliver)

        def deliver() -> None:
            # What is appended while one is left is taken here; what is appended to an empty one wakes us again.
            taken = []
            while coming:
                taken.append(coming.popleft())
            for event in taken:
                self._deliver(event)

        return WatchThread(scope.watches, login, emit)

    def _deliver(self, event: ObjectChanged) -> None:
        version = version_of(event.object) if event.object is not None else None
        self._audit.delivered(event.kind, event.key, version)
        self._metrics.watch_event.labels(kind=event.kind).set(self._clock.wall())
        self._inbox.put(event)

    async def _measure(self, scope: Scope, view: View) -> None:
        said: dict[Key, str] = {}
        while True:
            now = self._clock.now()
            self._metrics.clock_ahead.set(self._clock.ahead_s())
            self._metrics.leader.set(1 if view.leading(now) else 0)
            for watch in scope.watches:
                self._metrics.watch_behind.labels(kind=watch.kind).set(self._audit.behind_s(watch.kind, now))
            errors = dict(view.errors)
            self._metrics.failing.set(len(errors))
            for fleet, error in errors.items():
                if said.get(fleet) != error:
                    log.error("InternalError", fleet=str(fleet), message=error)
            said = errors
            await self._clock.sleep(MEASURE_EVERY_S)


async def until_the_end(
    core: Coroutine[Any, Any, int],
    watching: asyncio.Future[None],
    told: asyncio.Event,
    put: Callable[[Event], None],
    others: Mapping[str, Coroutine[Any, Any, None]],
) -> int:
    """Whatever of these ends first ends the process: a half-dead operator would hold the Lease and do nothing."""
    leading = asyncio.create_task(core, name="core")
    parts: dict[str, asyncio.Future[Any]] = {"core": leading, "watching": watching}
    parts |= {name: asyncio.create_task(work, name=name) for name, work in others.items()}
    waiting: asyncio.Future[Any] = asyncio.create_task(told.wait(), name="SIGTERM")
    try:
        await asyncio.wait({waiting, *parts.values()}, return_when=asyncio.FIRST_COMPLETED)
        ended = [name for name, part in parts.items() if part.done() and part is not leading]
        for name in ended:
            log.error("Ended", part=name, exc_info=parts[name].exception())
        if not leading.done():
            log.info("Stopping", message="finishing what is under way and giving the Lease back")
            put(Stop())
            await asyncio.wait({leading}, timeout=STOP_MAX_S)
        if not leading.done():
            log.error("Ended", part="core", message=f"it did not end within {STOP_MAX_S:g} s")
            return 1
        if (error := leading.exception()) is not None:
            log.error("Ended", part="core", exc_info=error)
            return 1
        return 1 if ended else leading.result()
    finally:
        mine = [waiting, *(part for name, part in parts.items() if name != "watching")]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
