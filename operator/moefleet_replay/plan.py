"""Before anything is bought: from traffic, objective and prices to replicas over the day, GPU-hours, cost and margin.

Two roads. From a rate and mean lengths: the closed form of moefleet_perf with a headroom that is given. From a trace: the same closed
form window by window, and then our own policy on every request of it, whose headroom is learnt; its numbers are the plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from moefleet_perf import Bound, Calibration, Mix, capacity

from moefleet_replay.arrivals import Arrivals, ArrivalSource
from moefleet_replay.compare_run import PLANNED_TPOT_SHARE
from moefleet_replay.observation import Objective
from moefleet_replay.result import GPUS_PER_REPLICA, RunResult

DAY_S: Final = 86_400.0
WINDOW_S: Final = 600.0
# What production curves asked for within one cold start (99 % quantile); a trace lets our policy learn its own.
DEFAULT_HEADROOM: Final = 0.25
# Beyond it a day is one spike, and a fleet is not what serves it.
MAX_PEAK_FACTOR: Final = 20.0

# What binds, and what would move it.
BOUND_WORDS: Final[dict[Bound, str]] = {
    "TPOT": "the time per output token: a fuller step would be slower than planned; a larger tpot, or faster steps, carry more",
    "Slots": "the sequences that may decode at once (maxSequences): a larger batch carries more",
    "KVCache": "the KV cache: contexts fill it before steps get slow; more cache, or shorter contexts, carry more",
    "BatchTokens": "the tokens of one step (maxBatchTokens): prompts wait for their chunk; a larger budget carries more, and its steps are longer",
}


class PlanError(ValueError):
    """The text names the argument, what was wanted and what was found."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Of one currency, which nobody needs to know."""

    input_per_million: float = 1.0
    output_per_million: float = 2.0
    gpu_hour: float = 14.0


@dataclass(frozen=True, slots=True)
class PlanWindow:
    start_s: float
    length_s: float
    requests_per_s: float
    mix: Mix
    # Replicas of the closed form, and that with headroom, rounded up.
    need: float
    replicas: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Plan:
    """Totals are of the whole plan; `days` turns them into daily ones. Money is in the currency of the prices."""

    windows: tuple[PlanWindow, ...]
    # "closed form" or "replay": where replicas and GPU-hours come from.
    source: str
    days: float
    gpu_hours: float
    # A fleet that always has the most replicas of the plan.
    static_gpu_hours: float
    input_tokens: float
    output_tokens: float
    cost: float
    revenue: float
    least_replicas: float
    most_replicas: float
    # Share of the time that each limit binds.
    bounds: dict[Bound, float]
    # Of the replay, None without one.
    attainment: float | None = None

    @property
    def cost_per_mtok(self) -> float:
        return self.cost / ((self.input_tokens + self.output_tokens) / 1e6)

    @property
    def margin_percent(self) -> float | None:
        """Of the revenue; None when nothing is earned."""
        return 100 * (self.revenue - self.cost) / self.revenue if self.revenue > 0 else None


def from_rate(
    rate: float,
    input_tokens: float,
    output_tokens: float,
    *,
    peak_factor: float,
    headroom: float,
    calibration: Calibration,
    objective: Objective,
    prices: Prices,
    min_replicas: int = 1,
) -> Plan:
    """A day of `rate` requests/s on average and `peak_factor` times that at its busiest."""
    for name, value, low, high in (
        ("rate", rate, 1e-9, 1e9),
        ("input-tokens", input_tokens, 1.0, 1e7),
        ("output-tokens", output_tokens, 1.0, 1e7),
        ("peak-factor", peak_factor, 1.0, MAX_PEAK_FACTOR),
        ("headroom", headroom, 0.0, 10.0),
    ):
        if not low <= value <= high:
            raise PlanError(f"{name}: wanted {low:g} to {high:g}, found {value:g}")
    mix = Mix(input_tokens, output_tokens)
    windows = tuple(
        _window(
            i * WINDOW_S,
            WINDOW_S,
            rate * share,
            mix,
            headroom=headroom,
            calibration=calibration,
            objective=objective,
            min_replicas=min_replicas,
        )
        for i, share in enumerate(day_shape(peak_factor, round(DAY_S / WINDOW_S)))
    )
    return _plan(windows, prices)


def day_shape(peak_factor: float, count: int) -> list[float]:
    """Rates of a day with mean 1 and one peak at noon: a sine up to a factor of 2, a narrower hill with quiet nights above."""
    turns = [(1 - math.cos(2 * math.pi * (i + 0.5) / count)) / 2 for i in range(count)]
    if peak_factor <= 2:
        # The middle of a window is never exactly at the peak: the mean stays 1, the peak is at most the factor.
        return [1 + (peak_factor - 1) * (2 * t - 1) for t in turns]
    highest = max(turns)
    turns = [t / highest for t in turns]
    low, high = 1.0, 1e4
    for _ in range(100):
        power = math.sqrt(low * high)
        low, high = (
            (power, high) if count / math.fsum(t**power for t in turns) < peak_factor else (low, power)
        )
    mean = math.fsum(t**low for t in turns) / count
    return [t**low / mean for t in turns]


