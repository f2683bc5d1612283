"""AIBrix's own two strategies, APA and KPA.

Published: vllm-project/aibrix at e3e10f9, pkg/controller/podautoscaler/algorithm/{apa,kpa}.go, metrics/client.go (windows of
180 s and 60 s, the value of a snapshot is the average over pods), context/context.go:105-120 (rates 2, tolerances 0.1, cooldowns
0 s and 300 s, panic threshold 2), podautoscaler_controller.go:1215-1296 (stabilizeRecommendation), resync 10 s.

    APA   r = mean per pod / target;  r > 1.1: min(ceil(N*r), ceil(2*N));  r < 0.9: max(ceil(N*r), floor(N/2));  else N
    KPA   ceil(value / target) of both windows, within [floor(N/2), ceil(2*N)]; panic when panic/stable > 2

N is spec.replicas: replicas that load are in it, but the mean comes from those that serve, so it doubles while they load.
Reproduced as they are at this commit: the cooldown takes the *lowest* recommendation of its window when the wish is down (it
speeds the way down instead of holding it); the panic ratchet is a no-op; the guard for pending pods came later (#2671).
Signals (samples/autoscaling): `kv=1` is gpu_cache_usage_perc per pod, target 0.5; `kv=0` is running and waiting requests, per
pod for APA and, as an External source, of the whole fleet for KPA (external-metrics-kpa.yaml, target 100), which is the only
form in which KPA's ceil(value / target) is a count of pods.
Deviations: one metric at a time; the optimizer that exports vllm:deployment_replicas is not built.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.signals import concurrency
from moefleet_replay.policy import Knob, PolicySpec, Wanted

_EPSILON = 1e-9


def apa_replicas(
    current: int,
    value: float,
    target: float,
    *,
    tolerance: float = 0.1,
    max_up_rate: float = 2.0,
    max_down_rate: float = 2.0,
) -> int:
    """`value` is the mean per pod."""
    ratio = value / target if target > 0 else 1.0
    if ratio > 1 + tolerance + _EPSILON:
        return min(math.ceil(current * ratio - _EPSILON), math.ceil(max_up_rate * current))
    if ratio < 1 - tolerance - _EPSILON:
        return max(math.ceil(current * ratio - _EPSILON), math.floor(current / max_down_rate))
    return current


def kpa_replicas(
    current: int,
    stable: float,
    panic: float,
    target: float,
    *,
    panicking: bool,
    tolerance: float = 0.1,
    max_up_rate: float = 2.0,
    max_down_rate: float = 2.0,
) -> int:
    most = max(1, math.ceil(max_up_rate * current))
    least = math.floor(current / max_down_rate)

    def pods(value: float) -> int:
        quiet = target * (1 - tolerance) - _EPSILON <= value <= target * (1 + tolerance) + _EPSILON
        wish = current if quiet else math.ceil(value / target - _EPSILON)
        return min(max(wish, least), most)

    return max(pods(stable), pods(panic)) if panicking else pods(stable)


class _Window:
    """Mean of the snapshots of the last `length_s` seconds."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._points: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def record(self, now_s: float, value: float) -> float:
        self._points.append((now_s, value))
        self._sum += value
        while self._points[0][0] <= now_s - self._length_s:
            self._sum -= self._points.popleft()[1]
        return max(0.0, self._sum / len(self._points))


class Cooldown:
    """stabilizeRecommendation: the highest of the window upwards, the lowest of it downwards."""

    def __init__(self, up_s: float, down_s: float) -> None:
        self._up_s, self._down_s = up_s, down_s
        self._history: deque[tuple[float, int]] = deque()

    def apply(self, now_s: float, recommended: int, current: int) -> int:
        self._history.append((now_s, recommended))
        while self._history[0][0] <= now_s - max(self._up_s, self._down_s):
            self._history.popleft()
            if not self._history:
                break
        if recommended == current:
            return current
        window_s = self._up_s if recommended > current else self._down_s
        inside = [value for at_s, value in self._history if at_s > now_s - window_s] or [recommended]
        return max(inside) if recommended > current else min(inside)


