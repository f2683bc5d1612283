"""Ray Serve's request-based autoscaler.

Published: ray 2.60.0, python/ray/serve/autoscaling_policy.py (_core_replica_queue_length_policy, _apply_scaling_factors,
_apply_delay_logic) and config.py (AutoscalingConfig).

    desired   running * (ongoing / (target * running)), ongoing = mean over 30 s of running and queued requests
    factors   current + factor * (desired - current), rounded up; a fractional step down is at least one
    delay     up only after 30 s, down only after 600 s of consecutive wishes in that direction, by the clock

Requests queued at handles count, replicas that still start do not: the wish grows while they load.
Deviations: decisions every 10 s, which is how often replicas and handles push their numbers (upstream decides every 0.1 s on
the same numbers); nothing scales to zero, because the replay's floor is one replica.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moefleet_replay.observation import Observation
from moefleet_replay.policies.signals import concurrency
from moefleet_replay.policy import Knob, PolicySpec, Wanted

_EPSILON_S = 1e-6


def desired_replicas(
    ongoing: float, running: int, target: float, up_factor: float = 1.0, down_factor: float = 1.0
) -> int:
    """Replicas for `ongoing` requests when `running` replicas should have `target` each; before delays and limits."""
    if running == 0:
        return math.ceil(up_factor) if ongoing > 0 else 0
    wish = ongoing / target
    change = wish - running
    scaled = math.ceil(running + (up_factor if change > 0 else down_factor) * change - 1e-9)
    if math.ceil(wish) < running and scaled == running:
        scaled -= 1
    return scaled


class RayServe:
    interval_s = 10.0

    def __init__(
        self,
        target: float,
        *,
        look_back_s: float = 30.0,
        upscale_delay_s: float = 30.0,
        downscale_delay_s: float = 600.0,
        up_factor: float = 1.0,
        down_factor: float = 1.0,
    ) -> None:
        self._target, self._look_back_s = target, look_back_s
        self._up_delay_s, self._down_delay_s = upscale_delay_s, downscale_delay_s
        self._up_factor, self._down_factor = up_factor, down_factor
        # Which way the wishes point, and since when.
        self._direction = 0
        self._since_s = 0.0

    def delayed(self, now_s: float, desired: int, target_replicas: int) -> int:
        """The target after the delays: it moves only when wishes have pointed one way for long enough."""
        direction = (desired > target_replicas) - (desired < target_replicas)
        if direction == 0:
            self._direction = 0
            return target_replicas
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        delay_s = self._up_delay_s if direction > 0 else self._down_delay_s
        if now_s - self._since_s + _EPSILON_S < delay_s:
            return target_replicas
        self._direction = 0
        # Down to zero goes through one.
        return max(1, desired) if direction < 0 and target_replicas > 1 else desired

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        if o.metrics_lost:
            return Wanted(o.target, "no metrics")
        ongoing = concurrency(o, self._look_back_s)
        desired = desired_replicas(ongoing, o.ready, self._target, self._up_factor, self._down_factor)
        # Upstream bounds the wish before it starts the clock of a direction.
        desired = min(max(desired, o.min_replicas), o.max_replicas)
        return Wanted(self.delayed(o.now_s, desired, o.target), f"{ongoing:.1f} ongoing ask for {desired}")


def _build(knobs: Mapping[str, float]) -> RayServe:
    return RayServe(
        knobs["target"],
        look_back_s=knobs["look_back_s"],
        upscale_delay_s=knobs["upscale_delay_s"],
        downscale_delay_s=knobs["downscale_delay_s"],
        up_factor=knobs["upscaling_factor"],
        down_factor=knobs["downscaling_factor"],
    )


SPECS = (
    PolicySpec(
        name="ray-serve",
        summary="Ray Serve on ongoing requests per replica.",
        source="ray 2.60.0 python/ray/serve/autoscaling_policy.py, python/ray/serve/config.py AutoscalingConfig",
        knobs=(
            Knob(
                "target", 2, 0.1, 20000, "ongoing requests per replica (target_ongoing_requests)", tuned=True
            ),
            Knob("look_back_s", 30, 1, 3600, "seconds over which requests are averaged"),
            Knob("upscale_delay_s", 30, 0, 7200, "seconds of wishes before going up"),
            Knob("downscale_delay_s", 600, 0, 7200, "seconds of wishes before going down"),
            Knob("upscaling_factor", 1, 0.01, 10, "gain of the way up"),
            Knob("downscaling_factor", 1, 0.01, 10, "gain of the way down"),
        ),
        build=_build,
    ),
)
