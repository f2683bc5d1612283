"""The kernel's plain reference: the same fleet, request by request, built on `moefleet_perf.VirtualReplica`.

Slow and short: what the kernel does with rings and linked lists is here lists and dictionaries. Times, series, sums and totals of
both are equal to the last bit, apart from tokens in caches in the middle of a step (KV_USED_TOKENS), which VirtualReplica does not say.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np
from moefleet_perf import Arrival, Calibration, Step, VirtualReplica

from moefleet_replay import layout as k
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.engine import Counts, Floats, Load
from moefleet_replay.fleet_setup import FleetSetup
from moefleet_replay.observation import Signal


@dataclass(slots=True)
class _Request:
    number: int
    at_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    predicted_tokens: int
    first_s: float | None = None
    picked_s: float = 0.0


@dataclass(slots=True)
class _Class:
    """Answers of one class of prompts, as the gateway learns them."""

    mean: float = k.PRIOR_OUTPUT_TOKENS
    weight: float = k.PRIOR_WEIGHT
    running: int = 0
    busy_s: float = 0.0
    ended: float = 0.0
    at_s: float = 0.0
    lasted_s: float = 0.0
    lasted_weight: float = 0.0

    def count(self, now: float) -> None:
        self.busy_s += self.running * max(now - self.at_s, 0.0)
        self.at_s = now

    def expected(self, now: float) -> int:
        self.count(now)
        guess = self.mean
        if self.ended > 0 and self.lasted_s > 0:
            found = self.busy_s / self.ended / self.lasted_s
            if found >= k.LEAST_CORRECTION:
                guess *= min(found, k.MOST_CORRECTION)
        return max(int(guess + 0.5), 1)

    def learn(self, output: int, lasted_s: float, now: float) -> None:
        self.count(now)
        self.running -= 1
        self.weight = min(self.weight + 1.0, k.MEMORY)
        self.mean += (output - self.mean) / self.weight
        self.lasted_weight = min(self.lasted_weight + 1.0, k.MEMORY)
        self.lasted_s += (lasted_s - self.lasted_s) / self.lasted_weight
        kept = 1.0 - 1.0 / k.MEMORY
        self.busy_s *= kept
        self.ended = self.ended * kept + 1.0


@dataclass(slots=True)
class _Row:
    replica: VirtualReplica
    warm_from_s: float
    idle_since_s: float
    open: bool = True
    step: Step | None = None
    # Idle with something to do at this time.
    wakes_s: float | None = None
    held: dict[str, _Request] = field(default_factory=dict)
    outstanding_prefill: int = 0
    outstanding_decode: int = 0
    # Steps, and their time, at the ends of seconds.
    steps: int = 0
    step_s: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)

    @property
    def next_s(self) -> float:
        if self.step is not None:
            return self.step.end_s
        return math.inf if self.wakes_s is None else self.wakes_s

    @property
    def work(self) -> float:
        return self.outstanding_prefill + k.DECODE_WEIGHT * self.outstanding_decode

    @property
    def has_room(self) -> bool:
        return self.open and self.replica.queued < k.QUEUE_AHEAD


class ReferenceEngine:
    def __init__(self, setup: FleetSetup, rows: int, duration_s: int) -> None:
        self.setup = setup
        self.calibration: Calibration = setup.calibration
        self.rows: dict[int, _Row] = {}
        self.queue: deque[_Request] = deque()
        self.lengths: defaultdict[tuple[int, int], _Class] = defaultdict(_Class)
        self.totals: Floats = np.zeros(k.TOTALS)
        self.sums: Floats = np.zeros(14)
        self.minutes: Counts = np.zeros((duration_s // 60 + 2, 2), np.int64)
        self.ttft_bins: Counts = np.zeros(k.BINS, np.int64)
        self.ttft_minutes = np.zeros((len(self.minutes), k.BINS // k.COARSE), np.int32)
        self.tpot_bins: Counts = np.zeros(k.BINS, np.int64)
        self.times: Floats = np.zeros((0, 2))
        self._steps = 0

    # --- replicas ---------------------------------------------------------------------------------------------

    def widen(self, rows: int) -> None:
        """Any row will do."""

    def open(self, row: int, now: int, *, warm: bool) -> None:
        replica = VirtualReplica(self.calibration, preempting=self.setup.preempting)
        self.rows[row] = _Row(replica, -math.inf if warm else float(now), float(now))

    def offer(self, row: int, takes: bool) -> None:
        self.rows[row].open = takes

    def clear(self, row: int) -> None:
        # One that died is gone already.
        self.rows.pop(row, None)

    def kill(self, row: int) -> None:
        dead = self.rows.pop(row)
        for request in sorted(dead.held.values(), key=lambda r: r.number):
            request.first_s = None
            self._class(request.input_tokens, request.output_tokens).running -= 1
            self._hold(request)
        self.totals[k.X_RETRIES] += len(dead.held)

    def pump(self, now: int) -> None:
        while self.queue and (row := self._least()) is not None:
            self._submit(row, self._next_held(), float(now))

    def work(self, row: int) -> float:
        return self.rows[row].work

    def idle_since_s(self, row: int) -> float | None:
        found = self.rows[row]
        return None if found.held else found.idle_since_s

    def load(self, row: int, now: int) -> Load:
        found = self.rows[row]
        before_s, before = found.ends[-k.RECENT_SLOTS] if len(found.ends) >= k.RECENT_SLOTS else (0.0, 0)
        steps = found.steps - before
        return Load(
            queued=found.replica.queued,
            running=len(found.held) - found.replica.queued,
            outstanding_prefill_tokens=found.outstanding_prefill,
            outstanding_decode_tokens=found.outstanding_decode,
            kv_used_tokens=found.replica.kv_used_tokens,
            step_time_s=(found.step_s - before_s) / steps if steps else 0.0,
        )

    def oldest_arrival_s(self) -> float | None:
        return self.queue[0].at_s if self.queue else None

    def in_flight(self) -> int:
        return len(self.queue) + sum(len(row.held) for row in self.rows.values())

    # --- time -------------------------------------------------------------------------------------------------

    def advance(self, start: int, end: int, arrivals: Arrivals, rows: Floats) -> int:
        steps_before = self._steps
        self.times = np.vstack([self.times, np.full((len(arrivals), 2), np.nan)])
        coming = deque(
            zip(
                arrivals.at_s.tolist(),
                arrivals.input_tokens.tolist(),
                arrivals.output_tokens.tolist(),
                arrivals.cached_tokens.tolist(),
                strict=True,
            )
        )
        for second in range(start, end):
            signals = rows[second]
            while True:
                arrives_s = coming[0][0] if coming else math.inf
                next_s, which = min(((row.next_s, i) for i, row in self.rows.items()), default=(math.inf, -1))
                if min(arrives_s, next_s) >= second + 1:
                    break
                if arrives_s <= next_s:
                    self._arrive(*coming.popleft(), signals)
                else:
                    self._turn(self.rows[which], next_s, signals)
            self._state(signals)
        return self._steps - steps_before

    def _arrive(self, at_s: float, prompt: int, output: int, cached: int, signals: Floats) -> None:
        predicted = self._class(prompt, output).expected(at_s)
        if self.setup.max_tokens_told:
            predicted = min(predicted, output)
        number = int(self.totals[k.X_REQUESTS])
        self.totals[k.X_REQUESTS] += 1
        self.minutes[int(at_s / k.MINUTE_S), 0] += 1
        signals[Signal.ARRIVALS] += 1
        signals[Signal.ARRIVED_INPUT_TOKENS] += prompt
        signals[Signal.ARRIVED_CACHED_TOKENS] += cached
        signals[Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS] += predicted
        request = _Request(number, at_s, prompt, output, cached, predicted)
        row = None if self.queue else self._least()
        if row is None:
            self._hold(request)
        else:
            self._submit(row, request, at_s)

    def _class(self, prompt: int, output: int) -> _Class:
        return self.lengths[_bucket(prompt), _bucket(output) if self.setup.max_tokens_told else -1]

    def _turn(self, row: _Row, now: float, signals: Floats) -> None:
        """What runs ends, the next step begins, and the gateway fills up its queue."""
        if row.step is not None:
            self._end(row, row.step, now, signals)
        row.wakes_s = None
        queued, preemptions = row.replica.queued, row.replica.preemptions
        row.step = row.replica.run_step(now)
        preempted = row.replica.preemptions - preemptions
        self.totals[k.X_PREEMPTIONS] += preempted
        signals[Signal.ADMITTED] += queued + preempted - row.replica.queued
        # What was preempted is to be read again.
        row.outstanding_prefill = row.replica.outstanding_prefill_tokens
        if row.step is None:
            row.idle_since_s = now
        else:
            row.outstanding_prefill += row.step.prefill_tokens
        while self.queue and row.has_room:
            self._submit(row, self._next_held(), now)

    def _end(self, row: _Row, step: Step, now: float, signals: Floats) -> None:
        took_s, chunk, n, kv = now - step.start_s, step.prefill_tokens, step.sequences, step.kv_tokens
        self._steps += 1
        self.sums += (
            1.0, took_s, chunk, n, kv, took_s * chunk, took_s * n, took_s * kv,
            chunk * chunk, chunk * n, chunk * kv, n * n, n * kv, kv * kv,
        )  # fmt: skip
        signals[Signal.STEPS] += 1
        signals[Signal.STEP_TIME_SUM_S] += took_s
        signals[Signal.PREFILLED_TOKENS] += chunk
        signals[Signal.GENERATED_TOKENS] += len(step.tokens)
        row.step = None
        row.steps += 1
        row.step_s += took_s
        row.outstanding_prefill -= chunk
        ended = set(step.finished)
        # In the order of the kernel's buckets: of those that decoded, who began last comes first; then prompts that are done.
        decoded, prefilled = step.tokens[:n], step.tokens[n:]
        for name in prefilled:
            request = row.held[name]
            if request.first_s is None:
                request.first_s = now
                signals[Signal.FIRST_TOKENS] += 1
                signals[Signal.TTFT_SUM_S] += now - request.at_s
        for name in (*reversed(decoded), *prefilled):
            if name in ended:
                request = row.held.pop(name)
                row.outstanding_decode -= request.predicted_tokens
                self._complete(request, now, signals)

    def _complete(self, request: _Request, now: float, signals: Floats) -> None:
        assert request.first_s is not None
        objective = self.setup.objective
        ttft_s = request.first_s - request.at_s
        self.ttft_bins[_bin(ttft_s)] += 1
        self.ttft_minutes[int(request.at_s / k.MINUTE_S), _bin(ttft_s) // k.COARSE] += 1
        tpot_ok = True
        if request.output_tokens > 1:
            tpot_s = (now - request.first_s) / (request.output_tokens - 1)
            self.tpot_bins[_bin(tpot_s)] += 1
            tpot_ok = tpot_s <= objective.tpot_s
            signals[Signal.TPOT_COUNT] += 1
            signals[Signal.TPOT_SUM_S] += tpot_s
        ttft_ok = ttft_s <= objective.ttft_s
        self.totals[k.X_ENDED] += 1
        self.totals[k.X_TTFT_OK] += ttft_ok
        self.totals[k.X_TPOT_OK] += tpot_ok
        signals[Signal.COMPLETED] += 1
        signals[Signal.COMPLETED_INPUT_TOKENS] += request.input_tokens
        signals[Signal.COMPLETED_OUTPUT_TOKENS] += request.output_tokens
        if ttft_ok and tpot_ok:
            self.totals[k.X_OK] += 1
            signals[Signal.COMPLETED_IN_OBJECTIVE] += 1
            self.minutes[int(request.at_s / k.MINUTE_S), 1] += 1
        of_class = self._class(request.input_tokens, request.output_tokens)
        of_class.learn(request.output_tokens, now - request.picked_s, now)
        self.times[request.number] = request.first_s, now

    def _state(self, signals: Floats) -> None:
        signals[Signal.GATEWAY_QUEUED] = len(self.queue)
        signals[Signal.OUTSTANDING_PREFILL_TOKENS] = sum(r.input_tokens for r in self.queue)
        signals[Signal.OUTSTANDING_DECODE_TOKENS] = sum(r.predicted_tokens for r in self.queue)
        for row in self.rows.values():
            signals[Signal.REPLICA_QUEUED] += row.replica.queued
            signals[Signal.RUNNING] += len(row.held) - row.replica.queued
            signals[Signal.OUTSTANDING_PREFILL_TOKENS] += row.outstanding_prefill
            signals[Signal.OUTSTANDING_DECODE_TOKENS] += row.outstanding_decode
            signals[Signal.KV_USED_TOKENS] += row.replica.kv_used_tokens
            row.ends.append((row.step_s, row.steps))

    # --- router -----------------------------------------------------------------------------------------------

    def _least(self) -> _Row | None:
        open_rows = [(row.work, i) for i, row in self.rows.items() if row.has_room]
        return self.rows[min(open_rows)[1]] if open_rows else None

    def _hold(self, request: _Request) -> None:
        self.queue.append(request)
        self.totals[k.X_HELD_PREFILL] += request.input_tokens
        self.totals[k.X_HELD_DECODE] += request.predicted_tokens

    def _next_held(self) -> _Request:
        request = self.queue.popleft()
        self.totals[k.X_HELD_PREFILL] -= request.input_tokens
        self.totals[k.X_HELD_DECODE] -= request.predicted_tokens
        return request

    def _submit(self, row: _Row, request: _Request, now: float) -> None:
        warm = 1.0 if self.setup.warm_s <= 0 else min(1.0, (now - row.warm_from_s) / self.setup.warm_s)
        cached = min(int(request.cached_tokens * warm), request.input_tokens - 1)
        request.picked_s = now
        of_class = self._class(request.input_tokens, request.output_tokens)
        of_class.count(now)
        of_class.running += 1
        name = str(request.number)
        row.replica.submit(Arrival(name, now, request.input_tokens, request.output_tokens, cached))
        row.held[name] = request
        row.outstanding_prefill += request.input_tokens - cached
        row.outstanding_decode += request.predicted_tokens
        if row.step is None and row.wakes_s is None:
            row.wakes_s = now


def _bucket(tokens: int) -> int:
    return min(k.CLASSES - 1, max(0, tokens.bit_length() - 1))


def _bin(value_s: float) -> int:
    if value_s <= k.BIN_LOW_S:
        return 0
    return min(int(math.log(value_s / k.BIN_LOW_S) / k.BIN_LOG) + 1, k.BINS - 1)
