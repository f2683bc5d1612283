"""NVIDIA Dynamo's SLA planner for aggregated engines: throughput mode, load mode, and both.

Published: ai-dynamo 1.6.1 (wheel), dynamo/planner/core/throughput_scaling.py (_throughput_agg, _cap_throughput_replicas),
core/load_scaling.py (_advance_load_agg, _agg_prefill_scaling, _agg_decode_scaling, _scale_decision), core/state_machine.py
(_startup_reduction), core/perf_model/agg.py (find_best_engine_agg_rps, estimate_next_ttft), config/defaults.py.

    throughput   every 180 s: forecast requests, prompt and output lengths one step ahead; replicas = ceil(demand / engine rps),
                 at most 8 away from the ready ones; up is refused while replicas start, down cancels them
    engine rps   the largest batch whose step stays inside ITL and whose next prompt stays inside TTFT, by KV, slots and
                 the balance of prefill and decode: min(bs / (O*T), (C - bs) / (I_eff*T))
    load         every 5 s: one up when *every* engine's estimated TTFT (or ITL) is over the limit, one down when each engine
                 could take the queue and KV of a removed one (N/(N-1)) inside 0.8 of both
    both         throughput sets the floor, load moves above it

Limits are the objective's (upstream ships 500 ms and 50 ms); the tuned knob takes a share of the TPOT limit as the ITL
target, since the planner has no other headroom.
Deviations: the step time is the true calibration with its own term per sequence where upstream regresses on prompt tokens and KV
(it knows more than upstream, never less); the batch is found by bisection, which is the sweep's answer because both latencies
grow with the batch; no GPU or power budget besides the fleet's maximum;
predictors arima and prophet are stand-ins (predictors.py). `predictor`: 0 constant, 1 arima (default), 2 kalman, 3 prophet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from moefleet_perf import Calibration, Mix

from moefleet_replay.observation import Observation, ReplicaView, Signal
from moefleet_replay.policies.predictors import Arima, Constant, Kalman, Predictor, Prophet
from moefleet_replay.policies.signals import mean_request
from moefleet_replay.policy import Knob, PolicySpec, Wanted

MAX_HIT_RATE: Final = 0.95
# Seconds over which the load mode averages its step samples (64 samples of engines that step every 50-100 ms).
_RECENT_S: Final = 60.0
PREDICTORS: Final[tuple[Callable[[], Predictor], ...]] = (Constant, Arima, Kalman, Prophet)

StepTime = Callable[[float, float, float], float]


def next_ttft_s(
    step: StepTime, prompt_tokens: float, chunk_tokens: int, sequences: float, kv_tokens: float
) -> float:
    """Seconds until `prompt_tokens` are computed in chunks beside the present decodes."""
    if prompt_tokens <= 0:
        return 0.0
    full = math.ceil(prompt_tokens / chunk_tokens) - 1
    rest = prompt_tokens - full * chunk_tokens
    return full * step(chunk_tokens, sequences, kv_tokens) + step(rest, sequences, kv_tokens)


def engine_rps(
    step: StepTime,
    mix: Mix,
    *,
    chunk_tokens: int,
    ttft_s: float,
    itl_s: float,
    max_kv_tokens: int | None = None,
    max_sequences: int | None = None,
    accept_length: float = 1.0,
) -> tuple[float, float, float]:
    """(requests/s, TTFT, ITL in seconds) of one engine at the largest batch inside both limits; at batch 1 if none is."""
    input_tokens, output_tokens = mix.input_tokens, max(1.0, mix.output_tokens)
    computed = mix.input_tokens * (
        1 - min(MAX_HIT_RATE, mix.cached_tokens / mix.input_tokens if mix.input_tokens else 0)
    )
    context = input_tokens + output_tokens / 2
    kv_cap = max(1, int(max_kv_tokens / max(1.0, context))) if max_kv_tokens else 1024
    cap = max(1, min(kv_cap, max_sequences or kv_cap, chunk_tokens - 1))

    def balanced(batch: int) -> bool:
        return batch * accept_length * computed / output_tokens <= chunk_tokens - batch

    def latencies(batch: int) -> tuple[float, float, float]:
        prefill = min(batch * accept_length * computed / output_tokens, chunk_tokens)
        step_s = step(prefill, batch, batch * context)
        ttft = next_ttft_s(step, prefill + computed, chunk_tokens, batch, batch * context)
        return step_s, ttft, step_s / accept_length

    def inside(batch: int) -> bool:
        _, ttft, itl = latencies(batch)
        return balanced(batch) and ttft <= ttft_s and itl <= itl_s

    low, high = 1, cap
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if inside(middle) else (low, middle - 1)
    step_s, ttft, itl = latencies(low)
    decode = low * accept_length / (output_tokens * step_s)
    prefill_rps = math.inf if computed <= 0 else max(0.0, chunk_tokens - low) / (computed * step_s)
    return min(decode, prefill_rps), ttft, itl


class Throughput:
    """The forecast and the replicas for it; `desired` is None when nothing can be sized."""

    def __init__(self, knobs: Mapping[str, float]) -> None:
        make = PREDICTORS[round(knobs["predictor"])]
        self._requests, self._input, self._output, self._cached = make(), make(), make(), Constant()
        self._interval_s = knobs["interval_s"]
        self._itl_share, self._max_change = knobs["itl_share"], round(knobs["max_change"])
        self._shape: Mix | None = None

    def desired(self, o: Observation) -> int | None:
        if o.metrics_lost:
            return None
        requests = o.series.total(Signal.ARRIVALS, self._interval_s)
        self._shape = mean_request(o, self._interval_s) or self._shape
        if self._shape is None:
            return None
        self._requests.add(requests)
        # Idle windows carry the last lengths on.
        self._input.add(self._shape.input_tokens)
        self._output.add(self._shape.output_tokens)
        self._cached.add(self._shape.cached_tokens / max(1.0, self._shape.input_tokens))
        input_tokens = max(1.0, self._input.predict())
        mix = Mix(input_tokens, max(1.0, self._output.predict()), input_tokens * self._cached.predict())
        rps, _, _ = engine_rps(
            o.calibration.step.step_time_s,
            mix,
            chunk_tokens=o.calibration.limits.max_batch_tokens,
            ttft_s=o.objective.ttft_s,
            itl_s=o.objective.tpot_s * self._itl_share,
            max_kv_tokens=o.calibration.limits.kv_max_tokens,
            max_sequences=o.calibration.limits.max_sequences,
        )
        if rps <= 0:
            return None
        window_s = min(self._interval_s, max(o.now_s, 1.0))
        wanted = max(1, math.ceil(self._requests.predict() / window_s / rps))
        return capped(wanted, o.ready, self._max_change)


def capped(desired: int, current: int, max_change: int) -> int:
    """One observation moves a component by at most `max_change`."""
    return min(max(desired, 0, current - max_change), current + max_change)


class Sustained:
    """Starts are cancelled only by a second equal signal with the same replicas ready and starting."""

    def __init__(self) -> None:
        self._counts: tuple[int, int] | None = None

    def confirms(self, o: Observation, reduces: bool) -> bool:
        counts = (o.ready, len(o.pending_ages_s))
        before, self._counts = self._counts, counts if reduces else None
        return reduces and before == counts


class DynamoThroughput:
    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._throughput, self._interval_s = Throughput(knobs), knobs["interval_s"]
        self._sustained = Sustained()

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        desired = self._throughput.desired(o)
        if desired is None:
            return Wanted(o.target, "not ready to size: hold")
        reduces = bool(o.pending_ages_s) and desired <= o.ready
        if o.pending_ages_s and not self._sustained.confirms(o, reduces):
            return Wanted(o.target, f"{desired} wanted, but replicas are starting")
        return Wanted(desired, f"forecast asks for {desired}")


class Load:
    """The reactive arm. `desired` answers from the ready replicas' own queues and KV."""

    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._itl_share, self._sensitivity = knobs["itl_share"], knobs["sensitivity"]

    def desired(self, o: Observation) -> tuple[int, bool]:
        """(replicas, whether a reduction may cancel starts)."""
        prefill, prefill_refused = self._prefill(o)
        decode, decode_refused = self._decode(o)
        n = o.ready
        if prefill > n or decode > n:
            return n + 1, False
        cancel = not (prefill_refused or decode_refused)
        if prefill < n and decode < n:
            return max(1, n - 1), cancel
        return n, cancel

    def _prefill(self, o: Observation) -> tuple[int, bool]:
        mix = mean_request(o, _RECENT_S)
        if mix is None:
            return o.ready, False
        hit = min(MAX_HIT_RATE, mix.cached_tokens / max(1.0, mix.input_tokens))
        own = mix.input_tokens * (1 - hit)
        chunk, step = o.calibration.limits.max_batch_tokens, o.calibration.step.step_time_s
        limit, merge = o.objective.ttft_s, self._merge(o)
        all_over, refused = True, False
        for r in o.replicas:
            queued = r.outstanding_prefill_tokens
            if next_ttft_s(step, queued + own, chunk, r.running, r.kv_used_tokens) <= limit:
                all_over = False
            if merge is not None and not refused:
                running, kv = r.running * merge, r.kv_used_tokens * merge
                alone = next_ttft_s(step, own, chunk, running, kv)
                budget = (limit - alone) * self._sensitivity
                merged = next_ttft_s(step, queued * merge + own, chunk, running, kv)
                refused = budget <= 0 or merged - alone >= budget
        return self._step(o, all_over, merge, refused)

    def _decode(self, o: Observation) -> tuple[int, bool]:
        limit, merge = o.objective.tpot_s * self._itl_share, self._merge(o)
        kv_max = o.calibration.limits.kv_max_tokens
        steps = o.series.total(Signal.STEPS, _RECENT_S)
        prefill = o.series.total(Signal.PREFILLED_TOKENS, _RECENT_S) / steps if steps > 0 else 0.0
        all_over, refused = True, False
        for r in o.replicas:
            if self._itl_s(o.calibration, r, prefill, 1.0, 0) <= limit:
                all_over = False
            if merge is not None and not refused:
                queued = r.outstanding_prefill_tokens
                refused = (r.kv_used_tokens + queued) * merge >= kv_max or self._itl_s(
                    o.calibration, r, prefill, merge, queued
                ) >= limit * self._sensitivity
        return self._step(o, all_over, merge, refused)

    @staticmethod
    def _itl_s(
        calibration: Calibration, r: ReplicaView, prefill: float, scale: float, queued_prefill: int
    ) -> float:
        """A step with one more request in it."""
        context = r.kv_used_tokens / r.running if r.running else 0.0
        kv = (r.kv_used_tokens + queued_prefill) * scale + context
        return calibration.step.step_time_s(prefill, r.running * scale + 1, kv)

    @staticmethod
    def _merge(o: Observation) -> float | None:
        """What each survivor's load is multiplied by when one goes; None when the last ready one stays anyway."""
        if o.ready > 1:
            return o.ready / (o.ready - 1)
        return 1.0 if o.pending_ages_s else None

    @staticmethod
    def _step(o: Observation, all_over: bool, merge: float | None, refused: bool) -> tuple[int, bool]:
        if all_over:
            return o.ready + 1, False
        if merge is not None and not refused:
            return max(1, o.ready - 1), False
        return o.ready, refused


