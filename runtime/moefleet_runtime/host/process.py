"""The engine host process: makes the engine, carries messages, and ends when the server does.

Three threads besides the engine's own: the main thread makes the engine and then reads commands, the writer sends what
the engine made, the reporter says how it goes. The outbox is bounded: an engine that is faster than the socket waits in
its sink, and takes memory from nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from math import inf

from moefleet_runtime.engine.base import (
    Engine,
    EngineError,
    EngineFull,
    RequestInvalid,
    StartFailed,
    TokenDelta,
)
from moefleet_runtime.engine.prefixes import ReportsPrefixes
from moefleet_runtime.engine.registry import make_engine
from moefleet_runtime.host.batches import Windows
from moefleet_runtime.host.messages import (
    Abort,
    Deltas,
    Died,
    FrameReader,
    Load,
    Make,
    NotStarted,
    Prefixes,
    Refused,
    Started,
    Stop,
    Submit,
    ToServer,
    encode,
)

# Deltas in the outbox before the engine's sink blocks: a step of the largest batch, a few times over.
MAX_OUTBOX_DELTAS = 65536
# How often the load is looked at; sent when it changed, and at least each HEARTBEAT_S.
REPORT_S = 0.1
HEARTBEAT_S = 1.0
READ_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1
# Writes the stack of every thread to standard error.
DUMP_SIGNAL = signal.SIGUSR1


def run(fd: int) -> int:
    """Returns the exit status. `fd` is the host's end of the socketpair."""
    _die_with_parent()
    # The terminal's Ctrl-C and a signal to the group are for the server, which tells us what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Before the server ends an engine that hangs it asks where.
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    connection = socket.socket(fileno=fd)
    return _Host(connection).run()


def _die_with_parent() -> None:
    """A server that was killed cannot tell us to stop, and an engine nobody talks to holds the GPUs."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Outbox:
    """The engine's Sink, and the queue behind it. The writer is woken for what is to be sent and not at every step: it would take
    the interpreter from the engine each time, about a tenth of the tokens/s of a small model."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._windows = Windows()
        # Deltas that came since the writer last took something.
        self._unsent = 0
        self._messages: deque[ToServer] = deque()
        self._closed = False
        # When the writer looks by itself; 0: it is not waiting.
        self._look_s = 0.0

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        with self._change:
            while self._unsent >= MAX_OUTBOX_DELTAS and not self._closed:
                self._change.wait()
            self._unsent += len(batch)
            self._windows.add(batch, time.monotonic())
            next_s = self._windows.next_s
            if next_s is not None and next_s < self._look_s:
                self._change.notify_all()

    def died(self, reason: str) -> None:
        self.put(Died(reason))

    def put(self, message: ToServer) -> None:
        with self._change:
            self._messages.append(message)
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()

    def take(self) -> list[ToServer] | None:
        """Waits for something; None when closed and empty. Deltas go first: a refusal or a death comes after them."""
        with self._change:
            while True:
                now_s = time.monotonic()
                messages = list(self._messages)
                last = self._closed or any(isinstance(message, Died) for message in messages)
                batch = self._windows.take(now_s, everything=last)
                if batch or messages or self._closed:
                    break
                # What comes for those who were just sent something waits until then, and needs no word about it.
                next_s, again_s = self._windows.next_s, self._windows.again_s
                self._look_s = min(inf if next_s is None else next_s, again_s if again_s > now_s else inf)
                self._change.wait(None if self._look_s == inf else max(self._look_s - now_s, 0.0))
                self._look_s = 0.0
            self._messages.clear()
            self._unsent = 0
            self._change.notify_all()
        if not (batch or messages):
            return None
        return [Deltas(batch), *messages] if batch else messages


class _Host:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox = _Outbox()
        self._engine: Engine | None = None
        self._over = threading.Event()

    def run(self) -> int:
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        writer.start()
        reporter = threading.Thread(target=self._report, name="reporter", daemon=True)
        reader = FrameReader.of_host()
        status = 0
        try:
            while data := self._connection.recv(READ_BYTES):
                for message in reader.feed(data):
                    match message:
                        case Make():
                            if not self._make(message):
                                return 1
                            reporter.start()
                        case Stop():
                            return status
                        case Submit() | Abort():
                            self._command(message)
        except OSError:
            # The server is gone; so are we.
            status = 1
        finally:
            self._over.set()
            if self._engine is not None:
                self._engine.stop()
            self._outbox.close()
            writer.join(timeout=5)
        return status

    def _make(self, message: Make) -> bool:
        try:
            engine = make_engine(message.engine, message.settings)
            info = engine.start(self._outbox)
        except StartFailed as error:
            self._outbox.put(NotStarted(error.reason, error.message))
            return False
        except MemoryError as error:
            self._outbox.put(NotStarted("OutOfMemory", f"the engine does not fit into memory: {error}"))
            return False
        except Exception as error:
            # Whatever a checkpoint or a library does on start has to reach a person as a sentence.
            self._outbox.put(NotStarted("EngineStartFailed", f"{type(error).__name__}: {error}"))
            return False
        self._engine = engine
        self._outbox.put(Started(info))
        return True

    def _command(self, message: Submit | Abort) -> None:
        engine = self._engine
        if engine is None:
            return
        if isinstance(message, Abort):
            engine.abort(message.request_id)
            return
        request_id = message.request.request_id
        try:
            engine.submit(message.request)
        except EngineFull as error:
            self._outbox.put(Refused(request_id, "full", str(error)))
        except RequestInvalid as error:
            self._outbox.put(Refused(request_id, "invalid", str(error), error.field))
        except EngineError as error:
            self._outbox.put(Refused(request_id, "dead", str(error)))

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (messages := self._outbox.take()) is not None:
                self._connection.sendall(b"".join(encode(message) for message in messages))
                if any(isinstance(message, Died) for message in messages):
                    os._exit(1)
        if not self._over.is_set():
            # The server does not read any more: nothing this process does can reach anybody.
            os._exit(1)

    def _report(self) -> None:
        last: object = None
        sent_at = 0.0
        said_prefixes = False
        while not self._over.wait(REPORT_S):
            engine = self._engine
            if engine is None:
                return
            load = engine.load()
            now = time.monotonic()
            if load != last or now - sent_at >= HEARTBEAT_S:
                self._outbox.put(Load(load))
                last, sent_at = load, now
            if isinstance(engine, ReportsPrefixes):
                changes = engine.prefix_changes()
                if changes is not None and (changes or not said_prefixes):
                    said_prefixes = True
                    self._outbox.put(Prefixes(changes))
