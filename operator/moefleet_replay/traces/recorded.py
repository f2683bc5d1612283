"""Traces that are requests already: run as they are, thinned, or replicated; never compressed in time.

A compressed trace has steeper ramps than production ever had, and more of them within one cold start; a replicated one keeps its
ramps. A factor of 12 is 12 copies: the first as recorded, each other one turned by an own random shift within +-30 s (what falls
off one end comes in at the other) and with the sizes of neighbours exchanged, so that the copies do not arrive in step. A factor
of 0.25 keeps each request with probability 0.25; 2.5 is two copies and a half one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces.generation import joined, within
from moefleet_replay.traces.source import DAY_S, TraceError

SHIFT_S = 30.0
# Sizes change places within this many consecutive requests.
NEIGHBOURS = 16
# All of a recorded trace is in memory, at 20 bytes a request (and as many again while it is made).
REQUESTS_LIMIT = 50_000_000


class Recorded:
    """An ArrivalSource over requests in memory."""

    def __init__(
        self, *, name: str, describe: str, warnings: tuple[str, ...], arrivals: Arrivals, duration_s: float
    ) -> None:
        self.name = name
        self.describe = describe
        self.warnings = warnings
        self.duration_s = duration_s
        self._arrivals = arrivals

    def between(self, start_s: float, end_s: float) -> Arrivals:
        return within(self._arrivals, start_s, end_s)


def replayed(
    trace: Arrivals,
    *,
    kind: str,
    file: str,
    duration_s: float | None = None,
    days: tuple[float, float] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    warnings: tuple[str, ...] = (),
) -> Recorded:
    """`duration_s` is up to the second after the last request unless it is known; days count from the trace's zero."""
    duration_s = duration_s or math.floor(trace.at_s[-1]) + 1.0
    name, part = f"{kind} {file}", ""
    if days is not None:
        start_s, end_s = chosen(name, days, duration_s)
        trace = since(within(trace, start_s, end_s), start_s)
        duration_s, part = end_s - start_s, f", days {days[0]:g}:{days[1]:g}"
        if not len(trace):
            raise TraceError(f"days: no request in {days[0]:g}:{days[1]:g} of {name}")
    if not (math.isfinite(scale) and scale > 0):
        raise TraceError(f"scale: wanted a number above 0, found {scale}")
    return Recorded(
        name=name if scale == 1 else f"{name} x{scale:g}",
        describe=f"{file} ({kind}){part}, {_done(scale, seed)}",
        warnings=warnings,
        arrivals=multiplied(trace, scale, duration_s, seed),
        duration_s=duration_s,
    )


def multiplied(trace: Arrivals, factor: float, duration_s: float, seed: int) -> Arrivals:
    copies, part = int(factor), factor - int(factor)
    if (wanted := len(trace) * factor) > REQUESTS_LIMIT:
        raise TraceError(
            f"scale: {factor:g} makes {wanted:,.0f} requests, and at most {REQUESTS_LIMIT:,} fit in memory"
        )
    made = [trace] if copies else []
    made += [_copied(trace, duration_s, _copy_stream(seed, copy)) for copy in range(1, copies)]
    if part:
        stream = _copy_stream(seed, copies)
        kept = stream.random(len(trace)) < part
        thinned = _taken(trace, np.flatnonzero(kept))
        made.append(_copied(thinned, duration_s, stream) if copies else thinned)
    if not any(len(one) for one in made):
        raise TraceError(f"scale: {factor:g} of {len(trace)} requests leaves none")
    together = joined(made)
    return together if len(made) == 1 else _taken(together, np.argsort(together.at_s, kind="stable"))


def chosen(name: str, days: tuple[float, float], duration_s: float) -> tuple[float, float]:
    """The part of a trace that begins at zero, in seconds. The last day may be a shorter one."""
    if not all(math.isfinite(day) for day in days) or not 0 <= days[0] < days[1]:
        raise TraceError(f"days: wanted A:B with 0 <= A < B, found {days[0]:g}:{days[1]:g}")
    start_s, end_s = days[0] * DAY_S, days[1] * DAY_S
    if end_s > math.ceil(duration_s / DAY_S) * DAY_S or start_s >= duration_s:
        raise TraceError(
            f"days: {days[0]:g}:{days[1]:g} is {start_s:.0f} s to {end_s:.0f} s, and {name} has {duration_s:.0f} s"
        )
    return start_s, min(end_s, duration_s)


def since(arrivals: Arrivals, start_s: float) -> Arrivals:
    return Arrivals(
        arrivals.at_s - start_s, arrivals.input_tokens, arrivals.output_tokens, arrivals.cached_tokens
    )


def _copied(trace: Arrivals, duration_s: float, stream: np.random.Generator) -> Arrivals:
    at_s = (trace.at_s + stream.uniform(-SHIFT_S, SHIFT_S)) % duration_s
    # The remainder of a tiny negative number can round to the divisor itself.
    at_s[at_s >= duration_s] = 0.0
    # Sorting (group, chance) exchanges places within groups of neighbours only.
    places = np.lexsort((stream.random(len(trace)), np.arange(len(trace)) // NEIGHBOURS))
    return Arrivals(
        at_s, trace.input_tokens[places], trace.output_tokens[places], trace.cached_tokens[places]
    )


def _taken(arrivals: Arrivals, places: npt.NDArray[np.int64]) -> Arrivals:
    return Arrivals(
        arrivals.at_s[places],
        arrivals.input_tokens[places],
        arrivals.output_tokens[places],
        arrivals.cached_tokens[places],
    )


def _copy_stream(seed: int, copy: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(4, copy))))


def _done(scale: float, seed: int) -> str:
    if scale == 1:
        return "as recorded"
    if scale < 1:
        return f"each request kept with probability {scale:g}, seed {seed}"
    return f"x{scale:g} as copies shifted by up to {SHIFT_S:g} s with the sizes of neighbours exchanged, seed {seed}"