class DynamoLoad:
    """Load mode alone, or above the floor that throughput mode sets."""

    def __init__(self, knobs: Mapping[str, float], *, floor: bool) -> None:
        self._load, self._interval_s = Load(knobs), knobs["load_interval_s"]
        self._throughput = Throughput(knobs) if floor else None
        self._throughput_every_s = knobs.get("interval_s", 0.0)
        self._throughput_at_s = 0.0
        self._floor = 1
        self._sustained = Sustained()

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        if self._throughput and o.now_s - self._throughput_at_s >= self._throughput_every_s:
            self._throughput_at_s = o.now_s
            self._floor = self._throughput.desired(o) or self._floor
        if o.metrics_lost or not o.replicas:
            return Wanted(o.target, "no engine metrics")
        if o.draining or o.target != o.ready + len(o.pending_ages_s):
            return Wanted(o.target, "scaling in progress: observing only")
        wish, cancel = self._load.desired(o)
        wanted = max(wish, self._floor)
        if o.pending_ages_s:
            # Only a reduction touches starts: to the ready ones or below, and never as the echo of a wish to grow.
            reduces = wanted < o.ready or (wanted == o.ready and cancel)
            confirmed = self._sustained.confirms(o, reduces)
            return Wanted(wanted, "starts are not needed") if confirmed else Wanted(o.target, "starting")
        return Wanted(wanted, f"load asks for {wish}, floor {self._floor}")


