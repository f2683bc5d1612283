"""What is counted about requests, per fleet. Cumulative, so that a lost sample loses nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from moefleet_gateway.picking.lengths import bucket

T = TypeVar("T")

# The OpenTelemetry GenAI buckets, TTFT extended to the longest hold plus a long prefill.
TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 320.0, 640.0,
)  # fmt: skip
TPOT_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
)  # fmt: skip
# 60 minutes of samples every 5 s: what an operator that was away can still learn.
SAMPLE_EVERY_S = 5.0
SAMPLES_KEPT = 720


@dataclass(slots=True)
class Demand:
    """Counters of one fleet since the incarnation began."""

    arrivals: int = 0
    retries: int = 0
    shed: int = 0
    held: int = 0
    prompt_tokens: int = 0
    predicted_cached_tokens: int = 0
    predicted_output_tokens: int = 0
    served_requests: int = 0
    served_prompt_tokens: int = 0
    served_cached_tokens: int = 0
    served_output_tokens: int = 0
    failed: int = 0
    ttft_counts: list[int] = field(default_factory=lambda: [0] * (len(TTFT_BOUNDS_S) + 1))
    tpot_counts: list[int] = field(default_factory=lambda: [0] * (len(TPOT_BOUNDS_S) + 1))
    lengths: dict[tuple[int, int], int] = field(default_factory=dict)

    def arrived(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        self.arrivals += 1
        self.prompt_tokens += prompt_tokens
        self.predicted_cached_tokens += cached_tokens
        self.predicted_output_tokens += output_tokens
        key = bucket(prompt_tokens), bucket(output_tokens)
        self.lengths[key] = self.lengths.get(key, 0) + 1

    def served(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        self.served_requests += 1
        self.served_prompt_tokens += prompt_tokens
        self.served_cached_tokens += cached_tokens
        self.served_output_tokens += output_tokens

    def timed(self, ttft_s: float, stream_s: float, output_tokens: int) -> None:
        """`stream_s` is from the first byte to the last, so it covers all tokens but the first."""
        self.ttft_counts[bisect_left(TTFT_BOUNDS_S, ttft_s)] += 1
        if output_tokens > 1:
            self.tpot_counts[bisect_left(TPOT_BOUNDS_S, stream_s / (output_tokens - 1))] += 1


@dataclass(frozen=True, slots=True)
class QueueNow:
    requests: int = 0
    prompt_tokens: int = 0
    oldest_s: float = 0.0


class Ring(Generic[T]):
    """The newest samples with their numbers; a caller asks for those after the last one it saw."""

    def __init__(self, kept: int = SAMPLES_KEPT) -> None:
        self._samples: deque[tuple[int, T]] = deque(maxlen=kept)
        self.last_seq = 0

    def push(self, sample: T) -> int:
        self.last_seq += 1
        self._samples.append((self.last_seq, sample))
        return self.last_seq

    def after(self, seq: int) -> list[tuple[int, T]]:
        return [(n, sample) for n, sample in self._samples if n > seq]
