"""One fleet through one trace under one policy, in virtual time: `run(source, policy, setup) -> RunResult`.

Here replicas are created, start (some of them twice), serve, drain and are billed; between the ticks of the policy the compiled
kernel moves requests. Whole seconds are the grain of everything but requests and steps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from moefleet_perf import Calibration, Mix, capacity

from moefleet_replay import kernel as k
from moefleet_replay.arrivals import Arrivals, ArrivalSource
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.observation import (
    Objective,
    Observation,
    ReplicaView,
    Signal,
    StepSumsView,
)
from moefleet_replay.policy import ScalingPolicy
from moefleet_replay.result import GPUS_PER_REPLICA, DecisionLine, RunResult, Summary, Timeline
from moefleet_replay.series import FleetSeries

# Of the TPOT limit: what the need is measured against, as in the operator's law.
NEED_TPOT_SHARE = 0.85
# After the last arrival, requests may take so long to end.
TAIL_LIMIT_S = 6 * 3600
# Replicas drained are found at least so often.
GRAIN_S = 5
COLD_STARTS_KEPT = 64
NEED_BLOCK_S = 10


@dataclass(frozen=True, slots=True)
class Death:
    at_s: int
    # The ready replica with the most work dies.
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class FleetSetup:
    calibration: Calibration
    objective: Objective = field(default_factory=Objective)
    min_replicas: int = 1
    max_replicas: int = 200
    cold_start: ColdStart = field(default_factory=ColdStart)
    seed: int = 0
    gpu_hour_cost: float = 14.0
    # A replica's prefix cache is warm after so many seconds; only where the trace records prefixes.
    warm_s: float = 300.0
    # Age of what a policy sees.
    sample_lag_s: int = 1
    # Intervals of lost samples, seconds.
    lost: tuple[tuple[float, float], ...] = ()
    deaths: tuple[Death, ...] = ()
    # None: the ceiling of the need in the first second.
    initial_replicas: int | None = None
    policy_name: str = ""
    keep_times: bool = False
    # The policy's memory is lost at these seconds (F10); it must have `restart()`.
    restarts: tuple[int, ...] = ()


@dataclass(slots=True)
class _Replica:
    uid: int
    created_s: int
    ready_s: int
    row: int = -1
    drain: bool = False


class Fleet:
    def __init__(self, source: ArrivalSource, policy: ScalingPolicy, setup: FleetSetup) -> None:
        self.source, self.policy, self.setup = source, policy, setup
        self.duration_s = math.ceil(source.duration_s)
        step, limits = setup.calibration.step, setup.calibration.limits
        self.model = np.array([step.a_s, step.b_s, step.c_s, step.d_s])
        self.limits = np.array(
            [limits.max_sequences, limits.kv_max_tokens, limits.max_batch_tokens], np.int64
        )
        self.objective = np.array([setup.objective.ttft_s, setup.objective.tpot_s])
        rows = setup.max_replicas + 64
        self.real = np.zeros((rows, 10))
        self.real[:, k.F_END] = np.inf
        self.whole = np.zeros((rows, 11), np.int64)
        self.ring = np.full((rows, k.RING), -1, np.int32)
        self.clocks = np.zeros((0, 2))
        self.slots = np.zeros((0, k.SLOT_COLUMNS), np.int32)
        self.gate = np.zeros(5, np.int64)
        self.gate[k.G_FREE] = -1
        self.lengths = np.tile(np.array([k.PRIOR_OUTPUT_TOKENS, k.PRIOR_WEIGHT]), (k.CLASSES, 1))
        self.series = FleetSeries(self.duration_s + 600)
        self.windows = np.zeros((self.duration_s // 300 + 2, 2), np.int64)
        self.ttft_bins, self.tpot_bins = np.zeros(k.BINS, np.int64), np.zeros(k.BINS, np.int64)
        self.totals, self.sums = np.zeros(7), np.zeros(14)
        self.times: npt.NDArray[np.float64] = np.zeros((0, 2))
        self.free_rows = list(range(rows - 1, -1, -1))
        self.replicas_high = 0
        self.pending: list[_Replica] = []
        self.ready: list[_Replica] = []
        self.draining: list[_Replica] = []
        self.cold_starts: deque[float] = deque(maxlen=COLD_STARTS_KEPT)
        self.starts = self.peak = self.actions = 0
        self.billed_s = 0.0
        self.target = 0
        self.decisions: list[DecisionLine] = []
        self.output_by_block = np.zeros((self.duration_s // NEED_BLOCK_S + 2, 3))
        self.steps = 0

    # --- replicas ---------------------------------------------------------------------------------------------

    def create(self, now: int, *, at_once: bool = False) -> None:
        number = self.starts
        self.starts += 1
        took = 0 if at_once else max(1, math.ceil(self.setup.cold_start.draw_s(self.setup.seed, number)))
        self.pending.append(_Replica(number, now, now + took))

    def start_ready(self, now: int) -> None:
        came = [r for r in self.pending if r.ready_s <= now]
        if not came:
            return
        self.pending = [r for r in self.pending if r.ready_s > now]
        for replica in came:
            row = replica.row = self.free_rows.pop()
            self.replicas_high = max(self.replicas_high, row + 1)
            self.real[row] = 0.0
            self.real[row, k.F_END] = np.inf
            self.real[row, k.F_READY_AT] = now if replica.ready_s > replica.created_s else -1e9
            self.whole[row] = 0
            self.whole[row, k.I_OPEN] = self.whole[row, k.I_ALIVE] = 1
            self.ready.append(replica)
            if replica.ready_s > replica.created_s:
                self.cold_starts.append(float(replica.ready_s - replica.created_s))
        self.pump(now)

    def pump(self, now: int) -> None:
        self.series.reserve(now + 1)
        k.pump(
            float(now), self.real, self.whole, self.slots, self.gate, self.totals, self.model, self.limits,
            self.series.rows[now], self.setup.warm_s, self.replicas_high,
        )  # fmt: skip

    def work(self, replica: _Replica) -> float:
        return float(
            self.real[replica.row, k.F_PREFILL] + k.DECODE_WEIGHT * self.real[replica.row, k.F_DECODE]
        )

    def remove(self, replica: _Replica, now: int) -> None:
        self.billed_s += now - replica.created_s
        if replica.row >= 0:
            self.whole[replica.row] = 0
            self.real[replica.row] = 0.0
            self.real[replica.row, k.F_END] = np.inf
            self.free_rows.append(replica.row)

    def end_drained(self, now: int) -> None:
        if not self.draining:
            return
        left: list[_Replica] = []
        for replica in self.draining:
            row = self.whole[replica.row]
            if row[k.I_WAITING] + row[k.I_PREFILLING] + row[k.I_DECODING] == 0:
                self.remove(replica, now)
            else:
                left.append(replica)
        self.draining = left

    def scale(self, wanted: int, reason: str, now: int) -> None:
        wanted = min(max(wanted, self.setup.min_replicas), self.setup.max_replicas)
        if wanted != self.target:
            self.actions += 1
            self.decisions.append(DecisionLine(float(now), self.target, wanted, reason))
            self.target = wanted
        have = len(self.pending) + len(self.ready)
        if have < wanted and getattr(self.policy, "resumes_draining", False):
            for replica in sorted(self.draining, key=self.work, reverse=True)[: wanted - have]:
                self.draining.remove(replica)
                self.whole[replica.row, k.I_OPEN] = 1
                self.ready.append(replica)
                have += 1
            self.pump(now)
        for _ in range(wanted - have):
            self.create(now)
        excess = have - wanted
        if excess > 0:
            self.pending.sort(key=lambda r: r.created_s)
            while excess > 0 and self.pending:
                self.remove(self.pending.pop(), now)
                excess -= 1
            for replica in sorted(self.ready, key=self.work)[:excess]:
                self.ready.remove(replica)
                self.whole[replica.row, k.I_OPEN] = 0
                self.draining.append(replica)
        self.peak = max(self.peak, len(self.pending) + len(self.ready))

    def die(self, now: int, count: int) -> None:
        for replica in sorted(self.ready, key=self.work, reverse=True)[:count]:
            self.ready.remove(replica)
            k.kill(replica.row, self.real, self.whole, self.ring, self.slots, self.gate, self.totals)
            self.remove(replica, now)
            # Its controller makes another at once, for every policy.
            self.create(now)
        self.pump(now)

    # --- time -------------------------------------------------------------------------------------------------

    def grow(self, more: int) -> None:
        """Room for `more` requests; the arrays double."""
        size = len(self.slots)
        if size - int(self.gate[k.G_USED]) > more:
            return
        added = max(size, more + 1, 4096)
        slots = np.zeros((size + added, k.SLOT_COLUMNS), np.int32)
        slots[:size] = self.slots
        slots[size:, k.T_NEXT] = np.arange(size + 1, size + added + 1)
        slots[-1, k.T_NEXT] = int(self.gate[k.G_FREE])
        self.gate[k.G_FREE] = size
        clocks = np.zeros((size + added, 2))
        clocks[:size] = self.clocks
        self.slots, self.clocks = slots, clocks

    def advance(self, start: int, end: int, arrivals: Arrivals) -> None:
        self.grow(len(arrivals))
        self.series.reserve(end)
        if self.setup.keep_times:
            room = np.full((int(self.totals[k.X_REQUESTS]) + len(arrivals), 2), np.nan)
            room[: len(self.times)] = self.times
            self.times = room
        rows = self.series.rows
        rows[start:end, Signal.READY] = len(self.ready)
        rows[start:end, Signal.PENDING] = len(self.pending)
        rows[start:end, Signal.DRAINING] = len(self.draining)
        self.steps += k.advance(
            start, end, arrivals.at_s, arrivals.input_tokens, arrivals.output_tokens, arrivals.cached_tokens,
            self.real, self.whole, self.ring, self.clocks, self.slots, self.gate, self.lengths, rows, self.windows,
            self.ttft_bins, self.tpot_bins, self.totals, self.sums, self.model, self.limits, self.objective,
            self.setup.warm_s, self.replicas_high, self.times,
        )  # fmt: skip
        self.series.grow_to(end)
        if len(arrivals):
            block = (arrivals.at_s / NEED_BLOCK_S).astype(np.int64)
            first, last = int(block[0]), int(block[-1])
            for b in range(first, last + 1):
                lo, hi = (0, len(block)) if first == last else np.searchsorted(block, [b, b + 1])
                self.output_by_block[b] += (
                    hi - lo, arrivals.input_tokens[lo:hi].sum(),
                    arrivals.output_tokens[lo:hi].sum(),
                )  # fmt: skip

    def observation(self, now: int) -> Observation:
        lost = any(a <= now < b for a, b in self.setup.lost)
        if not lost:
            self.series.now = max(0, now - self.setup.sample_lag_s)
        views = []
        for replica in self.ready:
            f, i = self.real[replica.row].tolist(), self.whole[replica.row].tolist()
            views.append(
                ReplicaView(
                    uid=replica.uid,
                    ready_since_s=float(replica.ready_s),
                    queued=i[k.I_WAITING],
                    running=i[k.I_PREFILLING] + i[k.I_DECODING],
                    outstanding_prefill_tokens=int(f[k.F_PREFILL]),
                    outstanding_decode_tokens=max(int(f[k.F_DECODE]), 0),
                    kv_used_tokens=int(f[k.F_KV]),
                    step_time_s=f[k.F_STEP_S] / f[k.F_STEPS] if f[k.F_STEPS] else 0.0,
                )
            )
        if now % 10 == 0:
            self.real[:, k.F_STEP_S : k.F_STEPS + 1] = 0.0
        head = self.clocks[self.gate[k.G_HEAD], k.A_ARRIVED] if self.gate[k.G_COUNT] else now
        return Observation(
            now_s=float(now),
            objective=self.setup.objective,
            calibration=self.setup.calibration,
            min_replicas=self.setup.min_replicas,
            max_replicas=self.setup.max_replicas,
            target=self.target,
            ready=len(self.ready),
            pending_ages_s=tuple(
                float(now - r.created_s) for r in sorted(self.pending, key=lambda r: r.created_s)
            ),
            draining=len(self.draining),
            cold_starts_s=tuple(self.cold_starts),
            series=self.series,
            replicas=tuple(views),
            steps=StepSumsView(*self.sums.tolist()),
            oldest_wait_s=float(now - head),
            foresight=None,
            metrics_lost=lost,
        )


class Foresight:
    """Need in replicas of any interval of the trace, from a pass over it before the run."""

    def __init__(self, source: ArrivalSource, calibration: Calibration, tpot_s: float) -> None:
        blocks = math.ceil(source.duration_s / NEED_BLOCK_S)
        self.until_s = source.duration_s
        counts = np.zeros((blocks, 3))
        for start in range(0, blocks * NEED_BLOCK_S, 600):
            arrivals = source.between(float(start), min(float(start + 600), source.duration_s))
            if len(arrivals):
                block = np.minimum((arrivals.at_s / NEED_BLOCK_S).astype(np.int64), blocks - 1)
                counts[:, 0] += np.bincount(block, minlength=blocks)
                counts[:, 1] += np.bincount(block, arrivals.input_tokens, minlength=blocks)
                counts[:, 2] += np.bincount(block, arrivals.output_tokens, minlength=blocks)
        # Replica-seconds of each block, running.
        work = [needed(calibration, tpot_s, c[0] / NEED_BLOCK_S, c) * NEED_BLOCK_S for c in counts]
        self._work = np.concatenate([[0.0], np.cumsum(work)])

    def work_at(self, from_s: float, to_s: float) -> float:
        span_s = to_s - from_s
        return (self._until(to_s) - self._until(from_s)) / span_s if span_s > 0 else 0.0

    def _until(self, at_s: float) -> float:
        place = min(max(at_s, 0.0), self.until_s) / NEED_BLOCK_S
        return float(np.interp(place, np.arange(len(self._work)), self._work))


def needed(
    calibration: Calibration, tpot_s: float, rate_rps: float, counts: npt.NDArray[np.float64]
) -> float:
    """Replicas that carry `rate_rps` of requests whose sums are `counts` (requests, prompt, output tokens)."""
    if counts[0] <= 0 or rate_rps <= 0:
        return 0.0
    mix = Mix(input_tokens=counts[1] / counts[0], output_tokens=counts[2] / counts[0])
    carries = capacity(calibration, mix, NEED_TPOT_SHARE * tpot_s).requests_per_s
    return rate_rps / carries if carries > 0 else math.inf


def warm_up(setup: FleetSetup) -> float:
    """Compiles (or loads) the kernel; seconds."""
    begun = time.perf_counter()
    none = Arrivals(np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))

    class _Nothing:
        name, duration_s = "nothing", 1.0

        def between(self, start_s: float, end_s: float) -> Arrivals:
            return none

    fleet = Fleet(_Nothing(), None, setup)  # type: ignore[arg-type]
    fleet.create(0, at_once=True)
    fleet.start_ready(0)
    fleet.advance(0, 1, none)
    fleet.die(1, 1)
    return time.perf_counter() - begun


def run(
    source: ArrivalSource,
    policy: ScalingPolicy,
    setup: FleetSetup,
    progress: Callable[[float], None] | None = None,
    *,
    foresees: bool = False,
) -> RunResult:
    """The whole trace and the end of its last request. `progress` gets the second that is reached, each simulated hour."""
    compile_s = warm_up(setup)
    begun = time.perf_counter()
    fleet = Fleet(source, policy, setup)
    foresight = Foresight(source, setup.calibration, setup.objective.tpot_s) if foresees else None
    now, interval = 0, max(1, round(policy.interval_s))
    end = fleet.duration_s
    next_tick, restarts, deaths = 0, set(setup.restarts), deque(sorted(setup.deaths, key=lambda d: d.at_s))
    buffer, buffered_until = source.between(0.0, min(GRAIN_S * 12.0, source.duration_s)), 60.0
    first = int(np.searchsorted(buffer.at_s, 1.0))
    sums = np.array([first, buffer.input_tokens[:first].sum(), buffer.output_tokens[:first].sum()], float)
    start = setup.initial_replicas or math.ceil(
        min(needed(setup.calibration, setup.objective.tpot_s, float(first), sums), setup.max_replicas)
    )
    start = min(max(start, setup.min_replicas), setup.max_replicas)
    for _ in range(start):
        fleet.create(0, at_once=True)
    fleet.starts, fleet.target, fleet.peak = start, start, start
    fleet.start_ready(0)
    position = 0
    none = Arrivals(np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))
    while now < end or (fleet.gate[k.G_USED] > 0 and now < end + TAIL_LIMIT_S):
        while deaths and deaths[0].at_s <= now:
            fleet.die(now, deaths.popleft().replicas)
        fleet.start_ready(now)
        fleet.end_drained(now)
        if now in restarts and hasattr(policy, "restart"):
            policy.restart()
        if now >= next_tick:
            seen = fleet.observation(now)
            if foresight is not None:
                object.__setattr__(seen, "foresight", foresight)
            wanted = policy.decide(seen)
            fleet.scale(wanted.replicas, wanted.reason, now)
            fleet.end_drained(now)
            next_tick = now + interval
        until = min(
            now + GRAIN_S, next_tick, *(r.ready_s for r in fleet.pending if r.ready_s > now), now + GRAIN_S
        )
        if now < end:
            until = min(until, end)
            if until > buffered_until or position >= len(buffer):
                rest = slice(position, None)
                reach = min(max(float(until), buffered_until) + 60.0, source.duration_s)
                fresh = (
                    source.between(min(buffered_until, source.duration_s), reach)
                    if reach > buffered_until
                    else none
                )
                buffer = Arrivals(
                    np.concatenate([buffer.at_s[rest], fresh.at_s]),
                    np.concatenate([buffer.input_tokens[rest], fresh.input_tokens]),
                    np.concatenate([buffer.output_tokens[rest], fresh.output_tokens]),
                    np.concatenate([buffer.cached_tokens[rest], fresh.cached_tokens]),
                )
                position, buffered_until = 0, max(reach, buffered_until)
            cut = position + int(np.searchsorted(buffer.at_s[position:], float(until)))
            part = slice(position, cut)
            arrivals = Arrivals(
                buffer.at_s[part],
                buffer.input_tokens[part],
                buffer.output_tokens[part],
                buffer.cached_tokens[part],
            )
            position = cut
        else:
            arrivals = none
        fleet.advance(now, until, arrivals)
        if progress is not None and until // 3600 > now // 3600:
            progress(float(until))
        now = until
    for replica in (*fleet.pending, *fleet.ready, *fleet.draining):
        fleet.billed_s += now - replica.created_s
    wall_s = time.perf_counter() - begun
    return _result(fleet, now, wall_s, compile_s)


def _result(fleet: Fleet, now: int, wall_s: float, compile_s: float) -> RunResult:
    setup, x = fleet.setup, fleet.totals
    requests = int(x[k.X_REQUESTS])
    share = 1.0 / requests if requests else 0.0
    hours = fleet.billed_s / 3600.0 * GPUS_PER_REPLICA
    rows = fleet.series.rows[:now]
    tokens = float(
        rows[:, Signal.COMPLETED_INPUT_TOKENS].sum() + rows[:, Signal.COMPLETED_OUTPUT_TOKENS].sum()
    )
    used = fleet.windows[fleet.windows[:, 0] > 0]
    wanted = setup.objective.attainment
    summary = Summary(
        policy=setup.policy_name,
        requests=requests,
        attainment=float(x[k.X_OK]) * share if requests else 1.0,
        ttft_attainment=float(x[k.X_TTFT_OK]) * share if requests else 1.0,
        tpot_attainment=float(x[k.X_TPOT_OK]) * share if requests else 1.0,
        windows_5min_ok=float((used[:, 1] >= wanted * used[:, 0] - 1e-9).mean()) if len(used) else 1.0,
        gpu_hours=hours,
        cost_per_mtok=hours * setup.gpu_hour_cost / (tokens / 1e6) if tokens else 0.0,
        ttft_p50_s=quantile(fleet.ttft_bins, 0.5),
        ttft_p99_s=quantile(fleet.ttft_bins, 0.99),
        ttft_p999_s=quantile(fleet.ttft_bins, 0.999),
        tpot_p99_s=quantile(fleet.tpot_bins, 0.99),
        replica_starts=fleet.starts,
        scaling_actions=fleet.actions,
        peak_replicas=fleet.peak,
        wall_s=wall_s,
    )
    timeline, extra = _timeline(fleet, now)
    extra["steps"] = float(fleet.steps)
    return RunResult(summary, timeline, fleet.decisions, compile_s, {}, extra)


def _timeline(fleet: Fleet, now: int) -> tuple[Timeline, dict[str, float]]:
    minutes = now // 60
    rows = fleet.series.rows[: minutes * 60].reshape(minutes, 60, k.SIGNALS).mean(axis=1)
    blocks = fleet.output_by_block
    per_minute = np.zeros((minutes, 3))
    for m in range(minutes):
        per_minute[m] = blocks[m * 6 : m * 6 + 6].sum(axis=0)
    calibration, tpot_s = fleet.setup.calibration, fleet.setup.objective.tpot_s
    need = [needed(calibration, tpot_s, c[0] / 60.0, c) for c in per_minute]
    supply = rows[:, Signal.READY]
    difference = supply - np.array(need) if minutes else np.zeros(0)
    extra = {
        "over_replica_s": float(difference.clip(min=0).sum() * 60),
        "under_replica_s": float(-difference.clip(max=0).sum() * 60),
        "need_replica_s": float(np.sum(need) * 60),
    }
    windows = fleet.windows
    return (
        Timeline(
            minute_s=[60.0 * m for m in range(minutes)],
            arrivals_per_s=rows[:, Signal.ARRIVALS].tolist(),
            input_tok_s=rows[:, Signal.ARRIVED_INPUT_TOKENS].tolist(),
            output_tok_s=rows[:, Signal.GENERATED_TOKENS].tolist(),
            ready=supply.tolist(),
            pending=rows[:, Signal.PENDING].tolist(),
            draining=rows[:, Signal.DRAINING].tolist(),
            need=[float(n) for n in need],
            requests=[
                int(windows[m // 5, 0]) if m % 5 == 0 and m // 5 < len(windows) else 0 for m in range(minutes)
            ],
            within=[
                int(windows[m // 5, 1]) if m % 5 == 0 and m // 5 < len(windows) else 0 for m in range(minutes)
            ],
        ),
        extra,
    )


def quantile(bins: npt.NDArray[np.int64], share: float) -> float:
    """Upper edge of the bin that holds it: at most 0.5 % too high. 0.0 without values."""
    total = int(bins.sum())
    if total == 0:
        return 0.0
    place = int(np.searchsorted(np.cumsum(bins), math.ceil(share * total)))
    return k.BIN_LOW_S * math.exp(k.BIN_LOG * place)
