"""What the engine made, on its way to the server: tokens of one answer wait for each other here. Pure; times are arguments.

The first token goes at once. After it, a message costs the server the same whether it carries one token or ten, and messages are what
a busy replica's server spends its processor on: a step of 2 ms with 64 sequences makes 32,000 deltas a second. So the host, which is
the other process, puts them together, and what crosses the socket is one entry a message, with nothing in it that Python has to make.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, Final

from moefleet_runtime.engine.base import TokenDelta

# Tokens of one answer go out together when they come within this time, or as soon as there are so many.
WINDOW_S: Final = 0.020
WINDOW_TOKENS: Final = 32
# A message costs this much of the server's processor time (`server_messages` of make bench); with many streams the window grows so
# that messages take at most half a core: 1000 streams send at most every 100 ms each.
MESSAGE_COST_S: Final = 50e-6
SHARE_OF_CORE: Final = 0.5
# Windows that close so soon after each other, as time or as a part of the window, close together with the first of them: each frame costs
# both processes a wake-up: with ten tokens a message, steps of 2 ms, 88 instead of 82 us of the server a message when it was 1 ms. Not
# more, or answers would gather in few large frames, behind which a first token waits.
SLACK_S: Final = 0.0025
SLACK: Final = 0.03

# The fields of a TokenDelta in their order.
Fields = tuple[Any, ...]


def window_s(streams: int) -> float:
    return max(WINDOW_S, streams * MESSAGE_COST_S / SHARE_OF_CORE)


def slack_s(window_s: float) -> float:
    return max(SLACK_S, SLACK * window_s)


class Windows:
    """Deltas in as steps make them, entries out as they are due; the order within an answer is kept."""

    def __init__(self) -> None:
        # Of answers that have begun and run: when the next message may go.
        self._free_at_s: dict[str, float] = {}
        self._held: dict[str, Fields] = {}
        # A heap of (time, request) for what is held. One that was sent for its length leaves its time behind.
        self._due: list[tuple[float, str]] = []
        self._ready: dict[str, Fields] = {}
        # When the windows of those close that were sent something last.
        self.again_s = 0.0

    @property
    def next_s(self) -> float | None:
        """When `take` has something, as far as is known now; None: nothing is here."""
        if self._ready:
            return 0.0
        return self._due[0][0] if self._due else None

    @property
    def ready(self) -> int:
        """How many entries are to be sent now, at least."""
        return len(self._ready)

    def add(self, deltas: Iterable[TokenDelta], now_s: float) -> None:
        free, held, ready = self._free_at_s, self._held, self._ready
        until_s = now_s + slack_s(window_s(len(free)))
        for delta in deltas:
            name, tokens, _, finish, _, _ = delta
            if name in ready:
                ready[name] = _both(ready[name], delta)
            else:
                before = held.get(name)
                entry: Fields = tuple(delta) if before is None else _both(before, delta)
                free_at_s = free.get(name, 0.0)
                if finish is None and free_at_s > until_s and len(entry[1]) < WINDOW_TOKENS:
                    held[name] = entry
                    if before is None:
                        heapq.heappush(self._due, (free_at_s, name))
                    continue
                held.pop(name, None)
                ready[name] = entry
            if finish is not None:
                free.pop(name, None)
            elif tokens:
                # Its window begins when it is taken.
                free[name] = 0.0

    def take(self, now_s: float, *, everything: bool = False) -> list[Fields]:
        """What is to be sent now; `everything`: held or not."""
        free, held, ready = self._free_at_s, self._held, self._ready
        window = window_s(len(free))
        until_s = now_s + slack_s(window)
        while self._due and (everything or self._due[0][0] <= until_s):
            at_s, name = heapq.heappop(self._due)
            if free.get(name) == at_s and name in held:
                ready[name] = held.pop(name)
        if not ready:
            return []
        self._ready = {}
        again_s = self.again_s = now_s + window
        for name in ready:
            if name in free:
                free[name] = again_s
        return list(ready.values())


def _both(first: Fields, then: Fields) -> Fields:
    """Two entries of one request as one."""
    name, tokens, cached_tokens, _, _, logprobs = first
    _, more, _, finish, error, more_logprobs = then
    # Cached tokens are the first delta's, where they are meaningful.
    return name, tokens + more, cached_tokens, finish, error, logprobs + more_logprobs
