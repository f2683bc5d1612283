"""What the engine host has for the server: filled by the engine and by whoever has something to say, emptied by the writer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from moefleet_runtime.engine.base import TokenDelta
from moefleet_runtime.host.batches import Windows
from moefleet_runtime.host.messages import Deltas, Died, ToServer, encode

# Deltas in the outbox before the engine's sink blocks: a step of the largest batch, a few times over.
MAX_DELTAS: Final = 65536
# What is due with a step goes out in the engine's own thread up to so many entries: a first token then waits for no other thread. More
# of them would cost the engine more time than waking the writer does.
MAX_DIRECT_ENTRIES: Final = 32


class Outbox:
    """The engine's Sink, and the queue behind it. The writer is woken for what is to be sent and not at every step: it would take
    the interpreter from the engine each time, about a tenth of the tokens/s of a small model.

    `send`: sends at once what there is room for, and says how many bytes that was. Called while the writer waits."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self._send = send
        self._change = threading.Condition()
        # Of what was sent without the writer: what there was no room for.
        self._rest = b""
        self._windows = Windows()
        # Deltas that came since the writer last took something.
        self._unsent = 0
        self._messages: deque[ToServer] = deque()
        self._closed = False
        # When the writer looks by itself; 0: it is not waiting.
        self._look_s = 0.0

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        with self._change:
            while self._unsent >= MAX_DELTAS and not self._closed:
                self._change.wait()
            self._unsent += len(batch)
            now_s = time.monotonic()
            self._windows.add(batch, now_s)
            next_s = self._windows.next_s
            if next_s is None or next_s >= self._look_s:
                return
            if not self._rest and 0 < self._windows.ready <= MAX_DIRECT_ENTRIES:
                self._send_now(now_s)
            else:
                self._change.notify_all()

    def _send_now(self, now_s: float) -> None:
        data = encode(Deltas(self._windows.take(now_s)))
        self._unsent = 0
        try:
            sent = self._send(data)
        except OSError:
            # No room, or nobody there: the writer finds out.
            sent = 0
        self._rest = data[sent:]
        if self._rest:
            self._change.notify_all()

    @property
    def writer_waits(self) -> bool:
        with self._change:
            return self._look_s > 0

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

    def take(self) -> tuple[bytes, list[ToServer]] | None:
        """Waits for something; None when closed and empty. Deltas go first: a refusal or a death comes after them. Before all
        messages go bytes, the rest of one that has been sent in part."""
        with self._change:
            while True:
                now_s = time.monotonic()
                messages = list(self._messages)
                last = self._closed or any(isinstance(message, Died) for message in messages)
                batch = self._windows.take(now_s, everything=last)
                if batch or messages or self._rest or self._closed:
                    break
                # What comes for those who were just sent something waits until then, and needs no word about it.
                next_s, again_s = self._windows.next_s, self._windows.again_s
                self._look_s = min(inf if next_s is None else next_s, again_s if again_s > now_s else inf)
                self._change.wait(None if self._look_s == inf else max(self._look_s - now_s, 0.0))
                self._look_s = 0.0
            self._messages.clear()
            self._unsent = 0
            rest, self._rest = self._rest, b""
            self._change.notify_all()
        if not (batch or messages or rest):
            return None
        return rest, [Deltas(batch), *messages] if batch else messages
