"""kopf, for watching only: its own registry, no posting, no peering, no finalizers; each handler hands over one event.

It runs in a thread with an event loop of its own: kopf cancels every task that was created after it in its loop, and the
renewal of the Lease should not wait for the parsing of a thousand pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import kopf
import uvloop

from moefleet_operator.core.events import ObjectChanged
from moefleet_operator.kube.connect import Credentials
from moefleet_operator.kube.limits import CONNECT_TIMEOUT_S
from moefleet_operator.kube.reads import slim
from moefleet_operator.kube.resources import key_of

from .scope import CLUSTER, Watch
from .shortcut import ForwardingRegistry, install
from .unstored import NoDiffBase, NoProgress

# The server ends each watch after this long, so that a connection that died quietly is replaced.
WATCH_SERVER_TIMEOUT_S: Final = 300
# A little more: the server's end comes first, and is not an error.
WATCH_CLIENT_TIMEOUT_S: Final = 330
# Bookmarks come every 60 s; kopf starts anew after this long without any event or bookmark.
WATCH_INACTIVITY_S: Final = 70
WATCH_PAGE_OBJECTS: Final = 100
# After an API server that was away: tried soon, and then every 5 s, because a fleet should not wait 20 s for its operator.
# After the last one kopf gives a watch up; then we end and are started anew.
WATCH_BACKOFFS_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, *(5.0,) * 60)
# How often it is looked at whether all watches live. kopf itself does not notice when one of them has failed.
LOOK_EVERY_S: Final = 1.0
# Until they have begun, because readiness waits for it.
LOOK_FIRST_S: Final = 0.1
# Discovery asks for a page for each API group.
BEGIN_MAX_S: Final = 60.0
# Sync handlers do not exist here, so kopf's thread pool stays empty.
KOPF_WORKERS: Final = 1
# kopf ends its watches in about a second; the process does not wait for more.
STOP_TIMEOUT_S: Final = 3.0

Login = Callable[[], Awaitable[Credentials]]
Emit = Callable[[ObjectChanged], None]


class WatchThread:
    """Starts kopf and says, as a future of the caller's loop, when it has ended: it never should before `stop`."""

    def __init__(self, watches: Sequence[Watch], login: Login, emit: Emit) -> None:
        self._operators = [(_registry(group, login, emit), group) for group in _groups(watches)]
        self._home = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._home.create_future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._asked_to_stop = False
        # Watches that kopf has not begun yet; written in its thread.
        self.to_begin = sum(len(watch.namespaces) for _, group in self._operators for watch in _once(group))
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._asked_to_stop = True
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            # The loop may have closed meanwhile: then there is nothing left to stop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        await asyncio.wait({self.ended}, timeout=STOP_TIMEOUT_S)

    def _run(self) -> None:
        problem: BaseException | None = None
        try:
            uvloop.run(self._watch())
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):
            self._home.call_soon_threadsafe(self._tell, problem)

    async def _watch(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._asked_to_stop:
            return
        looking = asyncio.create_task(self._look())
        runs = [
            asyncio.create_task(
                kopf.operator(
                    registry=registry,
                    settings=_settings(group),
                    clusterwide=_where(group) == (CLUSTER,),
                    namespaces=[name for name in _where(group) if name != CLUSTER],
                    standalone=True,
                    stop_flag=self._stop,
                )
            )
            for registry, group in self._operators
        ]
        await asyncio.wait([looking, *runs], return_when=asyncio.FIRST_COMPLETED)
        # One that ends takes the others along: half of the watches is worse than none.
        self._stop.set()
        looking.cancel()
        results = await asyncio.gather(looking, *runs, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _look(self) -> None:
        """Raises when a watch has ended, or does not begin."""
        loop = asyncio.get_running_loop()
        wanted = self.to_begin
        begin_by = loop.time() + BEGIN_MAX_S
        seen: set[asyncio.Task[Any]] = set()
        while True:
            seen |= {task for task in asyncio.all_tasks() if task.get_name().startswith("watcher for ")}
            ended = sorted(task.get_name().removeprefix("watcher for ") for task in seen if task.done())
            if ended:
                raise RuntimeError(f"{len(ended)} of {wanted} watches ended: {', '.join(ended)}")
            self.to_begin = max(0, wanted - len(seen))
            if self.to_begin and loop.time() > begin_by:
                raise RuntimeError(f"{self.to_begin} of {wanted} watches did not begin")
            await asyncio.sleep(LOOK_FIRST_S if self.to_begin else LOOK_EVERY_S)

    def _tell(self, problem: BaseException | None) -> None:
        if self.ended.done():
            return
        if problem is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(RuntimeError(f"watching ended: {type(problem).__name__}: {problem}"))


def _once(group: Sequence[Watch]) -> list[Watch]:
    """kopf has one task for a resource and namespace, however many handlers."""
    return list({(watch.resource, watch.namespaces): watch for watch in group}.values())


def _groups(watches: Sequence[Watch]) -> list[list[Watch]]:
    """kopf has one set of namespaces and one selector for each resource: gateway pods need an operator of their own."""
    main = [watch for watch in watches if watch.kind != "GatewayPod"]
    gateway = [watch for watch in watches if watch.kind == "GatewayPod"]
    return [group for group in (main, gateway) if group]


def _where(group: Sequence[Watch]) -> tuple[str, ...]:
    """The namespaces of a group; nodes have none and do not count."""
    return next((watch.namespaces for watch in group if watch.resource.namespaced), (CLUSTER,))


def _registry(watches: Sequence[Watch], login: Login, emit: Emit) -> kopf.OperatorRegistry:
    registry = ForwardingRegistry()
    install()

    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        found = await login()
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_path,
            insecure=not found.verify,
            scheme=found.scheme,
            token=found.token,
            certificate_path=found.certificate_path,
            private_key_path=found.key_path,
            proxy_url=found.proxy_url,
        )

    kopf.on.login(registry=registry, id="login")(log_in)
    for watch in watches:
        resource = watch.resource
        registry.forwards.setdefault((resource.group, resource.version, resource.plural), []).append(
            _forward(watch, emit)
        )
        # Also where events take the short way: this is what makes kopf watch the kind.
        kopf.on.event(
            resource.group, resource.version, resource.plural, registry=registry, id=f"watch-{watch.kind}"
        )(_handler(watch, emit))
    return registry


def _handler(watch: Watch, emit: Emit) -> Callable[..., Awaitable[None]]:
    forward = _forward(watch, emit)

    async def handle(event: Any, **_: Any) -> None:
        forward(event)

    return handle


def _forward(watch: Watch, emit: Emit) -> Callable[[Any], None]:
    def forward(event: Any) -> None:
        raw = event["object"]
        if event["type"] == "DELETED":
            uid = str(raw["metadata"].get("uid") or "")
            emit(ObjectChanged(watch.kind, key_of(raw), None, uid))
        else:
            emit(ObjectChanged(watch.kind, key_of(raw), slim(dict(raw))))

    return forward


def _settings(watches: Sequence[Watch]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # No list of CRDs or namespaces is needed: kinds and namespaces are known.
    settings.scanning.disabled = True
    settings.networking.enforce_retry_after = True
    settings.networking.error_backoffs = WATCH_BACKOFFS_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.server_timeout = WATCH_SERVER_TIMEOUT_S
    settings.watching.client_timeout = WATCH_CLIENT_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.inactivity_timeout = WATCH_INACTIVITY_S
    settings.watching.chunk_size = WATCH_PAGE_OBJECTS
    # Never written, because no handler needs one; if that ever changed, it should carry our name.
    settings.persistence.finalizer = "moefleet.io/operator"
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.execution.max_workers = KOPF_WORKERS
    for watch in watches:
        if watch.label_selector:
            resource = watch.resource
            selector = (resource.group, resource.version, resource.plural)
            settings.watching.label_selectors[selector] = watch.label_selector
    return settings


class _FirstAttemptOnly(logging.Filter):
    """kopf tells of each attempt of each watch; that an API server is away is news once."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not text.startswith("Request attempt #") or text.startswith("Request attempt #1/")


def quieten() -> None:
    """kopf tells of every handler call; ours say nothing, so only its problems are news."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that signals are not its business in a thread, which is the point.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_FirstAttemptOnly())
