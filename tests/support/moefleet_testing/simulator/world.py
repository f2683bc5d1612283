"""Virtual time: a heap of what will happen, generators by name, a trace of what happened, and how a rule is broken."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

# Unix time at which every story begins: any, but the same for all.
EPOCH = 1_800_000_000.0


class RuleBrokenError(AssertionError):
    """An invariant does not hold; the message says which, when and about whom."""

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        # What happened, newest last: printed when a rule is broken.
        self.story: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def events(self) -> int:
        """How many have happened: all that were added, but for those to come."""
        return self._serial - len(self._heap)

    @property
    def wall(self) -> float:
        return EPOCH + self.now

    @property
    def trace(self) -> str:
        """A hash of everything that was told or written, with its times."""
        return self._trace.hexdigest()

    def stream(self, name: str) -> random.Random:
        """A generator of its own for each part: what one part draws changes nothing for the others, so a schedule from which
        a fault was taken still is nearly the same story."""
        return random.Random(f"{self.seed}/{name}")

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s if delay_s > 0.0 else self.now, self._serial, act))

    def run(self, until: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            # Never before now: `after` adds nothing to the past.
            self.now, _, act = pop(heap)
            act()
        self.now = max(self.now, until)

    def tell(self, text: str) -> None:
        line = f"{self.now:9.3f} {text}"
        self.story.append(line)
        self._trace.update(line.encode())

    def mark(self, text: str) -> None:
        """Into the trace, not into the story."""
        self._trace.update(f"{self.now:.6f} {text}".encode())

    def broken(self, rule: str, text: str) -> None:
        raise RuleBrokenError(f"{rule} at {self.now:.3f} s (event {self.events}): {text}", rule)
