"""Virtual time: a heap of what will happen, one generator, and the rules that are checked after everything."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

# Unix time at which every story begins: any, but the same for all.
EPOCH = 1_800_000_000.0


class RuleBrokenError(AssertionError):
    """An invariant does not hold; the message says which, when and about whom."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        # What happened, newest last: printed when a rule is broken.
        self.story: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    @property
    def wall(self) -> float:
        return EPOCH + self.now

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._serial, act))

    def between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            at, _, act = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            self.events += 1
            act()
        self.now = max(self.now, until)

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now:9.3f} {text}")

    def broken(self, rule: str, text: str) -> None:
        raise RuleBrokenError(f"{rule} at {self.now:.3f} s: {text}")
