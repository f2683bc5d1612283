"""The keyed work queue: a key is in it once, runs once at a time, backs off alone and comes back every minute."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from .ports import Jitter

# First wait after a failure: a conflict is usually over by then.
BACKOFF_FIRST_S = 0.1
# Longest wait: somebody who has just fixed the cause should not wait longer than a minute.
BACKOFF_MAX_S = 60.0
# Every key comes back even if no event named it: what a watch lost is found within about a minute.
RESYNC_S = 60.0
# Share of the resync period that is drawn, so that fleets created together do not stay together.
RESYNC_JITTER = 0.2

K = TypeVar("K", bound=Hashable)


class Backoff(Generic[K]):
    """When a key that failed may be tried again: 0.1 s doubling to 60 s, with up to 10 % drawn on top."""

    def __init__(
        self, jitter: Jitter, first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S
    ) -> None:
        self._jitter = jitter
        self._first_s = first_s
        self._max_s = max_s
        self._failures: dict[K, tuple[int, float]] = {}

    def failed(self, key: K, now: float, at_least_s: float = 0.0) -> float:
        """Count a failure; the time before which the key should not be tried again."""
        count = self._failures.get(key, (0, 0.0))[0] + 1
        # 2**n of a large n overflows nothing in Python but is pointless past the cap.
        wait_s = min(self._max_s, self._first_s * float(2 ** min(count - 1, 20)))
        until = now + max(wait_s, at_least_s) * (1.0 + self._jitter.uniform(0.0, 0.1))
        self._failures[key] = (count, until)
        return until

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    def until(self, key: K) -> float:
        """Blocked before this time; 0 when it never failed."""
        return self._failures.get(key, (0, 0.0))[1]

    def forget(self, now: float, older_than_s: float) -> None:
        """Drop what nobody tried again: the object it was about is gone."""
        stale = [k for k, (_, until) in self._failures.items() if until + older_than_s < now]
        for key in stale:
            del self._failures[key]

    def __len__(self) -> int:
        return len(self._failures)


class WorkQueue(Generic[K]):
    def __init__(self, jitter: Jitter, resync_s: float = RESYNC_S) -> None:
        self._jitter = jitter
        self._resync_s = resync_s
        self._backoff: Backoff[K] = Backoff(jitter)
        self._due: dict[K, float] = {}
        # Lazily cleaned: an entry counts only if it is still the key's time in `_due`.
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0
        self._running: set[K] = set()
        # What came in while the key was running: when it wants to run again.
        self._again: dict[K, float] = {}

    def add(self, key: K, at: float) -> None:
        """Run this key at `at` (now or later); the earliest wish counts. Waits for the end of a run in progress."""
        if key in self._running:
            self._again[key] = min(at, self._again.get(key, at))
            return
        at = max(at, self._backoff.until(key))
        if at < self._due.get(key, float("inf")):
            self._push(key, at)

    def pop(self, now: float) -> K | None:
        """The next key whose time has come; it is running from here until `done` or `failed`."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._due.get(key) != at:
                continue
            del self._due[key]
            self._running.add(key)
            return key
        return None

    def done(self, key: K, now: float) -> None:
        self._backoff.succeeded(key)
        spread_s = self._resync_s * RESYNC_JITTER
        self._end(key, now + self._resync_s + self._jitter.uniform(-spread_s, spread_s), now)

    def failed(self, key: K, now: float, at_least_s: float = 0.0) -> None:
        until = self._backoff.failed(key, now, at_least_s)
        self._end(key, until, until)

    def forget(self, key: K) -> None:
        """The object is gone: no resync, no backoff."""
        self._due.pop(key, None)
        self._again.pop(key, None)
        self._running.discard(key)
        self._backoff.succeeded(key)

    def running(self, key: K) -> bool:
        return key in self._running

    def next_at(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._due) + len(self._running)

    def _end(self, key: K, at: float, earliest: float) -> None:
        self._running.discard(key)
        again = self._again.pop(key, None)
        self._push(key, at if again is None else max(earliest, min(at, again)))

    def _push(self, key: K, at: float) -> None:
        self._due[key] = at
        # The serial keeps equal times in order of arrival and keys out of the comparison.
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, key))
