"""Prometheus metrics for people: the names that TensorRT-LLM has for its own (dashboards and the inference gateway extension
know them), and moefleet_runtime_* for what is ours. Nothing here decides anything; the operator scales on LoadSample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from moefleet_runtime.engine.base import EngineLoad

if TYPE_CHECKING:
    from moefleet_runtime.life import State

# Of the OpenTelemetry conventions for generative AI, extended as TensorRT-LLM does: a 128K prompt takes a while.
TTFT_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0),
)
TPOT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


class ServerMetrics:
    def __init__(self, *, model: str, kv_block_tokens: int) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._kv_block_tokens = kv_block_tokens
        self._ttft = Histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets=TTFT_BUCKETS_S,
            namespace="moefleet_runtime",
            registry=self.registry,
        )
        self._tpot = Histogram(
            "time_per_output_token_seconds",
            "Mean of each request's tokens after the first.",
            buckets=TPOT_BUCKETS_S,
            namespace="moefleet_runtime",
            registry=self.registry,
        )
        self._requests = Counter(
            "requests_total",
            "Requests that ended.",
            ["outcome"],
            namespace="moefleet_runtime",
            registry=self.registry,
        )
        self._state = Gauge(
            "state",
            "1 for the state that the replica is in.",
            ["state"],
            namespace="moefleet_runtime",
            registry=self.registry,
        )
        # TensorRT-LLM's name for the same thing.
        self._trtllm_ttft = Histogram(
            "trtllm_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            ["model_name"],
            buckets=TTFT_BUCKETS_S,
            registry=self.registry,
        ).labels(model)

    def watch(
        self,
        load: Callable[[], EngineLoad],
        *,
        refused: Callable[[], Mapping[str, int]],
        cut: Callable[[], int],
    ) -> None:
        """Reads the engine and the door at each scrape, in the scraper's thread."""
        self.registry.register(_EngineCollector(load, self._model, self._kv_block_tokens))
        self.registry.register(_DoorCollector(refused, cut))

    def ended(self, outcome: str, first_s: float | None, spread_s: float, tokens: int) -> None:
        self._requests.labels(outcome).inc()
        if first_s is not None:
            self._ttft.observe(first_s)
            self._trtllm_ttft.observe(first_s)
        if tokens > 1:
            self._tpot.observe(spread_s / (tokens - 1))

    def state(self, state: State, states: type[State]) -> None:
        for each in states:
            self._state.labels(each.name.capitalize()).set(1 if each is state else 0)


class _EngineCollector(Collector):
    def __init__(self, load: Callable[[], EngineLoad], model: str, kv_block_tokens: int) -> None:
        self._load = load
        self._model = model
        self._block = kv_block_tokens

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        used = math.ceil(load.kv_used_tokens / self._block)
        most = load.kv_max_tokens // self._block
        gauges = (
            ("trtllm_num_requests_running", "Requests in the batch.", load.active),
            ("trtllm_num_requests_waiting", "Requests that wait for a place.", load.queued),
            (
                "trtllm_kv_cache_utilization",
                "Share of the cache in use, 0 to 1.",
                used / most if most else 0.0,
            ),
            ("trtllm_kv_cache_max_blocks", "Blocks of the cache.", most),
            ("trtllm_kv_cache_used_blocks", "Blocks in use.", used),
            ("trtllm_kv_cache_free_blocks", "Blocks not in use.", max(most - used, 0)),
            ("trtllm_kv_cache_tokens_per_block", "Tokens of a block.", self._block),
            (
                "moefleet_runtime_outstanding_prefill_tokens",
                "Prompt tokens not computed yet.",
                load.outstanding_prefill_tokens,
            ),
            (
                "moefleet_runtime_outstanding_decode_tokens",
                "Answer tokens still allowed.",
                load.outstanding_decode_tokens,
            ),
        )
        for name, text, value in gauges:
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], float(value))
            yield family
        counters = (
            ("trtllm_prompt_tokens", "Prompt tokens taken in.", load.prompt_tokens_total),
            ("trtllm_generation_tokens", "Tokens generated.", load.output_tokens_total),
            ("moefleet_runtime_prompt_tokens", "Prompt tokens taken in.", load.prompt_tokens_total),
            (
                "moefleet_runtime_cached_tokens",
                "Of these, found in the prefix cache.",
                load.cached_tokens_total,
            ),
            ("moefleet_runtime_output_tokens", "Tokens generated.", load.output_tokens_total),
            ("moefleet_runtime_failed_steps", "Steps that failed.", load.failed_steps_total),
            (
                "moefleet_runtime_preempted",
                "Requests that gave way and were computed again.",
                load.preempted_total,
            ),
        )
        for name, text, value in counters:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], float(value))
            yield counter
        steps = SummaryMetricFamily(
            "trtllm_iteration_latency_seconds", "Time of a step.", labels=["model_name"]
        )
        steps.add_metric([self._model], load.steps.count, load.steps.time_s)
        yield steps


class _DoorCollector(Collector):
    def __init__(self, refused: Callable[[], Mapping[str, int]], cut: Callable[[], int]) -> None:
        self._refused = refused
        self._cut = cut

    def collect(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "moefleet_runtime_refused", "Requests answered with x-moefleet-refused.", labels=["reason"]
        )
        for reason, total in self._refused().items():
            refused.add_metric([reason], float(total))
        yield refused
        yield CounterMetricFamily(
            "moefleet_runtime_streams_cut",
            "Streams ended before their own end; 0 is the promise.",
            value=float(self._cut()),
        )
