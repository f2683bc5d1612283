"""Closed-form capacity of a replica for a mix of requests: no profiling grid, one division.

One replica in steady state takes x requests/s of I prompt tokens (I_eff of them not in the prefix cache) and O output tokens.
A step of time T then holds, on average (Little's law; a request decodes for O steps):

    p  = x*I_eff*T      prompt tokens          n  = x*O*T      sequences that decode
    kv = n*K            tokens of their context, K = I + O/2 (half of the output is there, on average)

Put into T = a + b*p + c*n + d*kv, with the marginal work of a request w = b*I_eff + O*(c + d*K):

    T = a + x*T*w   =>   T = a / (1 - x*w)

So the step time explodes as x*w, the share of time that is not launch overhead, comes near 1. The four limits:

    TPOT     T <= T*                 x <= (1 - a/T*) / w
    slots    n = x*O*T <= N          x <= N / (O*a + N*w)
    KV       n*K <= KV               x <= N'/ (O*a + N'*w) with N' = KV/K
    chunk    p + n <= C              x <= C / ((I_eff + O)*a + C*w)

Capacity is the least of them, and which one it is says what to change: the objective, the batch, the cache or the chunk.
Tokens/s are no unit of capacity: the same replica holds 1.4 times the tokens/s of chat that it holds of reasoning.
"""

from dataclasses import dataclass
from typing import Literal

from moefleet_perf.calibration import Calibration

Bound = Literal["TPOT", "Slots", "KVCache", "BatchTokens"]

# Slots and KV are filled to these shares: arrivals come in bunches, and a full replica queues before it is slow on average.
USABLE_SLOTS = 0.95
USABLE_KV = 0.85


@dataclass(frozen=True, slots=True)
class Mix:
    """The mean request. Cached prompt tokens cost no prefill, but they are attended to."""

    input_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0
    # Mean context of a sequence while it decodes, E[O*(I+O/2)]/E[O]; None takes the means, I + O/2, which is too
    # little when lengths vary much: long answers are the ones that are here.
    context_tokens: float | None = None

    @property
    def prefill_tokens(self) -> float:
        # The last prompt token is always computed: its output is the first token.
        return max(self.input_tokens - self.cached_tokens, 1.0)

    @property
    def decode_tokens(self) -> float:
        return max(self.output_tokens, 1.0)

    @property
    def decode_context_tokens(self) -> float:
        return (
            self.input_tokens + self.output_tokens / 2 if self.context_tokens is None else self.context_tokens
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica sustains inside the TPOT limit, and its state at that load."""

    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    bound: Bound
    step_time_s: float
    sequences: float
    # Marginal work of one request, seconds of step time.
    work_s: float

    @property
    def replica_s_per_request(self) -> float:
        """Replica-seconds that one request takes out of a replica at capacity; infinite when nothing fits."""
        return 1.0 / self.requests_per_s if self.requests_per_s > 0 else float("inf")


def work_s(calibration: Calibration, mix: Mix) -> float:
    """Marginal work of one request: w = b*I_eff + O*(c + d*K), in seconds of step time."""
    return prefill_work_s(calibration, mix) + decode_work_s(calibration, mix)


def prefill_work_s(calibration: Calibration, mix: Mix) -> float:
    # Each prompt token attends to what was before it: the cached part, and half of its own part on average.
    m, own = calibration.step, mix.prefill_tokens
    return m.b_s * own + m.e_s * own * (mix.cached_tokens + own / 2)


def decode_work_s(calibration: Calibration, mix: Mix) -> float:
    m = calibration.step
    return mix.decode_tokens * (m.c_s + m.d_s * mix.decode_context_tokens)


def capacity(
    calibration: Calibration,
    mix: Mix,
    tpot_s: float,
    *,
    usable_slots: float = USABLE_SLOTS,
    usable_kv: float = USABLE_KV,
    kv_reserved: bool = True,
) -> Capacity:
    """The derivation is above. An objective below the empty step time gives capacity 0, bound TPOT: no count of replicas meets it.

    `kv_reserved`: an engine that never evicts keeps room for the whole answer from the start, so a sequence takes K + O/2 of the
    cache and not K. With few tokens of cache that is the difference between a fleet that holds and one that queues for ever. All
    engines here are such (TensorRT-LLM's GUARANTEED_NO_EVICT), so everybody who sizes counts like that; False is for one that evicts."""
    a_s = calibration.step.a_s
    limits = calibration.limits
    w = work_s(calibration, mix)
    slots = limits.max_sequences * usable_slots
    held_tokens = mix.decode_context_tokens + (mix.decode_tokens / 2 if kv_reserved else 0.0)
    kv_slots = limits.kv_max_tokens * usable_kv / max(held_tokens, 1.0)
    chunk = float(limits.max_batch_tokens)
    by_bound: dict[Bound, float] = {
        "TPOT": max(0.0, 1.0 - a_s / tpot_s) / w,
        "Slots": slots / (mix.decode_tokens * a_s + slots * w),
        "KVCache": kv_slots / (mix.decode_tokens * a_s + kv_slots * w),
        "BatchTokens": chunk / ((mix.prefill_tokens + mix.decode_tokens) * a_s + chunk * w),
    }
    bound = min(by_bound, key=lambda b: by_bound[b])
    x = by_bound[bound]
    step_s = a_s / (1.0 - x * w)
    return Capacity(
        requests_per_s=x,
        input_tokens_per_s=x * mix.input_tokens,
        output_tokens_per_s=x * mix.output_tokens,
        bound=bound,
        step_time_s=step_s,
        sequences=x * mix.decode_tokens * step_s,
        work_s=w,
    )
