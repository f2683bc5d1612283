"""Which prefixes an engine has in its cache, from the engine that knows to the picker that chooses by it.

    engine: PrefixLog -> host process: PrefixChanges, a few times a second -> server: PrefixBook -> each WatchLoad stream

Prefixes are hashes of `moefleet_perf.prefixes.token_marks`. Understating is safe everywhere here, and memory is bounded: what
does not fit is not told.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, runtime_checkable

# Of one replica, the last used: beginnings that many prompts share stay, whatever the cache holds besides. At 15 hashes a prompt of
# 1,000 tokens that is 2,000 prompts; 256 KiB and 30 ms of a picker when all are sent at once.
MAX_HELD: Final = 32768
# Changes that a slow reader may be behind before it gets everything anew.
MAX_LOG: Final = 8192


@dataclass(frozen=True, slots=True)
class PrefixChanges:
    """`reset`: what was told before is void. Nothing is both stored and removed."""

    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    reset: bool = False

    def __bool__(self) -> bool:
        return bool(self.stored or self.removed or self.reset)


@runtime_checkable
class ReportsPrefixes(Protocol):
    """An engine that knows what is in its cache."""

    def prefix_changes(self) -> PrefixChanges | None:
        """Since the last call; None: as it is set up it does not know. Any thread; never waits for a step."""
        ...


class PrefixLog:
    """The engine's side. Any thread."""

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._lock = threading.Lock()
        # Longest unused first.
        self._held: dict[int, None] = {}
        # What has changed since the last drain: stored (True) or removed.
        self._pending: dict[int, bool] = {}
        self._reset = False

    def stored(self, marks: Iterable[int]) -> None:
        """Came into the cache, or was found there: what is used is kept when there is too much to tell."""
        held = self._held
        with self._lock:
            for mark in marks:
                if mark in held:
                    del held[mark]
                else:
                    self._pending[mark] = True
                held[mark] = None
            while len(held) > self._max_held:
                oldest = next(iter(held))
                del held[oldest]
                self._pending[oldest] = False

    def removed(self, marks: Iterable[int]) -> None:
        with self._lock:
            for mark in marks:
                if mark in self._held:
                    del self._held[mark]
                    self._pending[mark] = False

    def clear(self) -> None:
        """Nothing that was known is certain any more."""
        with self._lock:
            self._held.clear()
            self._pending.clear()
            self._reset = True

    def drain(self) -> PrefixChanges:
        with self._lock:
            pending, self._pending = self._pending, {}
            reset, self._reset = self._reset, False
        return _changes(pending, reset)


class PrefixBook:
    """The server's side: what is held now, and what changed of late. One thread."""

    def __init__(self, max_log: int = MAX_LOG) -> None:
        # The engine reports at all: without it nothing is told, and nobody takes silence for an empty cache.
        self.reports = False
        self._held: dict[int, None] = {}
        self._log: deque[tuple[int, bool]] = deque(maxlen=max_log)
        # Number of the change after the newest.
        self._next = 0

    def apply(self, changes: PrefixChanges) -> None:
        self.reports = True
        if changes.reset:
            self._held.clear()
            # Whoever reads gets everything anew.
            self._log.clear()
            self._next += 1
        for mark in changes.stored:
            self._held[mark] = None
            self._append(mark, True)
        for mark in changes.removed:
            if mark in self._held:
                del self._held[mark]
                self._append(mark, False)

    def since(self, cursor: int | None) -> tuple[int, PrefixChanges]:
        """What a reader lacks that read up to `cursor` (None: nothing yet), and its new cursor."""
        first = self._next - len(self._log)
        if cursor is None or cursor < first:
            return self._next, PrefixChanges(tuple(self._held), (), True)
        return self._next, _changes(dict(islice(self._log, cursor - first, None)), False)

    def _append(self, mark: int, stored: bool) -> None:
        self._log.append((mark, stored))
        self._next += 1


def _changes(latest: dict[int, bool], reset: bool) -> PrefixChanges:
    return PrefixChanges(
        tuple(mark for mark, stored in latest.items() if stored),
        tuple(mark for mark, stored in latest.items() if not stored),
        reset,
    )