_SOURCE: Final = "ai-dynamo 1.6.1 dynamo/planner/core/{throughput_scaling,load_scaling,state_machine}.py, core/perf_model/agg.py"
_ITL: Final = Knob("itl_share", 1.0, 0.1, 1, "ITL target as a share of the TPOT limit", tuned=True)
_THROUGHPUT: Final = (
    Knob("interval_s", 180, 10, 3600, "seconds between throughput decisions"),
    Knob("max_change", 8, 1, 1000, "most replicas per throughput decision"),
    Knob("predictor", 1, 0, 3, "0 constant, 1 arima, 2 kalman, 3 prophet (stand-ins: predictors.py)"),
)
_LOAD: Final = (
    Knob("load_interval_s", 5, 1, 300, "seconds between load decisions"),
    Knob("sensitivity", 0.8, 0.05, 1, "share of the limits that survivors must stay inside on the way down"),
)


def _load(knobs: Mapping[str, float]) -> DynamoLoad:
    return DynamoLoad(knobs, floor=False)


def _both(knobs: Mapping[str, float]) -> DynamoLoad:
    return DynamoLoad(knobs, floor=True)


SPECS = (
    PolicySpec(
        "dynamo-throughput",
        "Dynamo planner, throughput mode: forecast demand over profiled engine capacity.",
        _SOURCE,
        (_ITL, *_THROUGHPUT),
        DynamoThroughput,
    ),
    PolicySpec(
        "dynamo-load",
        "Dynamo planner, load mode: one replica at a time by estimated TTFT and ITL.",
        _SOURCE,
        (_ITL, *_LOAD),
        _load,
    ),
    PolicySpec(
        "dynamo-both",
        "Dynamo planner, both modes: throughput sets the floor, load moves above it.",
        _SOURCE,
        (_ITL, *_THROUGHPUT, *_LOAD),
        _both,
    ),
)
