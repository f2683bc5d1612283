"""Knative's pod autoscaler (KPA), and KServe's serverless mode, which is the same behind other defaults.

Published: knative/serving at 98e5ef9, pkg/autoscaler/scaling/autoscaler.go lines 149-305 (Scale), pkg/reconciler/autoscaling/
resources/target.go (ResolveMetricTarget), config/core/configmaps/autoscaler.yaml for the constants. Tick 2 s.

    stable, panic   mean concurrency of 60 s and of 10 % of it
    dspc, dppc      ceil(stable / target), ceil(panic / target), each within [floor(ready / 2), ceil(1000 * ready)]
    panic mode      from dppc / ready >= 2 until a whole stable window stayed below; then only the highest so far counts
    delay           the highest of the last scale-down-delay seconds

Concurrency is what the queue proxies and the activator count: requests that run, wait in a replica or wait in the gateway.
The base is *ready* replicas: those that load are not supply, so a minutes-long start keeps the ratio up and the ratchet climbs.
Deviations: the target burst capacity only puts the activator into the path and never changes the count, so it is left out;
activation scale and scale to zero are left out, because the replay's floor is one replica.
KServe (kserve/kserve at aaac4e2, pkg/controller/v1alpha1/utils/utils.go:48-80) writes scaleTarget and scaleMetric as Knative
annotations, sets no target of its own and a min-scale of 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from moefleet_replay.observation import Observation
from moefleet_replay.policies.signals import concurrency
from moefleet_replay.policy import Knob, PolicySpec, Wanted

# ResolveMetricTarget never aims below this concurrency.
TARGET_MIN: Final = 0.01


def metric_target(total: float, utilization: float) -> float:
    """What a pod should carry: `total` is what it may carry, `utilization` the share of it that is aimed at."""
    return max(TARGET_MIN, total * utilization)


class Kpa:
    """One decider with its panic memory."""

    interval_s = 2.0

    def __init__(
        self,
        target: float,
        *,
        stable_window_s: float = 60.0,
        panic_window_share: float = 0.1,
        panic_threshold: float = 2.0,
        max_up_rate: float = 1000.0,
        max_down_rate: float = 2.0,
        scale_down_delay_s: float = 0.0,
    ) -> None:
        self._target = target
        self._stable_s, self._panic_s = stable_window_s, max(1.0, stable_window_s * panic_window_share)
        self._threshold = panic_threshold
        self._up, self._down = max_up_rate, max_down_rate
        self._delay_s = scale_down_delay_s
        self._delayed: deque[tuple[float, int]] = deque()
        self._panic_since_s: float | None = None
        self._panic_pods = 0
        self._started = False

    @property
    def panicking_since_s(self) -> float | None:
        return self._panic_since_s

    def start(self, now_s: float, ready: int) -> None:
        """A decider that finds more than one replica starts in panic: it may have been restarted in a surge."""
        self._started = True
        if ready > 1:
            self._panic_since_s, self._panic_pods = now_s, ready

    def scale(self, now_s: float, ready: int, stable: float, panic: float) -> int:
        pods = max(1, ready)
        most, least = math.ceil(self._up * pods), math.floor(pods / self._down)
        stable_pods = math.ceil(stable / self._target)
        panic_pods = math.ceil(panic / self._target)
        if panic_pods / pods >= self._threshold:
            self._panic_since_s = now_s
        elif self._panic_since_s is not None and self._panic_since_s + self._stable_s < now_s:
            self._panic_since_s, self._panic_pods = None, 0
        desired = min(max(stable_pods, least), most)
        if self._panic_since_s is not None:
            self._panic_pods = max(self._panic_pods, desired, min(max(panic_pods, least), most))
            desired = self._panic_pods
        return self._after_delay(now_s, desired)

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        if not self._started:
            self.start(o.now_s, o.ready)
        if o.metrics_lost:
            return Wanted(o.target, "no data")
        stable, panic = concurrency(o, self._stable_s), concurrency(o, self._panic_s)
        wanted = self.scale(o.now_s, o.ready, stable, panic)
        mode = "stable" if self._panic_since_s is None else "panic"
        return Wanted(wanted, f"{mode}: {stable:.1f} stable, {panic:.1f} panic, target {self._target:g}")

    def _after_delay(self, now_s: float, desired: int) -> int:
        if self._delay_s <= 0:
            return desired
        self._delayed.append((now_s, desired))
        while self._delayed[0][0] <= now_s - self._delay_s:
            self._delayed.popleft()
        return max(pods for _, pods in self._delayed)


def _build(knobs: Mapping[str, float]) -> Kpa:
    return Kpa(
        metric_target(knobs["target"], knobs["utilization"]),
        stable_window_s=knobs["stable_window_s"],
        panic_window_share=knobs["panic_window_share"],
        panic_threshold=knobs["panic_threshold"],
        max_up_rate=knobs["max_up_rate"],
        max_down_rate=knobs["max_down_rate"],
        scale_down_delay_s=knobs["scale_down_delay_s"],
    )


_KNOBS: Final = (
    Knob("target", 100, 0.1, 20000, "requests in the system per replica (soft concurrency)", tuned=True),
    Knob("utilization", 0.7, 0.01, 1, "share of the target that is aimed at"),
    Knob("stable_window_s", 60, 6, 3600, "seconds of the stable window"),
    Knob("panic_window_share", 0.1, 0.01, 1, "panic window as a share of the stable one"),
    Knob("panic_threshold", 2.0, 1.1, 10, "wanted over ready replicas that starts panic"),
    Knob("max_up_rate", 1000, 1.1, 10000, "most replicas as a multiple of ready ones"),
    Knob("max_down_rate", 2, 1.1, 10000, "ready replicas over the fewest at one decision"),
    Knob("scale_down_delay_s", 0, 0, 3600, "seconds that a lower count must last"),
)

SPECS = (
    PolicySpec(
        name="knative",
        summary="Knative KPA on concurrency: stable and panic windows.",
        source="knative/serving 98e5ef9 pkg/autoscaler/scaling/autoscaler.go:149-305, config/core/configmaps/autoscaler.yaml",
        knobs=_KNOBS,
        build=_build,
    ),
    PolicySpec(
        name="kserve",
        summary="KServe serverless: Knative KPA with scaleTarget as its target.",
        source="kserve/kserve aaac4e2 pkg/controller/v1alpha1/utils/utils.go:48-80, then knative/serving 98e5ef9 (see knative)",
        knobs=_KNOBS,
        build=_build,
    ),
)