def from_trace(
    source: ArrivalSource,
    *,
    headroom: float,
    calibration: Calibration,
    objective: Objective,
    prices: Prices,
    min_replicas: int = 1,
) -> Plan:
    """The closed form, window by window; no queue, no cold start, no chance: what `replayed` then replaces."""
    if headroom < 0:
        raise PlanError(f"headroom: wanted 0 or more, found {headroom:g}")
    windows: list[PlanWindow] = []
    before = Mix(1.0, 1.0)
    for start_s, length_s in _intervals(source.duration_s):
        arrivals = source.between(start_s, start_s + length_s)
        before = mix_of(arrivals) or before
        windows.append(
            _window(start_s, length_s, len(arrivals) / length_s, before, headroom=headroom, calibration=calibration, objective=objective, min_replicas=min_replicas)
        )  # fmt: skip
    if not any(w.requests_per_s for w in windows):
        raise PlanError("trace: no request arrives")
    return _plan(tuple(windows), prices)


def replayed(plan: Plan, result: RunResult, prices: Prices) -> Plan:
    """The plan with what our policy really had running: replicas ready and on their way, GPU-hours with starts and drains."""
    line = result.timeline
    # The minutes in which the last requests run to their end are billed, but are no part of the day.
    minutes = [s for s in line.minute_s if s < plan.days * DAY_S]
    running = [
        r + p + d for r, p, d, _ in zip(line.ready, line.pending, line.draining, minutes, strict=False)
    ]
    if not running:
        raise PlanError("trace: shorter than a minute, so no replicas over time were recorded")
    windows = []
    for w in plan.windows:
        inside = [r for s, r in zip(minutes, running, strict=True) if w.start_s <= s < w.start_s + w.length_s]  # fmt: skip
        replicas = sum(inside) / len(inside) if inside else w.replicas
        windows.append(PlanWindow(w.start_s, w.length_s, w.requests_per_s, w.mix, w.need, replicas, w.bound))
    most = max(running)
    hours = plan.days * 24
    return Plan(
        windows=tuple(windows), source="replay", days=plan.days, gpu_hours=result.summary.gpu_hours,
        static_gpu_hours=most * GPUS_PER_REPLICA * hours, input_tokens=plan.input_tokens, output_tokens=plan.output_tokens,
        cost=result.summary.gpu_hours * prices.gpu_hour, revenue=plan.revenue, least_replicas=min(running),
        most_replicas=most, bounds=plan.bounds, attainment=result.summary.attainment,
    )  # fmt: skip


def mix_of(arrivals: Arrivals) -> Mix | None:
    """Means, with the context of decoding sequences weighted by how long they decode; None without requests."""
    if not len(arrivals):
        return None
    outputs = arrivals.output_tokens.astype(np.float64)
    contexts = arrivals.input_tokens + outputs / 2
    return Mix(
        float(arrivals.input_tokens.mean()),
        float(outputs.mean()),
        float(arrivals.cached_tokens.mean()),
        float((outputs * contexts).sum() / outputs.sum()),
    )


def bound_sentences(plan: Plan) -> list[str]:
    """Which limit binds, most of the time first, in words."""
    found = sorted(plan.bounds.items(), key=lambda b: -b[1])
    return [f"{share:.0%}".replace("%", " %") + f" of the time: {BOUND_WORDS[bound]}" for bound, share in found]  # fmt: skip


def _window(
    start_s: float, length_s: float, rate: float, mix: Mix, *, headroom: float, calibration: Calibration,
    objective: Objective, min_replicas: int,
) -> PlanWindow:  # fmt: skip
    held = capacity(calibration, mix, PLANNED_TPOT_SHARE * objective.tpot_s)
    need = rate * held.replica_s_per_request
    replicas = max(min_replicas, math.ceil(need * (1 + headroom) - 1e-9))
    return PlanWindow(start_s, length_s, rate, mix, need, replicas, held.bound)


def _plan(windows: tuple[PlanWindow, ...], prices: Prices) -> Plan:
    seconds = math.fsum(w.length_s for w in windows)
    gpu_hours = GPUS_PER_REPLICA * math.fsum(w.replicas * w.length_s for w in windows) / 3600
    inputs = math.fsum(w.requests_per_s * w.length_s * w.mix.input_tokens for w in windows)
    outputs = math.fsum(w.requests_per_s * w.length_s * w.mix.output_tokens for w in windows)
    most = max(w.replicas for w in windows)
    shares: Counter[Bound] = Counter()
    for w in windows:
        shares[w.bound] += w.length_s  # type: ignore[assignment]
    return Plan(
        windows=windows, source="closed form", days=seconds / DAY_S, gpu_hours=gpu_hours,
        static_gpu_hours=GPUS_PER_REPLICA * most * seconds / 3600, input_tokens=inputs, output_tokens=outputs,
        cost=gpu_hours * prices.gpu_hour,
        revenue=(inputs * prices.input_per_million + outputs * prices.output_per_million) / 1e6,
        least_replicas=min(w.replicas for w in windows), most_replicas=most,
        bounds={bound: s / seconds for bound, s in shares.items()},
    )  # fmt: skip


def _intervals(duration_s: float) -> Iterable[tuple[float, float]]:
    start_s = 0.0
    while start_s < duration_s:
        length_s = min(WINDOW_S, duration_s - start_s)
        yield start_s, length_s
        start_s += length_s
