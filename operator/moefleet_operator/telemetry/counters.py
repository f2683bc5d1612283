"""Cumulative counts of many processes, added up so that the sum never falls.

A process counts from zero when it starts. What it counted before we first heard it belongs to a time that we did not see, so the
first report of a source is its baseline, unless it is the beginning of its life. A restart begins at zero and adds on top;
a source that is gone leaves what it counted behind.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

Counts = tuple[float, ...]


@dataclass(slots=True)
class _Source:
    incarnation: str
    base: Counts
    last: Counts


class Ledger:
    def __init__(self, width: int) -> None:
        self._gone: Counts = (0.0,) * width
        self._sources: dict[Hashable, _Source] = {}

    def put(self, source: Hashable, incarnation: str, counts: Counts, *, from_start: bool) -> Counts:
        """What is new since the source's report before. `from_start`: it is the first report of that incarnation's life."""
        zero = (0.0,) * len(self._gone)
        known = self._sources.get(source)
        if known is None:
            base = zero if from_start else counts
            self._sources[source] = _Source(incarnation, base, counts)
            return _minus(counts, base)
        fell = any(now < before for now, before in zip(counts, known.last, strict=True))
        if known.incarnation != incarnation or fell:
            self._gone = _plus(self._gone, _minus(known.last, known.base))
            self._sources[source] = _Source(incarnation, zero, counts)
            return counts
        new = _minus(counts, known.last)
        known.last = counts
        return new

    def drop(self, source: Hashable) -> None:
        if known := self._sources.pop(source, None):
            self._gone = _plus(self._gone, _minus(known.last, known.base))

    def knows(self, source: Hashable) -> bool:
        return source in self._sources

    def totals(self) -> Counts:
        total = self._gone
        for known in self._sources.values():
            total = _plus(total, _minus(known.last, known.base))
        return total


def _plus(a: Counts, b: Counts) -> Counts:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _minus(a: Counts, b: Counts) -> Counts:
    return tuple(x - y for x, y in zip(a, b, strict=True))
