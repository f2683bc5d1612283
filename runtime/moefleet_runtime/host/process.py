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

from moefleet_runtime.engine.base import (
    Engine,
    EngineError,
    EngineFull,
    RequestInvalid,
    StartFailed,
)
from moefleet_runtime.engine.prefixes import ReportsPrefixes
from moefleet_runtime.engine.registry import make_engine
from moefleet_runtime.garbage import settle
from moefleet_runtime.host.messages import (
    Abort,
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
    encode,
)
from moefleet_runtime.host.outbox import Outbox

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


class _Host:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox = Outbox(lambda data: connection.send(data, socket.MSG_DONTWAIT))
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
        settle()
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
            while (taken := self._outbox.take()) is not None:
                rest, messages = taken
                self._connection.sendall(b"".join((rest, *map(encode, messages))))
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
