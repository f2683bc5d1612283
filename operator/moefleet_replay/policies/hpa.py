"""Kubernetes HorizontalPodAutoscaler, whole: the ratio, pods without metrics, behaviour policies and stabilisation.

Published: kubernetes/kubernetes at 0006726, pkg/controller/podautoscaler/replica_calculator.go (calcPlainMetricReplicas,
GetExternalPerPodMetricReplicas) and horizontal.go (reconcileAutoscaler, normalizeDesiredReplicasWithBehaviors); defaults from
pkg/apis/autoscaling/v2/defaults.go: up max(+4 pods, +100 %)/15 s at once, down 100 %/15 s after 300 s; sync 15 s, tolerance 0.1.
Later releases added a tolerance per direction, which nobody sets by default.

    pods metric      ratio = mean over measured pods / target;  desired = ceil(ratio * measured)
                     pods without metrics count 0 when that means up and `target` when it means down; if that turns the
                     direction round, or into the tolerance, nothing changes
    external metric  desired = ceil(total / target), unless total/(target*replicas) is inside the tolerance; pods that still
                     load are replicas here, so they are supply

A replica that loads weights has no metrics endpoint yet: it is a pod without metrics ("missing"), not an "unready" one.
What is measured is ours to choose, since Kubernetes ships no signal for engines. Targets are shares of what one replica carries
of the first hour's mean request (signals.ConfiguredCapacity): a number that an operator measures once and leaves in the
manifest. It is not the work law: when the mix changes the number stays, as it does in production.
Deviations: a ratio of exactly 1 changes nothing even when pods are missing (as upstream for Resource metrics); one metric at a time (upstream takes the highest of several); sync times carry no jitter; the controller's
restart is not modelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.signals import (
    Configured,
    ConfiguredCapacity,
    arriving_tokens_per_s,
    concurrency,
    served_tokens_per_s,
)
from moefleet_replay.policy import Knob, PolicySpec, Wanted

SOURCE: Final = (
    "kubernetes/kubernetes 0006726 pkg/controller/podautoscaler/{replica_calculator,horizontal}.go,"
    " pkg/apis/autoscaling/v2/defaults.go"
)
# Sums of floats are a hair above whole numbers; upstream counts in milli-units and has no such hair.
_EPSILON = 1e-9


def pods_metric_replicas(
    total: float,
    *,
    measured: int,
    target: float,
    current: int,
    tolerance: float = 0.1,
    unready: int = 0,
    missing: int = 0,
    missing_value: float | None = None,
) -> int:
    """Replicas for a Pods (or Resource) metric: `total` is the sum over the `measured` pods, `target` the wanted mean.

    `missing_value` is what a missing pod counts on the way down: the target, or a whole request for Resource metrics.
    """
    if measured == 0:
        return current
    ratio = total / (measured * target)
    if ratio == 1.0:
        return current
    rebalance = unready if ratio > 1.0 else 0
    if not rebalance and not missing:
        return current if abs(1.0 - ratio) <= tolerance + _EPSILON else math.ceil(ratio * measured - _EPSILON)
    counted = measured + missing + rebalance
    if ratio < 1.0:
        total += missing * (target if missing_value is None else missing_value)
    again = total / (counted * target)
    if (
        abs(1.0 - again) <= tolerance + _EPSILON
        or (ratio < 1.0 and again > 1.0)
        or (ratio > 1.0 and again < 1.0)
    ):
        return current
    desired = math.ceil(again * counted - _EPSILON)
    if (again < 1.0 and desired > current) or (again > 1.0 and desired < current):
        return current
    return desired


def external_metric_replicas(
    total: float, *, target: float, status_replicas: int, tolerance: float = 0.1
) -> int:
    """Replicas for an External (or Object) metric with an AverageValue target."""
    if status_replicas > 0 and abs(1.0 - total / (target * status_replicas)) <= tolerance + _EPSILON:
        return status_replicas
    return math.ceil(total / target - _EPSILON)


@dataclass(frozen=True, slots=True)
class Rules:
    """spec.behavior of one direction; `period_s` is that of both policies, selectPolicy is Max."""

    pods: int
    percent: float
    period_s: float = 15.0
    stabilization_s: float = 0.0


DEFAULT_UP: Final = Rules(pods=4, percent=100)
DEFAULT_DOWN: Final = Rules(pods=0, percent=100, stabilization_s=300.0)


class Behavior:
    """Stabilisation and rate limits of spec.behavior, with their memory."""

    def __init__(self, up: Rules = DEFAULT_UP, down: Rules = DEFAULT_DOWN) -> None:
        self._up, self._down = up, down
        self._recommended: deque[tuple[float, int]] = deque()
        # When, and by how much the target changed: positive up, negative down.
        self._events: deque[tuple[float, int]] = deque()

    def apply(self, now_s: float, current: int, desired: int, low: int, high: int) -> int:
        """The new target; the change is remembered as an event."""
        if not self._recommended:
            # The controller starts with what is there, so that a restart does not take everything down at once.
            self._recommended.append((now_s, current))
        wanted = self._limited(now_s, current, self._stabilized(now_s, current, desired), low, high)
        if wanted != current:
            self._events.append((now_s, wanted - current))
        return wanted

    def _stabilized(self, now_s: float, current: int, desired: int) -> int:
        up_s, down_s = self._up.stabilization_s, self._down.stabilization_s
        self._recommended.append((now_s, desired))
        while now_s - self._recommended[0][0] > max(up_s, down_s):
            self._recommended.popleft()
        lowest = highest = desired
        for at_s, value in self._recommended:
            if now_s - at_s < up_s:
                lowest = min(lowest, value)
            if now_s - at_s < down_s:
                highest = max(highest, value)
        if current < lowest:
            return lowest
        return min(current, highest)

    def _limited(self, now_s: float, current: int, wanted: int, low: int, high: int) -> int:
        longest = max(self._up.period_s, self._down.period_s)
        while self._events and now_s - self._events[0][0] >= longest:
            self._events.popleft()
        if wanted > current:
            return max(low, min(wanted, high, max(current, self._up_limit(now_s, current))))
        if wanted < current:
            return min(high, max(wanted, low, min(current, self._down_limit(now_s, current))))
        return max(low, min(wanted, high))

    def _start(self, now_s: float, current: int, period_s: float) -> int:
        """Replicas at the start of the period: without what changed inside it."""
        return current - sum(change for at_s, change in self._events if now_s - at_s < period_s)

    def _up_limit(self, now_s: float, current: int) -> int:
        start = self._start(now_s, current, self._up.period_s)
        return max(start + self._up.pods, math.ceil(start * (1 + self._up.percent / 100) - _EPSILON))

    def _down_limit(self, now_s: float, current: int) -> int:
        start = self._start(now_s, current, self._down.period_s)
        by_percent = int(start * (1 - self._down.percent / 100) + _EPSILON)
        return min(start - self._down.pods, by_percent) if self._down.pods else by_percent


class Metric(Protocol):
    """The proposal of one metric; None when it cannot be measured, which changes nothing."""

    def desired(self, o: Observation, tolerance: float) -> int | None: ...


class Share(Protocol):
    """Of what somebody once measured, the part that this metric counts."""

    def __call__(self, measured: Configured, /) -> float: ...


class FleetMetric:
    """A fleet total against a fixed number per replica, as a Pods or as an External metric."""

    def __init__(
        self,
        total: Callable[[Observation, float], float],
        per_replica: Share,
        target: float,
        window_s: float,
        *,
        external: bool,
    ) -> None:
        self._total, self._per_replica = total, per_replica
        self._target, self._window_s, self._external = target, window_s, external
        self._configured = ConfiguredCapacity()

    def desired(self, o: Observation, tolerance: float) -> int | None:
        measured = self._configured.of(o)
        if measured is None or o.metrics_lost:
            return None
        target = self._target * self._per_replica(measured)
        total = self._total(o, self._window_s)
        pending = len(o.pending_ages_s)
        if self._external:
            return external_metric_replicas(
                total, target=target, status_replicas=o.ready + pending, tolerance=tolerance
            )
        return pods_metric_replicas(
            total, measured=o.ready, target=target, current=o.target, tolerance=tolerance, missing=pending
        )


class KvMetric:
    """Share of the KV cache in use, mean over pods, as engines export it (vllm:kv_cache_usage_perc)."""

    def __init__(self, target: float, window_s: float) -> None:
        self._target, self._window_s = target, window_s

    def desired(self, o: Observation, tolerance: float) -> int | None:
        if o.metrics_lost:
            return None
        used = o.series.mean(Signal.KV_USED_TOKENS, self._window_s)
        return pods_metric_replicas(
            used / o.calibration.limits.kv_max_tokens,
            measured=o.ready,
            target=self._target,
            current=o.target,
            tolerance=tolerance,
            missing=len(o.pending_ages_s),
        )


class Hpa:
    """One sync: metric, behaviour, limits. Without a metric the target stays (FailedGetMetrics)."""

    def __init__(
        self, metric: Metric, tolerance: float, behavior: Behavior, interval_s: float = 15.0
    ) -> None:
        self._metric, self._tolerance, self._behavior = metric, tolerance, behavior
        self._interval_s = interval_s

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        desired = self._metric.desired(o, self._tolerance)
        if desired is None:
            return Wanted(o.target, "no metrics: the target stays")
        wanted = self._behavior.apply(o.now_s, o.target, desired, o.min_replicas, o.max_replicas)
        return Wanted(wanted, f"metric asks for {desired}")


def behavior_from(knobs: Mapping[str, float]) -> Behavior:
    return Behavior(DEFAULT_UP, Rules(pods=0, percent=100, stabilization_s=knobs["hold_s"]))


COMMON_KNOBS: Final = (
    Knob("window_s", 60, 1, 3600, "seconds over which the signal is averaged (rate()[1m])"),
    Knob("tolerance", 0.1, 0, 0.9, "share of the target inside which nothing changes"),
    Knob("hold_s", 300, 0, 3600, "seconds of stabilisation before going down"),
    Knob("sync_s", 15, 1, 300, "seconds between decisions"),
)


def arrival_metric(target: float, window_s: float) -> FleetMetric:
    return FleetMetric(
        arriving_tokens_per_s,
        lambda m: m.capacity.input_tokens_per_s + m.capacity.output_tokens_per_s,
        target,
        window_s,
        external=True,
    )


def served_metric(target: float, window_s: float) -> FleetMetric:
    return FleetMetric(
        served_tokens_per_s,
        # Prompt tokens out of the prefix cache are not served tokens.
        lambda m: m.capacity.requests_per_s * m.mix.prefill_tokens + m.capacity.output_tokens_per_s,
        target,
        window_s,
        external=False,
    )


def concurrency_metric(target: float, window_s: float) -> FleetMetric:
    return FleetMetric(concurrency, lambda m: m.capacity.sequences, target, window_s, external=False)


def _build(metric: Callable[[float, float], Metric]) -> Callable[[Mapping[str, float]], Hpa]:
    def build(knobs: Mapping[str, float]) -> Hpa:
        return Hpa(
            metric(knobs["target"], knobs["window_s"]),
            knobs["tolerance"],
            behavior_from(knobs),
            knobs["sync_s"],
        )

    return build


def _spec(name: str, summary: str, target: Knob, metric: Callable[[float, float], Metric]) -> PolicySpec:
    return PolicySpec(name, summary, SOURCE, (target, *COMMON_KNOBS), _build(metric))


SPECS = (
    _spec(
        "hpa-arrival",
        "Kubernetes HPA on arriving prompt and output tokens against a fixed number per replica.",
        Knob("target", 0.6, 0.01, 1, "share of the configured capacity, 0 to 1", tuned=True),
        arrival_metric,
    ),
    _spec(
        "hpa-served",
        "Kubernetes HPA on prompt tokens computed and tokens generated per replica.",
        Knob("target", 0.6, 0.01, 1, "share of the configured capacity, 0 to 1", tuned=True),
        served_metric,
    ),
    _spec(
        "hpa-concurrency",
        "Kubernetes HPA on requests in the system per replica.",
        Knob("target", 0.6, 0.01, 4, "share of the sequences at the configured capacity", tuned=True),
        concurrency_metric,
    ),
    _spec(
        "hpa-kv",
        "Kubernetes HPA on the share of the KV cache in use.",
        Knob("target", 0.6, 0.001, 1, "share of the KV cache, 0 to 1", tuned=True),
        KvMetric,
    ),
)
