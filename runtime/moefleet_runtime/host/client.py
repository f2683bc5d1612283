"""The server's side of the engine host: spawns it, sends requests, hands out tokens, and notices when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import uuid
from typing import Protocol

from moefleet_runtime.ending import Failure
from moefleet_runtime.engine.base import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSettings,
)
from moefleet_runtime.engine.prefixes import PrefixBook
from moefleet_runtime.host.messages import (
    Abort,
    Deltas,
    Died,
    FrameError,
    FrameReader,
    Load,
    Make,
    NotStarted,
    Prefixes,
    Refused,
    Started,
    Stop,
    Submit,
    ToHost,
    encode,
)
from moefleet_runtime.host.process import DUMP_SIGNAL
from moefleet_runtime.host.reaper import Reaper
from moefleet_runtime.host.stream import FaultKind, StreamFault, TokenStream
from moefleet_runtime.process_tree import HOST_VARIABLE, end_with_variable

# After the socket closed: how long the exit status may take to arrive, so that the message can name the signal.
EXIT_STATUS_WAIT_S = 2.0
# After Stop: how long the engine may take before its process group is killed.
STOP_WAIT_S = 10.0
# After the host: how long processes that it started may take to be gone, wherever they have put themselves.
LEFT_OVER_WAIT_S = 5.0
# A load that the host reports knows what was sent this long before it came: the way through the socket and one look at the engine.
REPORT_LAG_S = 0.1


class Watcher(Protocol):
    """What the server wants to know of its engine. Called in the event loop."""

    def engine_started(self, info: EngineInfo) -> None: ...

    def engine_failed(self, failure: Failure) -> None: ...

    def engine_step_failed(self, message: str) -> None: ...


class EngineClient:
    def __init__(self, watcher: Watcher, *, stall_s: float) -> None:
        self._watcher = watcher
        self._stall_s = stall_s
        self._streams: dict[str, TokenStream] = {}
        # Sent to the host since its last load: when, prompt tokens, answer tokens at most.
        self._unreported: dict[str, tuple[float, int, int]] = {}
        self._transport: asyncio.Transport | None = None
        self._pid = 0
        self._mark = uuid.uuid4().hex
        self._exit: asyncio.Future[int] | None = None
        self._failure: Failure | None = None
        self._stopping = False
        self._heard_at_s = time.monotonic()
        self._worked_at_s = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self.info: EngineInfo | None = None
        self.load = EngineLoad()
        self.prefixes = PrefixBook()

    @property
    def streams(self) -> int:
        return len(self._streams)

    @property
    def unreported_tokens(self) -> tuple[int, int]:
        """Prompt and answer tokens of requests that `load` cannot know of. A host that says nothing would otherwise look
        idle, and whoever sends work where the least is outstanding would send all of it there."""
        mine = [sent for key, sent in self._unreported.items() if key in self._streams]
        return sum(prompt for _, prompt, _ in mine), sum(answer for _, _, answer in mine)

    async def start(self, engine: str, settings: EngineSettings) -> None:
        """Returns when the host process runs; the Watcher hears when the engine in it does."""
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()
        self._exit = exited
        # The pid is known only after the spawn, and the reaper may be faster.
        early: dict[int, int] = {}

        def on_exit(pid: int, status: int) -> None:
            if not self._pid:
                early[pid] = status
            if pid == self._pid and not exited.done():
                exited.set_result(status)

        def reaped(pid: int, status: int) -> None:
            # A child that outlives the loop interests nobody any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_exit, pid, status)

        reaper = Reaper(reaped)
        reaper.start()
        ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        try:
            self._pid = os.posix_spawn(  # noqa: ASYNC221 - a millisecond, before anything is served
                sys.executable,
                [sys.executable, "-m", "moefleet_runtime.host", str(theirs.fileno())],
                {**os.environ, HOST_VARIABLE: self._mark},
                # A session of its own: one kill of the group ends most helpers that an engine starts.
                setsid=True,
            )
        finally:
            theirs.close()
        reaper.expect_child()
        if self._pid in early:
            on_exit(self._pid, early[self._pid])
        ours.setblocking(False)
        transport, _ = await loop.create_unix_connection(lambda: _Wire(self), sock=ours)
        self._transport = transport
        self._send(Make(engine, settings))

    def submit(self, request: EngineRequest) -> TokenStream:
        """The stream ends by a finish or a fault; a dead engine gives a stream that has ended already."""
        stream = TokenStream(request.request_id)
        if self._failure is not None or self.info is None:
            why = self._failure.message if self._failure else "the engine has not started yet"
            stream.end(StreamFault("dead", why))
            return stream
        if not self._streams:
            self._worked_at_s = time.monotonic()
        self._streams[request.request_id] = stream
        self._unreported[request.request_id] = (time.monotonic(), len(request.prompt), request.max_tokens)
        self._send(Submit(request))
        return stream

    def abort(self, stream: TokenStream) -> None:
        """Frees the engine; the stream itself ends at once."""
        if self._streams.pop(stream.request_id, None) is not None:
            self._send(Abort(stream.request_id))
        stream.cancel()

    def check(self, now_s: float) -> None:
        """Call a few times a second. Work in hand and no step finished for `stall_s`: the engine hangs."""
        if self._failure or self._stopping or self.info is None:
            return
        busy = bool(self._streams) or self.load.active + self.load.queued > 0
        silent_s = now_s - self._heard_at_s
        if silent_s > self._stall_s:
            self._ask_where_it_hangs()
            self._fail(
                Failure(
                    "EngineHung",
                    f"the engine host process has said nothing for {silent_s:.1f} s (limit {self._stall_s:g} s)",
                )
            )
        elif busy:
            progress_at_s = max(self.load.progress_at_s, self._worked_at_s)
            if now_s - progress_at_s > self._stall_s:
                self._ask_where_it_hangs()
                self._fail(
                    Failure(
                        "EngineHung",
                        f"no step of the engine has ended for {now_s - progress_at_s:.1f} s with"
                        f" {self.load.active} active and {self.load.queued} waiting requests (limit {self._stall_s:g} s)",
                    )
                )

    async def stop(self) -> None:
        """Ends the host process, kindly first. Idempotent."""
        self._stopping = True
        if self._exit is None:
            return
        # While it loads its main thread reads no commands, and there is nothing to lose.
        if not self._exit.done() and self._failure is None and self.info is not None:
            self._send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._exit), STOP_WAIT_S)
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            # MPI workers have sessions of their own. As PID 1 of a pod our end ends them too, but by hand nothing would.
            await asyncio.to_thread(end_with_variable, HOST_VARIABLE, self._mark, within_s=LEFT_OVER_WAIT_S)
        if self._transport is not None:
            self._transport.close()

    # -- from the wire

    def received(self, message: object) -> None:
        now_s = time.monotonic()
        self._heard_at_s = now_s
        match message:
            case Deltas(batch):
                self._worked_at_s = now_s
                streams = self._streams
                for entry in batch:
                    stream = streams.get(entry[0])
                    if stream is None:
                        continue
                    stream.feed(entry, now_s)
                    if entry[3] is not None:
                        del streams[entry[0]]
            case Load(load):
                failed = load.failed_steps_total > self.load.failed_steps_total
                self.load = load
                self._unreported = {
                    key: sent for key, sent in self._unreported.items() if sent[0] > now_s - REPORT_LAG_S
                }
                if failed:
                    self._watcher.engine_step_failed(f"{load.failed_steps_total} steps have failed so far")
            case Refused(request_id, kind, text, field):
                if refused := self._streams.pop(request_id, None):
                    refused.end(StreamFault(_fault_kind(kind), text, field))
            case Prefixes(changes):
                self.prefixes.apply(changes)
            case Started(info):
                self.info = info
                self.load = EngineLoad(kv_max_tokens=info.kv_max_tokens, progress_at_s=now_s)
                self._watcher.engine_started(info)
            case NotStarted(reason, text):
                self._fail(Failure(reason, text))
            case Died(reason):
                self._fail(Failure("EngineDied", f"the engine ended itself: {reason}"))

    def closed(self, error: str) -> None:
        """The socket closed or spoke nonsense."""
        if self._stopping or self._failure:
            return
        task = asyncio.get_running_loop().create_task(self._mourn(error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _mourn(self, error: str) -> None:
        assert self._exit is not None
        how = error or "its socket closed"
        with contextlib.suppress(TimeoutError):
            how = _how_ended(await asyncio.wait_for(asyncio.shield(self._exit), EXIT_STATUS_WAIT_S))
        self._fail(Failure("EngineDied", f"the engine host process (pid {self._pid}) ended: {how}"))

    def _fail(self, failure: Failure) -> None:
        """Once. Every stream is answered before anybody else hears of it."""
        if self._failure or self._stopping:
            return
        self._failure = failure
        for stream in self._streams.values():
            stream.end(StreamFault("dead", failure.message))
        self._streams.clear()
        self._watcher.engine_failed(failure)

    def _ask_where_it_hangs(self) -> None:
        """For the log: the host writes the stacks of its threads."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, DUMP_SIGNAL)

    def _send(self, message: ToHost) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))


class _Wire(asyncio.Protocol):
    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._reader = FrameReader.of_server()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._client.received(message)
        except FrameError as error:
            self._client.closed(f"it sent {error}")
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.closed(str(error) if error else "")


def _fault_kind(kind: str) -> FaultKind:
    return "full" if kind == "full" else "invalid" if kind == "invalid" else "dead"


def _how_ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    hint = "; out of memory, if nobody sent it" if name == "SIGKILL" else ""
    return f"killed by signal {-status} ({name}{hint})"
