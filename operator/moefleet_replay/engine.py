"""What moves requests between two ticks: the seam between the fleet's replicas and the kernel or its plain reference.

A replica stands in a row. Whoever owns the rows opens, drains and clears them between two calls of `advance`, at whole seconds.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from moefleet_replay import kernel
from moefleet_replay import layout as k
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.fleet_setup import FleetSetup

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Load(NamedTuple):
    """The fields of `ReplicaView` after uid and ready_since_s."""

    queued: int
    running: int
    outstanding_prefill_tokens: int
    outstanding_decode_tokens: int
    kv_used_tokens: int
    step_time_s: float


class Engine(Protocol):
    # By the columns of layout: X_*; the 14 fields of StepTotals; per minute of arrival, requests and those inside both limits.
    totals: Floats
    sums: Floats
    minutes: Counts
    # Histograms of the ended requests, and of those with two tokens or more.
    ttft_bins: Counts
    tpot_bins: Counts
    # (minute of arrival, BINS // COARSE): TTFT of the ended requests.
    ttft_minutes: npt.NDArray[np.int32]
    # First and last token by request in the order of arrival, NaN before; empty when they are not kept.
    times: Floats

    def widen(self, rows: int) -> None:
        """So many more rows."""
        ...

    def open(self, row: int, now: int, *, warm: bool) -> None:
        """A ready replica, that takes requests."""
        ...

    def offer(self, row: int, takes: bool) -> None: ...

    def clear(self, row: int) -> None: ...

    def kill(self, row: int) -> None:
        """Its requests begin again at the end of the gateway's queue."""
        ...

    def pump(self, now: int) -> None:
        """What waits in the gateway goes to whoever has room."""
        ...

    def advance(self, start: int, end: int, arrivals: Arrivals, rows: Floats) -> int:
        """Runs the whole seconds [start, end), adds to `rows[second]` by Signal; returns steps."""
        ...

    def work(self, row: int) -> float:
        """As the router counts it."""
        ...

    def idle_since_s(self, row: int) -> float | None: ...

    def load(self, row: int, now: int) -> Load: ...

    def oldest_arrival_s(self) -> float | None:
        """Of what waits in the gateway."""
        ...

    def in_flight(self) -> int: ...


