"""Prometheus metrics, read from the counters when somebody asks. For people; nothing scales by them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.demand import TPOT_BOUNDS_S, TTFT_BOUNDS_S

_LABELS = ["namespace", "fleet", "model"]
_COUNTERS = (
    ("requests", "arrivals", "Requests that arrived, each once"),
    ("retries", "retries", "Requests that a client sent again"),
    ("shed", "shed", "Requests refused for want of a place or a replica"),
    ("held", "held", "Requests that had to wait for a replica"),
    ("failed", "failed", "Requests that ended with an error of ours"),
    ("served", "served_requests", "Requests that ended with their usage"),
    ("prompt_tokens", "served_prompt_tokens", "Prompt tokens served"),
    ("cached_tokens", "served_cached_tokens", "Prompt tokens that came from a prefix cache"),
    ("output_tokens", "served_output_tokens", "Tokens generated"),
)


class GatewayCollector(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        core = self._gateway.core
        lanes = [
            (lane, [lane.fleet.namespace, lane.fleet.name, lane.fleet.model]) for lane in core.lanes.values()
        ]
        for name, field, text in _COUNTERS:
            counter = CounterMetricFamily(f"moefleet_gateway_{name}", text, labels=_LABELS)
            for lane, labels in lanes:
                counter.add_metric(labels, getattr(lane.demand, field))
            yield counter
        queue = GaugeMetricFamily("moefleet_gateway_queue_requests", "Requests that wait now", labels=_LABELS)
        flying = GaugeMetricFamily(
            "moefleet_gateway_in_flight_requests", "Requests that run now", labels=_LABELS
        )
        trust = GaugeMetricFamily(
            "moefleet_gateway_prefix_trust",
            "Cached prompt tokens over those that known prefixes promised; 0: prefixes do not move picks",
            labels=_LABELS,
        )
        for lane, labels in lanes:
            queue.add_metric(labels, len(lane.waiting))
            flying.add_metric(labels, lane.in_flight)
            trust.add_metric(labels, lane.trust.value)
        yield queue
        yield flying
        yield trust
        known = GaugeMetricFamily(
            "moefleet_gateway_prefix_hashes", "Prefixes of prompts whose holders are known"
        )
        known.add_metric([], len(core.prefixes))
        yield known
        for name, field, bounds, text in (
            (
                "time_to_first_byte_seconds",
                "ttft_counts",
                TTFT_BOUNDS_S,
                "Arrival to the first byte of the answer",
            ),
            (
                "time_per_output_token_seconds",
                "tpot_counts",
                TPOT_BOUNDS_S,
                "Between tokens, mean of a request",
            ),
        ):
            histogram = HistogramMetricFamily(f"moefleet_gateway_{name}", text, labels=_LABELS)
            for lane, labels in lanes:
                histogram.add_metric(labels, _cumulative(getattr(lane.demand, field), bounds), sum_value=None)
            yield histogram
        states = GaugeMetricFamily(
            "moefleet_gateway_endpoints", "Replicas by state", labels=["fleet", "state"]
        )
        count: dict[tuple[str, str], int] = {}
        for entry in core.endpoints.by_uid.values():
            key = entry.replica.fleet, entry.state.value
            count[key] = count.get(key, 0) + 1
        for (fleet, state), number in sorted(count.items()):
            states.add_metric([fleet, state], number)
        yield states
        lost = CounterMetricFamily("moefleet_gateway_lost_ends", "Requests whose end Envoy never told")
        lost.add_metric([], core.lost)
        yield lost
        rejected = CounterMetricFamily("moefleet_gateway_xds_rejected", "Configurations that Envoy refused")
        rejected.add_metric([], self._gateway.ads.rejected)
        yield rejected
        ready = GaugeMetricFamily("moefleet_gateway_ready", "1 after a full sync that Envoy acknowledged")
        ready.add_metric([], float(self._gateway.ready))
        yield ready


def _cumulative(counts: list[int], bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    out, total = [], 0
    for bound, number in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        total += number
        out.append((bound, float(total)))
    return out
