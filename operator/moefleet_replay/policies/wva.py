"""llm-d's workload-variant-autoscaler: saturation V1, saturation V2, and V2 with the throughput analyzer.

Published: deanlorenz/llm-d-workload-variant-autoscaler at 2976e4e (ahead of llm-d's own main when it was read):
internal/saturationv1/analyzer.go; internal/engines/analyzers/saturation_v2/analyzer.go (computeReplicaCapacity, computeK2,
estimateSchedulerQueueDemand); internal/engines/analyzers/throughput/{analyzer,itl_model,observation_window,constants}.go;
internal/engines/saturation/engine_v2.go:465-503 (required and spare capacity); internal/engines/pipeline/analyzer_helpers.go:
333, 401 (ceil up, floor down; any analyzer raises, all must agree to lower); config.go:743 (loop 15 s).

    V1   a replica is saturated at KV >= 0.80 or queue >= 5; +1 when the others' mean spare KV < 0.10 or spare queue < 3;
         -1 when both would still hold without one; nothing while replicas start
    V2   tokens: capacity = median over replicas of min(0.8 * KV, k2), k2 = tokens in use seen when the queue was >= 5 (mean of
         the last 10, per output length), else min(B*O/(I+O), S) * (I + O/2); demand = tokens in use and waiting
         required = demand/0.85 - capacity * (ready + pending); spare = capacity * ready - demand/0.70
    TA   generated tokens/s: ITL(k) = A*k + B by least squares, capacity = 0.85*KV/(I_eff + O/2) / ITL(0.85), demand = arrival
         rate * O + queue / (2*ITL(0.85)); same two formulas

Replicas, not variants: one variant, so cost and roles do not matter. Actuation: wva_actuation.py.
Deviations: one loop for polling and deciding; peaks are of the polls of the last minute (upstream: max_over_time[1m] of
scrapes); the throughput analyzer sees fleet means per replica instead of each pod's own 1-minute rate of ITL; its queue term gets
the gateway's queue, which upstream passes as nil by a known bug; metrics lost means no decision.
The tuned knob is the utilisation that asks for more (scaleUpThreshold, V1: the spare-KV trigger); the boundary for less follows
at its shipped distance.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final

from moefleet_perf import Mix

from moefleet_replay.observation import Observation, ReplicaView, Signal
from moefleet_replay.policies.signals import mean_request
from moefleet_replay.policies.wva_actuation import Actuation
from moefleet_replay.policy import Knob, PolicySpec, Wanted

# Lengths and rates are Prometheus rates over these windows.
LENGTHS_WINDOW_S: Final = 300.0
RATE_WINDOW_S: Final = 60.0
K_SAT: Final = 0.85
BASELINE_ITL_S: Final = 0.006
QUEUE_DRAIN_FACTOR: Final = 2.0


def v1_change(
    replicas: Iterable[tuple[float, float]],
    *,
    kv_saturated: float = 0.80,
    queue_saturated: float = 5.0,
    kv_spare: float = 0.10,
    queue_spare: float = 3.0,
) -> int:
    """+1, 0 or -1 for the (KV share, queue length) of each replica."""
    spare = [
        (kv_saturated - kv, queue_saturated - queue)
        for kv, queue in replicas
        if kv < kv_saturated and queue < queue_saturated
    ]
    n = len(spare)
    mean_kv = sum(kv for kv, _ in spare) / n if n else 0.0
    mean_queue = sum(queue for _, queue in spare) / n if n else 0.0
    if mean_kv < kv_spare or mean_queue < queue_spare:
        return 1
    if n < 2:
        return 0
    more = n / (n - 1)
    safe = (
        kv_saturated - (kv_saturated - mean_kv) * more >= kv_spare
        and queue_saturated - (queue_saturated - mean_queue) * more >= queue_spare
    )
    return -1 if safe else 0


def derived_k2(mix: Mix, max_batch_tokens: int, max_sequences: int) -> float:
    """Tokens that a replica's batch and slots hold in steady state."""
    sequences = min(
        max_batch_tokens * mix.output_tokens / (mix.input_tokens + mix.output_tokens), max_sequences
    )
    return sequences * (mix.input_tokens + mix.output_tokens / 2)


