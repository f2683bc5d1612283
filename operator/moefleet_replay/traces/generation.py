"""Requests from rates: the generator that is the same for every trace that gives a rate and not requests.

Per second s with mean rate r(s):
  lambda(s) = r(s) * exp(x(s) - sigma^2/2), x an AR(1) of standard deviation sigma = 0.12 and time constant 90 s, so that
  the factor has mean 1; count(s) negative binomial with mean lambda(s) and variance D(s) * lambda(s), D the index of
  dispersion; that many times, uniform in the second; each request draws one (input, output, cached) triple of the pool in force.

Chance comes from streams of their own: one for x over the whole file, and per block of BLOCK_S seconds one for the counts and one
for the requests (a 64-bit word each: the upper half says when in the second, the lower half which triple). Blocks count from the
first second of the file, so neither the days chosen nor the intervals asked for change a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces.source import TraceError

SIGMA = 0.12
TIME_CONSTANT_S = 90.0
IDC_LOWEST = 2.0
IDC_HIGHEST = 50.0
BLOCK_S = 60
# A block is held in memory at about 60 bytes a request.
REQUESTS_PER_BLOCK_LIMIT = 20_000_000

_MODULATION, _COUNTS, _REQUESTS = 1, 2, 3
# Times are whole multiples of this, so that second + fraction is exact in a float64 and never rounds up into the next second.
_TICK_S = 2.0**-32


@dataclass(frozen=True, slots=True)
class Pool:
    """Triples that are equally likely from `start_s` (seconds of the file) until the next pool; three arrays of one length."""

    start_s: int
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    cached_tokens: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Curve:
    """What happens per second, from the first second of the file; two arrays of one length."""

    first_s: int
    # Requests per second, scale applied.
    rate: npt.NDArray[np.float64]
    # Index of dispersion of the counts, before it is clipped.
    idc: npt.NDArray[np.float64]

    @property
    def end_s(self) -> int:
        return self.first_s + len(self.rate)


class Generated:
    """An ArrivalSource made from a curve and pools. `start_s` and `end_s` (seconds of the file) are the part that is run."""

    def __init__(
        self,
        *,
        name: str,
        describe: str,
        warnings: tuple[str, ...],
        curve: Curve,
        pools: Sequence[Pool],
        start_s: int,
        end_s: int,
        seed: int,
        modulated: bool = True,
    ) -> None:
        if not curve.first_s <= start_s < end_s <= curve.end_s:
            raise TraceError(
                f"wanted {start_s} s to {end_s} s, and there is {curve.first_s} s to {curve.end_s} s in {name}"
            )
        if pools[0].start_s > start_s:
            raise TraceError(
                f"{name}: lengths begin at {pools[0].start_s} s, after the first second {start_s} s"
            )
        if (most := float(curve.rate.max()) * BLOCK_S) > REQUESTS_PER_BLOCK_LIMIT:
            raise TraceError(
                f"{name}: {most:,.0f} requests in {BLOCK_S} s, and at most {REQUESTS_PER_BLOCK_LIMIT:,} are made; lower the scale"
            )
        self.name = name
        self.describe = describe
        self.warnings = warnings
        self._pools = pools
        self._offset_s = start_s - curve.first_s
        self._end_s = end_s - curve.first_s
        self._first_s = curve.first_s
        self._seed = seed
        rate = curve.rate[: self._end_s]
        self._lambda = rate * modulation(len(rate), seed) if modulated else rate
        self._idc = np.clip(curve.idc[: self._end_s], IDC_LOWEST, IDC_HIGHEST)
        self._held: tuple[int, Arrivals] | None = None

    @property
    def duration_s(self) -> float:
        return float(self._end_s - self._offset_s)

    def between(self, start_s: float, end_s: float) -> Arrivals:
        start_s, end_s = max(0.0, start_s), min(self.duration_s, end_s)
        if not start_s < end_s:
            return nothing()
        first = int((start_s + self._offset_s) // BLOCK_S)
        # One block at least: an end that is a hair above the start may round down to it.
        last = max(first + 1, int(-(-(end_s + self._offset_s) // BLOCK_S)))
        return joined([within(self._block(index), start_s, end_s) for index in range(first, last)])

    def _block(self, index: int) -> Arrivals:
        if self._held is None or self._held[0] != index:
            self._held = (index, self._make(index))
        return self._held[1]

    def _make(self, index: int) -> Arrivals:
        first, end = index * BLOCK_S, min((index + 1) * BLOCK_S, self._end_s)
        counts = negative_binomial(
            self._lambda[first:end], self._idc[first:end], _stream(self._seed, _COUNTS, index)
        )
        ends = np.cumsum(counts)
        words = _stream(self._seed, _REQUESTS, index).bit_generator.random_raw(int(ends[-1]))
        # Seconds in the upper half, the place within the second in the lower: one sort puts a block in order.
        seconds = np.arange(first, end, dtype=np.uint64) << np.uint64(32)
        ticks = np.repeat(seconds, counts) | (words >> np.uint64(32))
        ticks.sort()
        at_s = ticks.view(np.int64) * _TICK_S
        at_s -= self._offset_s
        inputs, outputs, cached = (np.empty(len(words), np.int32) for _ in range(3))
        words &= np.uint64(0xFFFFFFFF)
        for pool, begin, stop in self._pieces(first, end):
            piece = slice(int(ends[begin - 1]) if begin else 0, int(ends[stop - 1]))
            picks = ((words[piece] * np.uint64(len(pool.input_tokens))) >> np.uint64(32)).view(np.int64)
            inputs[piece] = pool.input_tokens[picks]
            outputs[piece] = pool.output_tokens[picks]
            cached[piece] = pool.cached_tokens[picks]
        return Arrivals(at_s, inputs, outputs, cached)

    def _pieces(self, first: int, end: int) -> list[tuple[Pool, int, int]]:
        """The pools in force between two seconds (from the first second of the file), with the seconds of the block they rule."""
        starts = [pool.start_s - self._first_s for pool in self._pools] + [self._end_s]
        pieces = []
        for pool, begins, ends in zip(self._pools, starts, starts[1:], strict=False):
            begin, stop = max(begins, first), min(ends, end)
            if begin < stop:
                pieces.append((pool, begin - first, stop - first))
        # Seconds before the run that have no lengths: what stands there is never given out.
        if pieces and pieces[0][1] > 0:
            pieces[0] = (pieces[0][0], 0, pieces[0][2])
        return pieces


def modulation(seconds: int, seed: int) -> npt.NDArray[np.float64]:
    """exp(x - sigma^2/2) per second, x(0) from the stationary distribution; a shorter call gives the beginning of a longer one."""
    draws = _stream(seed, _MODULATION, 0).standard_normal(seconds) * SIGMA
    keep = float(np.exp(-1.0 / TIME_CONSTANT_S))
    draws[1:] *= np.sqrt(1.0 - keep * keep)
    states = np.fromiter(accumulate(draws.tolist(), lambda x, e: keep * x + e), np.float64, seconds)
    modulated: npt.NDArray[np.float64] = np.exp(states - SIGMA * SIGMA / 2)
    return modulated


def negative_binomial(
    mean: npt.NDArray[np.float64], idc: npt.NDArray[np.float64], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Counts with that mean and variance/mean = idc: n = mean/(idc - 1) successes of probability 1/idc."""
    counts: npt.NDArray[np.int64] = generator.negative_binomial(
        np.maximum(mean, 1e-12) / (idc - 1.0), 1.0 / idc
    )
    return counts


def within(arrivals: Arrivals, start_s: float, end_s: float) -> Arrivals:
    first, end = np.searchsorted(arrivals.at_s, (start_s, end_s))
    if first == 0 and end == len(arrivals):
        return arrivals
    return Arrivals(
        arrivals.at_s[first:end],
        arrivals.input_tokens[first:end],
        arrivals.output_tokens[first:end],
        arrivals.cached_tokens[first:end],
    )


def joined(parts: Sequence[Arrivals]) -> Arrivals:
    if len(parts) == 1:
        return parts[0]
    return Arrivals(
        np.concatenate([part.at_s for part in parts]),
        np.concatenate([part.input_tokens for part in parts]),
        np.concatenate([part.output_tokens for part in parts]),
        np.concatenate([part.cached_tokens for part in parts]),
    )


def nothing() -> Arrivals:
    return Arrivals(np.empty(0), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32))


def _stream(seed: int, purpose: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose, block))))
