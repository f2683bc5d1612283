"""The seconds so far, as arrays with running sums: a window costs two reads."""

from __future__ import annotations

from typing import cast

import numpy as np

from moefleet_replay.layout import SIGNALS
from moefleet_replay.observation import Signal


class FleetSeries:
    """`rows[s]` is second s; `now` is how many of them may be seen."""

    def __init__(self, seconds: int) -> None:
        self.rows = np.zeros((seconds, SIGNALS))
        self._sums = np.zeros((seconds + 1, SIGNALS))
        self._summed = 0
        self.now = 0

    def reserve(self, seconds: int) -> None:
        if seconds <= len(self.rows):
            return
        more = max(seconds - len(self.rows), len(self.rows) // 4)
        self.rows = np.vstack([self.rows, np.zeros((more, SIGNALS))])
        self._sums = np.vstack([self._sums, np.zeros((more, SIGNALS))])

    def grow_to(self, end: int) -> None:
        """Seconds before `end` are complete."""
        start = self._summed
        if end > start:
            np.cumsum(self.rows[start:end], axis=0, out=self._sums[start + 1 : end + 1])
            self._sums[start + 1 : end + 1] += self._sums[start]
            self._summed = end

    def total(self, signal: Signal, window_s: float) -> float:
        start = max(0, self.now - int(window_s))
        return float(self._sums[self.now, signal] - self._sums[start, signal])

    def mean(self, signal: Signal, window_s: float) -> float:
        seconds = min(self.now, int(window_s))
        return self.total(signal, window_s) / seconds if seconds > 0 else 0.0

    def highest(self, signal: Signal, window_s: float) -> float:
        start = max(0, self.now - int(window_s))
        return float(self.rows[start : self.now, signal].max()) if self.now > start else 0.0

    def last(self, signal: Signal) -> float:
        return float(self.rows[self.now - 1, signal]) if self.now > 0 else 0.0

    def values(self, signal: Signal, window_s: float) -> list[float]:
        start = max(0, self.now - int(window_s))
        return cast(list[float], self.rows[start : self.now, signal].tolist())

    def so_far(self, signal: Signal) -> float:
        """Sum since the start of the run."""
        return float(self._sums[self.now, signal])