class AiBrix:
    interval_s = 10.0

    def __init__(self, knobs: Mapping[str, float], *, kpa: bool) -> None:
        self._kpa, self._kv = kpa, knobs["kv"] >= 0.5
        self._target, self._tolerance = knobs["target"], knobs["tolerance"]
        self._up, self._down = knobs["max_up_rate"], knobs["max_down_rate"]
        self._panic_threshold = knobs["panic_threshold"]
        self._stable = _Window(knobs["stable_window_s"])
        self._panic = _Window(knobs["panic_window_s"])
        self._cooldown = Cooldown(knobs["up_cooldown_s"], knobs["down_cooldown_s"])

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        if o.metrics_lost or o.ready == 0:
            return Wanted(o.target, "no metrics")
        value = self._snapshot(o)
        stable, panic = self._stable.record(o.now_s, value), self._panic.record(o.now_s, value)
        if self._kpa:
            panicking = stable <= 0 or panic / stable > self._panic_threshold
            desired = kpa_replicas(
                o.target,
                stable,
                panic,
                self._target,
                panicking=panicking,
                tolerance=self._tolerance,
                max_up_rate=self._up,
                max_down_rate=self._down,
            )
        else:
            desired = apa_replicas(
                o.target,
                stable,
                self._target,
                tolerance=self._tolerance,
                max_up_rate=self._up,
                max_down_rate=self._down,
            )
        desired = min(max(desired, o.min_replicas), o.max_replicas)
        wanted = self._cooldown.apply(o.now_s, desired, o.target)
        return Wanted(wanted, f"{stable:.2f} against {self._target:g} asks for {desired}")

    def _snapshot(self, o: Observation) -> float:
        if self._kv:
            return o.series.last(Signal.KV_USED_TOKENS) / (o.calibration.limits.kv_max_tokens * o.ready)
        if self._kpa:
            return concurrency(o, 1.0)
        # Pods export what they hold; what waits in the gateway is in none of them.
        return (o.series.last(Signal.RUNNING) + o.series.last(Signal.REPLICA_QUEUED)) / o.ready


_KNOBS: Final = (
    Knob("target", 100, 0.001, 20000, "requests per replica, or share of the KV cache with kv=1", tuned=True),
    Knob("kv", 0, 0, 1, "1: the signal is the share of the KV cache"),
    Knob("tolerance", 0.1, 0, 0.9, "share of the target inside which nothing changes"),
    Knob("max_up_rate", 2, 1.01, 1000, "most replicas as a multiple of the present ones"),
    Knob("max_down_rate", 2, 1.01, 1000, "present replicas over the fewest at one decision"),
    Knob("stable_window_s", 180, 10, 3600, "seconds of the stable window"),
    Knob("panic_window_s", 60, 10, 3600, "seconds of the panic window (KPA)"),
    Knob("panic_threshold", 2, 1, 100, "panic over stable value that starts panic (KPA)"),
    Knob("up_cooldown_s", 0, 0, 3600, "seconds of recommendations looked at on the way up"),
    Knob("down_cooldown_s", 300, 0, 3600, "seconds of recommendations looked at on the way down"),
)
_SOURCE: Final = "vllm-project/aibrix e3e10f9 pkg/controller/podautoscaler/"


def _apa(knobs: Mapping[str, float]) -> AiBrix:
    return AiBrix(knobs, kpa=False)


def _kpa(knobs: Mapping[str, float]) -> AiBrix:
    return AiBrix(knobs, kpa=True)


SPECS = (
    PolicySpec(
        name="aibrix-apa",
        summary="AIBrix APA: mean per pod against a target, at most doubling.",
        source=_SOURCE + "algorithm/apa.go:80-125, context/context.go:105-120",
        knobs=_KNOBS,
        build=_apa,
    ),
    PolicySpec(
        name="aibrix-kpa",
        summary="AIBrix KPA: stable and panic windows on the fleet's requests.",
        source=_SOURCE + "algorithm/kpa.go:40-190, context/context.go:105-120",
        knobs=_KNOBS,
        build=_kpa,
    ),
)