class CompiledEngine:
    def __init__(self, setup: FleetSetup, rows: int, duration_s: int, ring: int = k.RING) -> None:
        step, limits = setup.calibration.step, setup.calibration.limits
        self.warm_s, self.keep_times = setup.warm_s, setup.keep_times
        self.model = np.array([step.a_s, step.b_s, step.c_s, step.d_s, step.e_s])
        self.limits = np.array(
            [limits.max_sequences, limits.kv_max_tokens, limits.max_batch_tokens, setup.preempting], np.int64
        )
        self.objective = np.array([setup.objective.ttft_s, setup.objective.tpot_s])
        self.real = np.zeros((0, k.REAL_COLUMNS))
        self.whole = np.zeros((0, k.WHOLE_COLUMNS), np.int64)
        self.ring = np.zeros((0, ring), np.int32)
        self.recent = np.zeros((0, k.RECENT_SLOTS, 2))
        self.widen(rows)
        self.clocks = np.zeros((0, k.CLOCK_COLUMNS))
        self.slots = np.zeros((0, k.SLOT_COLUMNS), np.int32)
        self.gate = np.zeros(k.GATE_COLUMNS, np.int64)
        self.gate[k.G_FREE], self.gate[k.G_TOLD] = -1, setup.max_tokens_told
        self.lengths = np.zeros((k.CLASSES * k.LIMIT_CLASSES, k.LENGTH_COLUMNS))
        self.lengths[:, k.C_MEAN], self.lengths[:, k.C_WEIGHT] = k.PRIOR_OUTPUT_TOKENS, k.PRIOR_WEIGHT
        self.minutes = np.zeros((duration_s // 60 + 2, 2), np.int64)
        self.ttft_bins, self.tpot_bins = np.zeros(k.BINS, np.int64), np.zeros(k.BINS, np.int64)
        self.ttft_minutes = np.zeros((len(self.minutes), k.BINS // k.COARSE), np.int32)
        self.totals, self.sums = np.zeros(k.TOTALS), np.zeros(14)
        self.times: Floats = np.zeros((0, 2))
        self._rows_used = 0

    def widen(self, rows: int) -> None:
        more = np.zeros((rows, k.REAL_COLUMNS))
        more[:, k.F_END] = np.inf
        self.real = np.concatenate([self.real, more])
        nobody = np.zeros((rows, k.WHOLE_COLUMNS), np.int64)
        nobody[:, k.I_YOUNGEST] = -1
        self.whole = np.concatenate([self.whole, nobody])
        self.ring = np.concatenate([self.ring, np.full((rows, self.ring.shape[1]), -1, np.int32)])
        self.recent = np.concatenate([self.recent, np.zeros((rows, k.RECENT_SLOTS, 2))])

    def open(self, row: int, now: int, *, warm: bool) -> None:
        self._rows_used = max(self._rows_used, row + 1)
        kernel.clear(row, self.real, self.whole)
        self.recent[row] = 0.0
        self.real[row, k.F_READY_AT] = -np.inf if warm else now
        self.real[row, k.F_IDLE_AT] = now
        self.whole[row, k.I_OPEN] = self.whole[row, k.I_ALIVE] = 1

    def offer(self, row: int, takes: bool) -> None:
        self.whole[row, k.I_OPEN] = takes

    def clear(self, row: int) -> None:
        kernel.clear(row, self.real, self.whole)

    def kill(self, row: int) -> None:
        kernel.kill(row, self.real, self.whole, self.ring, self.slots, self.gate, self.lengths, self.totals)

    def pump(self, now: int) -> None:
        kernel.pump(
            float(now), self.real, self.whole, self.clocks, self.slots, self.gate, self.lengths, self.totals, self.warm_s,
            self._rows_used,
        )  # fmt: skip

    def advance(self, start: int, end: int, arrivals: Arrivals, rows: Floats) -> int:
        self._grow(len(arrivals))
        if self.keep_times:
            room = np.full((int(self.totals[k.X_REQUESTS]) + len(arrivals), 2), np.nan)
            room[: len(self.times)] = self.times
            self.times = room
        steps: int = kernel.advance(
            start, end, arrivals.at_s, arrivals.input_tokens, arrivals.output_tokens, arrivals.cached_tokens,
            self.real, self.whole, self.ring, self.recent, self.clocks, self.slots, self.gate, self.lengths, rows,
            self.minutes, self.ttft_bins, self.ttft_minutes, self.tpot_bins, self.totals, self.sums, self.model, self.limits,
            self.objective, self.warm_s, self._rows_used, self.times,
        )  # fmt: skip
        return steps

    def work(self, row: int) -> float:
        return float(self.real[row, k.F_PREFILL] + k.DECODE_WEIGHT * self.real[row, k.F_DECODE])

    def idle_since_s(self, row: int) -> float | None:
        i = self.whole[row]
        busy = i[k.I_RUNS] or i[k.I_WAITING] + i[k.I_PREFILLING] + i[k.I_DECODING] > 0
        return None if busy else float(self.real[row, k.F_IDLE_AT])

    def load(self, row: int, now: int) -> Load:
        f, i = self.real[row].tolist(), self.whole[row].tolist()
        # The end of the second before the last RECENT_S ones.
        before_s, before = self.recent[row, now % k.RECENT_SLOTS].tolist()
        steps = f[k.F_STEPS] - before
        return Load(
            queued=i[k.I_WAITING],
            running=i[k.I_PREFILLING] + i[k.I_DECODING],
            outstanding_prefill_tokens=int(f[k.F_PREFILL]),
            outstanding_decode_tokens=int(f[k.F_DECODE]),
            kv_used_tokens=int(f[k.F_KV] + f[k.F_FILLED]),
            step_time_s=(f[k.F_STEP_S] - before_s) / steps if steps else 0.0,
        )

    def oldest_arrival_s(self) -> float | None:
        return float(self.clocks[self.gate[k.G_HEAD], k.A_ARRIVED]) if self.gate[k.G_COUNT] else None

    def in_flight(self) -> int:
        return int(self.gate[k.G_USED])

    def _grow(self, more: int) -> None:
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
        clocks = np.zeros((size + added, k.CLOCK_COLUMNS))
        clocks[:size] = self.clocks
        self.slots, self.clocks = slots, clocks