def change_for(
    demand: float, capacity: float, ready: int, pending: int, *, up: float = 0.85, down: float = 0.70
) -> int:
    """Replicas that one analyzer adds (positive) or would let go (negative)."""
    if capacity <= 0:
        return 0
    required = demand / up - capacity * (ready + pending)
    if required > 0:
        return math.ceil(required / capacity - 1e-9)
    spare = capacity * ready - demand / down
    return -math.floor(max(0.0, spare) / capacity + 1e-9)


def combined(changes: Sequence[int]) -> int:
    """Any analyzer raises, all must agree to lower."""
    return max(changes, default=0)


class WvaV1:
    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._interval_s = knobs["interval_s"]
        self._kv_spare, self._queue_spare = knobs["kv_spare"], knobs["queue_spare"]
        self._kv_saturated, self._queue_saturated = knobs["kv_saturated"], knobs["queue_saturated"]
        self._peaks, self._actuation = Peaks(knobs["interval_s"]), Actuation()

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        if o.metrics_lost:
            return Wanted(o.target, "no metrics")
        peaks = self._peaks.add(o.replicas, o.calibration.limits.kv_max_tokens)
        if o.pending_ages_s or not o.replicas:
            return Wanted(o.target, "in transition: no decision")
        change = v1_change(
            peaks,
            kv_saturated=self._kv_saturated,
            queue_saturated=self._queue_saturated,
            kv_spare=self._kv_spare,
            queue_spare=self._queue_spare,
        )
        return self._actuation.follow(o, max(1, o.target + change), f"spare KV and queue ask for {change:+d}")


