"""What came in the last so many seconds, for as many windows as a tick asks for: each column is summed once.

A window that begins inside a bucket counts it in part; its span is the time that is really covered.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from operator import attrgetter

from moefleet_operator.scaling.state import Bucket

_READ: dict[str, Callable[[Bucket], float]] = {name: attrgetter(name) for name in Bucket.__slots__}


class Windows:
    """Sums over the newest buckets, newest first. Made for one tick; holds nothing that outlives it."""

    __slots__ = ("_ages_s", "_buckets", "_places", "_sums")

    def __init__(self, buckets: tuple[Bucket, ...], now: float) -> None:
        self._buckets = buckets[::-1]
        # Ages of their ends: rising, so that a window is a place in it.
        self._ages_s = [now - b.end_s for b in self._buckets]
        self._places: dict[float, tuple[int, float]] = {}
        self._sums: dict[str, list[float]] = {}

    def total(self, name: str, length_s: float) -> float:
        """Of one column of Bucket, `span_s` among them."""
        whole, share = self._places.get(length_s) or self._placed(length_s)
        sums = self._sums.get(name)
        if sums is None:
            sums = self._sums[name] = [0.0, *accumulate(map(_READ[name], self._buckets))]
        return sums[whole] + share * (sums[whole + 1] - sums[whole]) if share else sums[whole]

    def fading_rate(self, name: str, length_s: float, fade_s: float, least_s: float) -> float:
        """Of one column, per second, inside a window in which each second counts 1/e of what the one `fade_s` later counts. Time that is
        not covered is no time without arrivals, but what came in less than `least_s` is no rate either."""
        total = covered = 0.0
        younger, read = 1.0, _READ[name]
        for bucket, age_s in zip(self._buckets, self._ages_s, strict=True):
            if age_s >= length_s:
                break
            if not covered:
                younger = math.exp(-max(age_s, 0.0) / fade_s)
            older = math.exp(-min(age_s + bucket.span_s, length_s) / fade_s)
            total += read(bucket) / bucket.span_s * (younger - older)
            covered += younger - older
            younger = older
        return total / max(covered, 1.0 - math.exp(-least_s / fade_s)) if total > 0 else 0.0

    def _placed(self, length_s: float) -> tuple[int, float]:
        """Buckets that lie inside as a whole, and the share of the next one that does."""
        ages_s, buckets = self._ages_s, self._buckets
        whole, share = bisect_right(ages_s, length_s), 0.0
        # An end at the very edge has nothing inside.
        while whole and ages_s[whole - 1] >= length_s:
            whole -= 1
        if whole:
            oldest = buckets[whole - 1]
            inside_s = length_s - ages_s[whole - 1]
            if inside_s < oldest.span_s:
                whole, share = whole - 1, inside_s / oldest.span_s
        self._places[length_s] = whole, share
        return whole, share
