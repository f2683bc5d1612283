"""What a run is worth: the summary, the lines of the plots, and what an attacker of the method would ask for."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import numpy.typing as npt

from moefleet_replay import layout as k
from moefleet_replay.need import BLOCK_S, needed
from moefleet_replay.observation import Signal
from moefleet_replay.pods import Fleet
from moefleet_replay.result import GPUS_PER_REPLICA, RunResult, Summary, Timeline

WINDOW_MINUTES = 5
# A surge: the minutes in which the need rises by so much within one median cold start.
SURGE = 1.3

Floats = npt.NDArray[np.float64]


def result_of(fleet: Fleet, now: int, wall_s: float, compile_s: float) -> RunResult:
    setup, engine = fleet.setup, fleet.engine
    x = engine.totals
    requests = int(x[k.X_REQUESTS])
    share = 1.0 / requests if requests else 0.0
    hours = fleet.billed_s / 3600.0 * GPUS_PER_REPLICA
    tokens = sum(
        float(fleet.series.rows[:now, s].sum())
        for s in (Signal.COMPLETED_INPUT_TOKENS, Signal.COMPLETED_OUTPUT_TOKENS)
    )
    summary = Summary(
        policy=setup.policy_name,
        requests=requests,
        attainment=float(x[k.X_OK]) * share if requests else 1.0,
        ttft_attainment=float(x[k.X_TTFT_OK]) * share if requests else 1.0,
        tpot_attainment=float(x[k.X_TPOT_OK]) * share if requests else 1.0,
        windows_5min_ok=windows_ok(fleet.engine.minutes, setup.objective.attainment),
        gpu_hours=hours,
        cost_per_mtok=hours * setup.gpu_hour_cost / (tokens / 1e6) if tokens else 0.0,
        ttft_p50_s=quantile(fleet.engine.ttft_bins, 0.5),
        ttft_p99_s=quantile(fleet.engine.ttft_bins, 0.99),
        ttft_p999_s=quantile(fleet.engine.ttft_bins, 0.999),
        tpot_p99_s=quantile(fleet.engine.tpot_bins, 0.99),
        replica_starts=fleet.starts,
        scaling_actions=fleet.actions,
        peak_replicas=fleet.peak,
        wall_s=wall_s,
    )
    timeline = _timeline(fleet, now)
    extra = {
        **_areas(timeline, setup.cold_start.median_s, engine.ttft_minutes),
        **_recovery(timeline, setup.objective.attainment),
        **_hours(fleet, now),
        "steps": float(fleet.steps),
        "preemptions": float(x[k.X_PREEMPTIONS]),
        "retries": float(x[k.X_RETRIES]),
        "unfinished": float(x[k.X_REQUESTS] - x[k.X_ENDED]),
    }
    return RunResult(summary, timeline, fleet.decisions, compile_s, {}, extra)


def _hours(fleet: Fleet, now: int) -> dict[str, float]:
    """GPU-hours by state, and by reason where the policy told it."""
    rows, hours = fleet.series.rows[:now], GPUS_PER_REPLICA / 3600.0
    states = {"starting": Signal.PENDING, "draining": Signal.DRAINING}
    found = {f"hours_{name}": float(rows[:, signal].sum()) * hours for name, signal in states.items()}
    return found | {f"hours_for_{name}": seconds * hours for name, seconds in fleet.kept_s.items()}


def windows_ok(minutes: npt.NDArray[np.int64], attainment: float) -> float:
    """Share of the 5-minute windows with arrivals whose share inside both limits is at least `attainment`."""
    count = -(-len(minutes) // WINDOW_MINUTES)
    padded = np.zeros((count * WINDOW_MINUTES, 2), np.int64)
    padded[: len(minutes)] = minutes
    windows = padded.reshape(count, WINDOW_MINUTES, 2).sum(axis=1)
    used = windows[windows[:, 0] > 0]
    return float((used[:, 1] >= attainment * used[:, 0] - 1e-9).mean()) if len(used) else 1.0


def quantile(bins: npt.NDArray[np.int64], share: float) -> float:
    """Upper edge of the bin that holds it: at most 0.5 % too high, 4 % with the coarse bins of minutes. 0.0 without values."""
    total = int(bins.sum())
    if total == 0:
        return 0.0
    place = int(np.searchsorted(np.cumsum(bins), math.ceil(share * total)))
    wide = k.BINS // len(bins)
    return k.BIN_LOW_S * math.exp(k.BIN_LOG * (place * wide + wide - 1))


def _timeline(fleet: Fleet, now: int) -> Timeline:
    minutes = now // 60
    means = fleet.series.rows[: minutes * 60].reshape(minutes, 60, k.SIGNALS).mean(axis=1)
    calibration, tpot_s = fleet.setup.calibration, fleet.setup.objective.tpot_s
    need = [needed(calibration, tpot_s, 60.0, sums) for sums in fleet.need.grouped(60 // BLOCK_S)[:minutes]]
    counted = np.zeros((minutes, 2), np.int64)
    known = fleet.engine.minutes[:minutes]
    counted[: len(known)] = known

    def line(signal: Signal) -> list[float]:
        return [float(x) for x in means[:, signal]]

    return Timeline(
        minute_s=[60.0 * m for m in range(minutes)],
        arrivals_per_s=line(Signal.ARRIVALS),
        input_tok_s=line(Signal.ARRIVED_INPUT_TOKENS),
        output_tok_s=line(Signal.GENERATED_TOKENS),
        ready=line(Signal.READY),
        pending=line(Signal.PENDING),
        draining=line(Signal.DRAINING),
        need=need + [0.0] * (minutes - len(need)),
        requests=counted[:, 0].tolist(),
        within=counted[:, 1].tolist(),
    )


def _areas(timeline: Timeline, cold_start_s: float, ttft_minutes: npt.NDArray[np.int32]) -> dict[str, float]:
    """Replica-seconds above and below the need, over the run and inside surges, and what surges held of the objective."""
    need, difference = np.array(timeline.need), np.array(timeline.ready) - np.array(timeline.need)
    surge = surges(need, max(1, round(cold_start_s / 60)))
    requests, within = np.array(timeline.requests), np.array(timeline.within)
    inside = int(requests[surge].sum()) if len(need) else 0
    ttft = ttft_minutes[np.flatnonzero(surge[: len(ttft_minutes)])].sum(axis=0, dtype=np.int64)
    return {
        "need_replica_s": float(need.sum() * 60),
        "over_replica_s": float(difference.clip(min=0).sum() * 60),
        "under_replica_s": float((-difference).clip(min=0).sum() * 60),
        "surge_minutes": float(surge.sum()),
        "surge_over_replica_s": float(difference[surge].clip(min=0).sum() * 60),
        "surge_under_replica_s": float((-difference[surge]).clip(min=0).sum() * 60),
        "surge_attainment": float(within[surge].sum() / inside) if inside else 1.0,
        "surge_ttft_p99_s": quantile(ttft, 0.99),
        "surge_ttft_p999_s": quantile(ttft, 0.999),
    }


def _recovery(timeline: Timeline, attainment: float) -> dict[str, float]:
    """Falls are times in which every minute with requests misses the wanted share: how many, the longest, and all of them."""
    missed = [
        within < attainment * requests - 1e-9
        for requests, within in zip(timeline.requests, timeline.within, strict=True)
        if requests
    ]
    falls = [len(list(run)) * 60.0 for bad, run in groupby(missed) if bad]
    return {
        "falls": float(len(falls)),
        "longest_recovery_s": max(falls, default=0.0),
        "below_objective_s": sum(falls),
    }


def surges(need: Floats, ahead: int) -> npt.NDArray[np.bool_]:
    """Minutes from where the need begins to rise by SURGE within `ahead` minutes to where it has risen."""
    marked = np.zeros(len(need), np.bool_)
    for m in range(len(need) - 1):
        later = need[m + 1 : m + 1 + ahead]
        if need[m] > 0 and later.max() > SURGE * need[m]:
            marked[m : m + 2 + int(np.argmax(later))] = True
    return marked
