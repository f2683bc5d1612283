"""How many replicas traffic needs, by the closed form: the line in plots, the start of a run, what the oracle sees."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from moefleet_perf import Calibration, Mix, capacity

from moefleet_replay.arrivals import Arrivals, ArrivalSource

# Of the TPOT limit: what the need is measured against, as in the operator's law.
NEED_TPOT_SHARE = 0.85
BLOCK_S = 10
_FETCH_S = 600
# Requests, their prompt, output and cached tokens, and output tokens times the mean context that they are made in.
_SUMS = 5

Sums = npt.NDArray[np.float64]


class NeedBlocks:
    """Sums of what arrived, in blocks of BLOCK_S from the start of the run."""

    def __init__(self, duration_s: float) -> None:
        self.sums: Sums = np.zeros((math.ceil(duration_s / BLOCK_S) + 1, _SUMS))

    def add(self, arrivals: Arrivals) -> None:
        if len(arrivals):
            first, last = (int(at_s // BLOCK_S) for at_s in (arrivals.at_s[0], arrivals.at_s[-1]))
            edges = np.searchsorted(arrivals.at_s, np.arange(first, last + 2) * float(BLOCK_S))
            edges[0], edges[-1] = 0, len(arrivals)
            self.sums[first : last + 1] += _sums(arrivals, edges)

    def grouped(self, blocks: int) -> Sums:
        """Sums of each `blocks` blocks after another."""
        groups = -(-len(self.sums) // blocks)
        padded = np.zeros((groups * blocks, _SUMS))
        padded[: len(self.sums)] = self.sums
        grouped: Sums = padded.reshape(groups, blocks, _SUMS).sum(axis=1)
        return grouped


def first_need(calibration: Calibration, tpot_s: float, first_second: Arrivals) -> float:
    return needed(calibration, tpot_s, 1.0, _sums(first_second, np.array([0, len(first_second)]))[0])


def needed(calibration: Calibration, tpot_s: float, seconds: float, sums: Sums) -> float:
    """Replicas for the requests with these sums, spread over `seconds`, at capacity for NEED_TPOT_SHARE of the TPOT limit."""
    requests, prompt, output, cached, attended = (float(x) for x in sums)
    if requests <= 0 or seconds <= 0:
        return 0.0
    mix = Mix(prompt / requests, output / requests, cached / requests, context_tokens=attended / output)
    carries = capacity(calibration, mix, NEED_TPOT_SHARE * tpot_s).requests_per_s
    return requests / seconds / carries if carries > 0 else math.inf


class SourceForesight:
    """Need in replicas of any interval of the trace, from a pass over it before the run."""

    def __init__(self, source: ArrivalSource, calibration: Calibration, tpot_s: float) -> None:
        self._until_s = source.duration_s
        blocks = NeedBlocks(source.duration_s)
        for start in range(0, math.ceil(source.duration_s), _FETCH_S):
            blocks.add(source.between(float(start), min(float(start + _FETCH_S), source.duration_s)))
        # Replica-seconds until the end of each block.
        work = [needed(calibration, tpot_s, BLOCK_S, sums) * BLOCK_S for sums in blocks.sums]
        self._work = np.concatenate([[0.0], np.cumsum(work)])
        self._edges = np.arange(len(self._work)) * float(BLOCK_S)

    @property
    def until_s(self) -> float:
        return self._until_s

    def work_at(self, from_s: float, to_s: float) -> float:
        span_s = to_s - from_s
        if span_s <= 0:
            return 0.0
        low, high = np.interp([from_s, to_s], self._edges, self._work)
        return float(high - low) / span_s


def _sums(arrivals: Arrivals, edges: npt.NDArray[np.int64]) -> Sums:
    """By block: requests from edges[i] to edges[i + 1]. Whole numbers until the end, so no order of adding changes a bit."""
    counts = np.diff(edges)
    found: Sums = np.zeros((len(counts), _SUMS))
    found[:, 0] = counts
    # reduceat adds up to the next start, so blocks without requests must not be in between.
    starts = edges[:-1][counts > 0]
    if len(starts):
        prompt, output = arrivals.input_tokens, arrivals.output_tokens
        twice_attended = (2 * prompt.astype(np.int64) + output) * output
        for column, values in enumerate((prompt, output, arrivals.cached_tokens, twice_attended), start=1):
            found[counts > 0, column] = np.add.reduceat(values, starts, dtype=np.int64)
        found[:, 4] /= 2
    return found
