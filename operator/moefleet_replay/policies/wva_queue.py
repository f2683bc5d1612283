"""llm-d's workload-variant-autoscaler with its queueing model: a state-dependent M/M/1 queue sized for TTFT and ITL.

Published: deanlorenz/llm-d-workload-variant-autoscaler at 2976e4e, internal/queueing/analyzer/{queueanalyzer,mm1modelstatedependent}.go,
internal/engines/analyzers/queueingmodel/analyzer.go:280-340 (replicas), :501-573 (limits from a multiplier),
defaults.go (k = 3, queue of 100).

    iteration   T(n) = alpha + n*(beta*(I+O)/(O+1) + gamma*(I+O/2))
    prefill     T(n) + (beta+gamma)*I           decode   T(n) + beta + gamma*(I+O/2)
    service     mu(n) = n / (prefill(n) + O*decode(n)), up to the largest batch
    capacity    the largest arrival rate whose mean TTFT and mean ITL stay inside the limits;  replicas = ceil(rate / capacity)
    limits      k*alpha + (beta+gamma)*I and k*alpha + beta + gamma*(I+(O+1)/2): utilisation 1 - 1/k (k = 3: 0.67)

Deviations: alpha, beta and gamma come from the true calibration, beta so that the iteration time is right for the present mix,
where upstream learns them with an extended Kalman filter from TTFT and ITL; the limits are never looser than the objective's;
sizes are computed for lengths rounded to 2 % and kept, since a queue of thousands of states is solved for each; pending replicas
and the gateway's queue play no part, as upstream. k starts above 2: the mean TTFT holds two iterations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from moefleet_perf import Calibration, Mix

from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.signals import mean_request
from moefleet_replay.policies.wva_actuation import Actuation
from moefleet_replay.policy import Knob, PolicySpec, Wanted

MAX_QUEUE: Final = 100
RATE_WINDOW_S: Final = 300.0
# Lengths are rounded to steps of 2 % before a queue is solved for them.
_LENGTH_STEP: Final = math.log(1.02)


@dataclass(frozen=True, slots=True)
class Service:
    """Iteration time of a batch; seconds and seconds per token."""

    alpha_s: float
    beta_s: float
    gamma_s: float

    def iteration_s(self, input_tokens: float, output_tokens: float, batch: float) -> float:
        compute = (input_tokens + output_tokens) / (output_tokens + 1)
        memory = input_tokens + output_tokens / 2
        return self.alpha_s + batch * (self.beta_s * compute + self.gamma_s * memory)

    def prefill_s(self, input_tokens: float, output_tokens: float, batch: float) -> float:
        if input_tokens == 0:
            return 0.0
        return (
            self.iteration_s(input_tokens, output_tokens, batch) + (self.beta_s + self.gamma_s) * input_tokens
        )

    def decode_s(self, input_tokens: float, output_tokens: float, batch: float) -> float:
        memory = input_tokens + output_tokens / 2
        return self.iteration_s(input_tokens, output_tokens, batch) + self.beta_s + self.gamma_s * memory


class Queue:
    """One replica: at most `max_batch` in service and `max_queue` waiting, served at a rate that depends on how many there are."""

    def __init__(
        self, service: Service, input_tokens: float, output_tokens: float, max_batch: int, max_queue: int
    ) -> None:
        self._service, self._input, self._output = service, input_tokens, output_tokens
        self._max_batch, self._states = max_batch, max_batch + max_queue
        self._log_rates = [
            math.log(
                n
                / (
                    service.prefill_s(input_tokens, output_tokens, n)
                    + output_tokens * service.decode_s(input_tokens, output_tokens, n)
                )
            )
            for n in range(1, max_batch + 1)
        ]

    @property
    def max_rate(self) -> float:
        """Requests/s just below what the fullest batch serves."""
        return math.exp(self._log_rates[-1]) * 0.999

    @property
    def min_rate(self) -> float:
        return math.exp(self._log_rates[0]) * 0.001

    def latencies(self, rate: float) -> tuple[float, float, float]:
        """(mean TTFT s, mean ITL s, requests/s served) at `rate` requests/s."""
        in_service, in_system, lost = self._occupancy(rate)
        served = rate * (1 - lost)
        service_s = in_service / served
        waiting_s = max(0.0, in_system / served - service_s)
        prefill_s = self._service.prefill_s(self._input, self._output, in_service)
        itl_s = (service_s - prefill_s) / self._output
        return waiting_s + prefill_s + itl_s, itl_s, served

    def _occupancy(self, rate: float) -> tuple[float, float, float]:
        """(mean in service, mean in the system, share that finds it full)."""
        log_rate, rates, last = math.log(rate), self._log_rates, len(self._log_rates) - 1
        logs = [0.0]
        for n in range(self._states):
            logs.append(logs[-1] + log_rate - rates[min(n, last)])
        top = max(logs)
        total = in_service = in_system = final = 0.0
        for n, value in enumerate(logs):
            # States e^-40 below the likeliest do not count.
            if value < top - 40.0:
                continue
            p = math.exp(value - top)
            total += p
            in_system += n * p
            in_service += min(n, self._max_batch) * p
            if n == self._states:
                final = p
        return in_service / total, in_system / total, final / total

    def capacity(self, ttft_s: float, itl_s: float) -> float:
        """The largest rate inside both limits; 0.0 when even a trickle is outside."""
        low, high = self.min_rate, self.max_rate

        def inside(rate: float) -> bool:
            ttft, itl, _ = self.latencies(rate)
            return ttft <= ttft_s and itl <= itl_s

        if not inside(low):
            return 0.0
        if inside(high):
            return high
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if inside(middle) else (low, middle)
        return low


def service_of(calibration: Calibration, mix: Mix) -> Service:
    """The parameters that make the iteration time of this mix true."""
    m = calibration.step
    compute = (mix.input_tokens + mix.output_tokens) / (mix.output_tokens + 1)
    per_sequence = m.b_s * mix.prefill_tokens / mix.decode_tokens + m.c_s
    return Service(m.a_s, per_sequence / compute, m.d_s)


def inferred_limits(
    service: Service, input_tokens: float, output_tokens: float, k: float
) -> tuple[float, float]:
    """(TTFT, ITL) in seconds at utilisation 1 - 1/k."""
    iteration = k * service.alpha_s
    return (
        iteration + (service.beta_s + service.gamma_s) * input_tokens,
        iteration + service.beta_s + service.gamma_s * (input_tokens + (output_tokens + 1) / 2),
    )


@lru_cache(maxsize=4096)
def _capacity(
    calibration: Calibration,
    input_step: int,
    output_step: int,
    hit_pct: int,
    limits: tuple[float, float, float],
) -> float:
    ttft_s, itl_s, k = limits
    input_tokens, output_tokens = math.exp(input_step * _LENGTH_STEP), math.exp(output_step * _LENGTH_STEP)
    mix = Mix(input_tokens, output_tokens, input_tokens * hit_pct / 100)
    service = service_of(calibration, mix)
    if k > 1.0:
        inferred = inferred_limits(service, input_tokens, output_tokens, k)
        ttft_s, itl_s = min(ttft_s, inferred[0]), min(itl_s, inferred[1])
    kv_batch = int(calibration.limits.kv_max_tokens / (input_tokens + output_tokens / 2))
    batch = max(1, min(calibration.limits.max_sequences, kv_batch))
    return Queue(service, input_tokens, output_tokens, batch, MAX_QUEUE).capacity(ttft_s, itl_s)


class WvaQueue:
    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._interval_s, self._k, self._itl_share = knobs["interval_s"], knobs["k"], knobs["itl_share"]
        self._actuation = Actuation()

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        mix = mean_request(o, RATE_WINDOW_S)
        if o.metrics_lost or mix is None:
            return Wanted(o.target, "no traffic to size for")
        capacity = _capacity(
            o.calibration,
            round(math.log(max(1.0, mix.input_tokens)) / _LENGTH_STEP),
            round(math.log(max(1.0, mix.output_tokens)) / _LENGTH_STEP),
            round(100 * mix.cached_tokens / max(1.0, mix.input_tokens)),
            (o.objective.ttft_s, o.objective.tpot_s * self._itl_share, self._k),
        )
        if capacity <= 0:
            return Wanted(o.target, "no rate is inside the limits")
        rate = o.series.mean(Signal.ARRIVALS, RATE_WINDOW_S)
        wanted = max(1, math.ceil(rate / capacity - 1e-9))
        return self._actuation.follow(o, wanted, f"{rate:.1f} requests/s over {capacity:.1f} a replica")


SPECS = (
    PolicySpec(
        "wva-queue",
        "llm-d WVA queueing model: arrival rate over what a state-dependent queue carries inside the limits.",
        "deanlorenz/llm-d-workload-variant-autoscaler 2976e4e internal/queueing/analyzer/queueanalyzer.go,"
        " internal/engines/analyzers/queueingmodel/analyzer.go:280-340,501-573",
        (
            Knob(
                "k", 3.0, 1.01, 100, "limits at k times the empty iteration: utilisation 1 - 1/k", tuned=True
            ),
            Knob("itl_share", 1.0, 0.05, 1, "ITL limit as a share of the TPOT limit"),
            Knob("interval_s", 15, 1, 600, "seconds between decisions (GLOBAL_OPT_INTERVAL)"),
        ),
        WvaQueue,
    ),
)