class Peaks:
    """KV share and queue of each replica, the highest of its polls of the last minute."""

    def __init__(self, interval_s: float) -> None:
        self._polls: deque[dict[int, tuple[float, float]]] = deque(maxlen=max(1, int(60.0 // interval_s)))

    def add(self, replicas: Sequence[ReplicaView], kv_max_tokens: int) -> list[tuple[float, float]]:
        """In the order of `replicas`."""
        now = {r.uid: (r.kv_used_tokens / kv_max_tokens, float(r.queued)) for r in replicas}
        self._polls.append(now)
        highest = []
        for uid, (kv, queue) in now.items():
            for poll in self._polls:
                before = poll.get(uid)
                if before is not None:
                    kv, queue = max(kv, before[0]), max(queue, before[1])  # noqa: PLW2901
            highest.append((kv, queue))
        return highest


class Saturation:
    """The V2 analyzer with its memory of what replicas held when they were full."""

    def __init__(self, kv_saturated: float = 0.8, queue_saturated: float = 5.0) -> None:
        self._kv_saturated, self._queue_saturated = kv_saturated, queue_saturated
        self._seen: dict[str, deque[float]] = {}

    def capacity(
        self,
        queue: float,
        tokens_in_use: float,
        kv_max_tokens: float,
        mix: Mix | None,
        batch: tuple[int, int] | None,
    ) -> float:
        """Tokens that a replica may hold; `batch` is (max batch tokens, max sequences) when they are known."""
        memory = kv_max_tokens * self._kv_saturated
        bucket = _output_bucket(mix.output_tokens if mix else 0.0)
        if queue >= self._queue_saturated and tokens_in_use > 0:
            self._seen.setdefault(bucket, deque(maxlen=10)).append(tokens_in_use)
            return min(memory, tokens_in_use)
        seen = self._seen.get(bucket)
        if seen:
            return min(memory, sum(seen) / len(seen))
        if batch and mix and mix.output_tokens > 0:
            return min(memory, derived_k2(mix, *batch))
        return memory

    def analyze(self, o: Observation, peaks: Sequence[tuple[float, float]], mix: Mix) -> tuple[float, float]:
        """(demand, capacity of a replica) in tokens."""
        limits = o.calibration.limits
        batch = (limits.max_batch_tokens, limits.max_sequences)
        demand, capacities = 0.0, []
        for kv, queue in peaks:
            in_use = kv * limits.kv_max_tokens
            capacities.append(self.capacity(queue, in_use, limits.kv_max_tokens, mix, batch))
            demand += in_use + queue * (mix.input_tokens + mix.output_tokens)
        queued = o.series.last(Signal.GATEWAY_QUEUED)
        hit = mix.cached_tokens / max(1.0, mix.input_tokens)
        demand += queued * (mix.input_tokens * (1 - hit) + mix.output_tokens)
        return demand, median(capacities)


class ThroughputAnalyzer:
    """ITL against KV share, learnt from what replicas do."""

    def __init__(self) -> None:
        self._window: deque[tuple[float, float, float]] = deque(maxlen=20)
        self._shape: tuple[float, float] | None = None
        self._baseline_s = BASELINE_ITL_S

    def observe(self, now_s: float, k: float, itl_s: float, mix: Mix) -> None:
        shape = (mix.input_tokens, mix.output_tokens)
        if self._shape is not None and any(
            abs(new - old) > 0.20 * old for new, old in zip(shape, self._shape, strict=True)
        ):
            self._window.clear()
        self._shape = shape
        if 0.15 <= k <= 0.85 and itl_s > 0:
            self._window.append((now_s, k, itl_s))
        while self._window and now_s - self._window[0][0] > 1800.0:
            self._window.popleft()

    def model(self, samples: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
        """(A, B) in seconds: least squares over the window, else through a fixed B over the present replicas."""
        ks = [k for _, k, _ in self._window]
        if len(ks) >= 10 and max(ks) - min(ks) >= 0.30:
            fit = itl_fit([(k, itl) for _, k, itl in self._window])
            if fit is not None:
                self._baseline_s = fit[1]
                return fit
        over = squares = 0.0
        for k, itl_s in samples:
            if k > 0 and itl_s > 0:
                over += (itl_s - self._baseline_s) * k
                squares += k * k
        slope = over / squares if squares > 0 else 0.0
        return (slope, self._baseline_s) if _valid(slope, self._baseline_s) else None

    def analyze(self, o: Observation, mix: Mix) -> tuple[float, float] | None:
        """(demand, capacity of a replica) in generated tokens/s; None when it has no model."""
        kv_max = o.calibration.limits.kv_max_tokens
        samples = [(r.kv_used_tokens / kv_max, r.step_time_s) for r in o.replicas]
        for k, itl_s in samples:
            self.observe(o.now_s, k, itl_s, mix)
        fit = self.model(samples)
        if fit is None:
            return None
        itl_s = fit[0] * K_SAT + fit[1]
        arrivals = o.series.mean(Signal.ARRIVALS, RATE_WINDOW_S) * mix.output_tokens
        queued = o.series.last(Signal.GATEWAY_QUEUED) / (QUEUE_DRAIN_FACTOR * itl_s)
        return arrivals + queued, decode_supply(mix, kv_max, itl_s)


def decode_supply(mix: Mix, kv_max_tokens: float, itl_sat_s: float) -> float:
    """Generated tokens/s of a replica whose KV is filled to K_SAT with such requests."""
    kv_per_request = (mix.input_tokens - mix.cached_tokens) + mix.output_tokens / 2
    return K_SAT * kv_max_tokens / kv_per_request / itl_sat_s


def itl_fit(samples: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """(A, B) of ITL = A*k + B by least squares over (k, seconds); None when the line is flat, falling or undetermined."""
    n = len(samples)
    if n < 2:
        return None
    sum_k = sum(k for k, _ in samples)
    sum_itl = sum(itl for _, itl in samples)
    squares = n * sum(k * k for k, _ in samples) - sum_k * sum_k
    if abs(squares) < 1e-12:
        return None
    slope = (n * sum(k * itl for k, itl in samples) - sum_k * sum_itl) / squares
    base = (sum_itl - slope * sum_k) / n
    return (slope, base) if _valid(slope, base) else None


def _valid(slope: float, base: float) -> bool:
    return slope > 1e-9 and slope * K_SAT + base > 0


def _output_bucket(output_tokens: float) -> str:
    return "short" if output_tokens < 100 else "medium" if output_tokens < 500 else "long"


class WvaV2:
    """V2, with or without the throughput analyzer beside it."""

    def __init__(self, knobs: Mapping[str, float], *, throughput: bool) -> None:
        self._interval_s = knobs["interval_s"]
        self._up = knobs["up"]
        self._down = knobs["up"] - knobs["band"]
        self._peaks, self._saturation = Peaks(knobs["interval_s"]), Saturation(knobs["kv_saturated"])
        self._throughput = ThroughputAnalyzer() if throughput else None
        self._actuation = Actuation()

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        mix = mean_request(o, LENGTHS_WINDOW_S)
        if o.metrics_lost or not o.replicas or mix is None:
            return Wanted(o.target, "no metrics")
        peaks = self._peaks.add(o.replicas, o.calibration.limits.kv_max_tokens)
        findings = [self._saturation.analyze(o, peaks, mix)]
        if self._throughput is not None:
            found = self._throughput.analyze(o, mix)
            # Without a model it has no vote.
            findings += [found] if found is not None else []
        pending = len(o.pending_ages_s)
        changes = [
            change_for(demand, capacity, o.ready, pending, up=self._up, down=self._down)
            for demand, capacity in findings
        ]
        current = o.ready + pending
        change = max(combined(changes), 1 - current)
        return self._actuation.follow(o, current + change, f"analyzers ask for {changes}")


_SOURCE: Final = "deanlorenz/llm-d-workload-variant-autoscaler 2976e4e internal/"
_INTERVAL: Final = Knob("interval_s", 15, 1, 600, "seconds between decisions (GLOBAL_OPT_INTERVAL)")
_KV: Final = Knob("kv_saturated", 0.8, 0.01, 1, "share of the KV cache at which a replica is saturated")
_V2: Final = (
    Knob("up", 0.85, 0.05, 1, "utilisation above which replicas are added (scaleUpThreshold)", tuned=True),
    Knob("band", 0.15, 0, 0.9, "how far below it they are removed (0.85 - scaleDownBoundary)"),
    _KV,
    _INTERVAL,
)


def _v2(knobs: Mapping[str, float]) -> WvaV2:
    return WvaV2(knobs, throughput=False)


def _throughput(knobs: Mapping[str, float]) -> WvaV2:
    return WvaV2(knobs, throughput=True)


SPECS = (
    PolicySpec(
        "wva-v1",
        "llm-d WVA saturation V1: one replica at a time by spare KV and queue.",
        _SOURCE + "saturationv1/analyzer.go",
        (
            Knob("kv_spare", 0.10, 0, 0.8, "mean spare KV share below which one is added", tuned=True),
            Knob("queue_spare", 3, 0, 1000, "mean spare queue below which one is added"),
            _KV,
            Knob("queue_saturated", 5, 1, 1000, "queue at which a replica is saturated"),
            _INTERVAL,
        ),
        WvaV1,
    ),
    PolicySpec(
        "wva-v2",
        "llm-d WVA saturation V2: tokens in use and waiting against token capacity.",
        _SOURCE + "engines/analyzers/saturation_v2/analyzer.go, engines/saturation/engine_v2.go:465-503",
        _V2,
        _v2,
    ),
    PolicySpec(
        "wva-throughput",
        "llm-d WVA saturation V2 with the throughput analyzer: any raises, all lower.",
        _SOURCE + "engines/analyzers/throughput/analyzer.go, engines/pipeline/analyzer_helpers.go:333,401",
        _V2,
        _throughput,
    ),
)
