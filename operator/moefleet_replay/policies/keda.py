"""KEDA: an HPA on an External metric that KEDA serves, and its own loop between none and one replica.

Published: kedacore/keda at 8b4f083, controllers/keda/hpa.go (the HPA it writes), pkg/scaling/executor/scale_scaledobjects.go:37-120
(activation), :196-240 (cooldown), apis/keda/v1alpha1/withtriggers_types.go:51 (polling 30 s), pkg/scaling/executor/
scale_executor.go:37 (cooldown 300 s), pkg/scalers/prometheus_scaler.go:56 (ignoreNullValues = true).

The trigger is a Prometheus query of arriving prompt and output tokens per second, metricType AverageValue, the best signal
that we know for it; its threshold is a share of the configured capacity as in hpa.py. The HPA asks KEDA's metrics server at every
sync; the polling interval only drives activation.
A query without a result counts as 0, so lost metrics take the fleet down to its floor, after the HPA's 300 s.
Deviations: with the replay's floor of one replica the way to zero (after cooldown_s without activity) is computed but the fleet
clamps it; one trigger; no fallback section, which is off by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from moefleet_replay.observation import Observation
from moefleet_replay.policies.hpa import COMMON_KNOBS, Behavior, arrival_metric, behavior_from
from moefleet_replay.policies.signals import arriving_tokens_per_s
from moefleet_replay.policy import Knob, PolicySpec, Wanted


class Activation:
    """Between none and one: from zero at once when the trigger is active, to zero after `cooldown_s` without activity."""

    def __init__(self, cooldown_s: float) -> None:
        self._cooldown_s = cooldown_s
        self._active_at_s: float | None = None

    def replicas(self, now_s: float, value: float, current: int, activation_value: float = 0.0) -> int | None:
        """0 or 1 when this loop decides, None when the HPA does."""
        if value > activation_value:
            self._active_at_s = now_s
            return 1 if current == 0 else None
        if current == 0:
            return 0
        if self._active_at_s is None or self._active_at_s + self._cooldown_s < now_s:
            return 0
        return None


class Keda:
    """The HPA's sync is the tick; activation is looked at every polling interval."""

    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._metric = arrival_metric(knobs["target"], knobs["window_s"])
        self._window_s, self._tolerance = knobs["window_s"], knobs["tolerance"]
        self._behavior: Behavior = behavior_from(knobs)
        self._interval_s, self._polling_s = knobs["sync_s"], knobs["polling_s"]
        self._activation = Activation(knobs["cooldown_s"])
        self._polled_at_s = float("-inf")

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        value = 0.0 if o.metrics_lost else arriving_tokens_per_s(o, self._window_s)
        if o.now_s - self._polled_at_s >= self._polling_s:
            self._polled_at_s = o.now_s
            switched = self._activation.replicas(o.now_s, value, o.target)
            if switched is not None:
                return Wanted(switched, "activated" if switched else "no activity for a cooldown")
        desired = 0 if o.metrics_lost else self._metric.desired(o, self._tolerance)
        if desired is None:
            return Wanted(o.target, "nothing has arrived yet")
        low = max(1, o.min_replicas)
        wanted = self._behavior.apply(o.now_s, o.target, desired, low, o.max_replicas)
        return Wanted(wanted, f"trigger at {value:.0f} tokens/s asks for {desired}")


SPECS = (
    PolicySpec(
        name="keda",
        summary="KEDA: its HPA on arriving tokens from Prometheus; lost metrics count as none.",
        source="kedacore/keda 8b4f083 controllers/keda/hpa.go, pkg/scaling/executor/scale_scaledobjects.go:37-240,"
        " pkg/scalers/prometheus_scaler.go:56",
        knobs=(
            Knob("target", 0.6, 0.01, 1, "share of the configured capacity, 0 to 1", tuned=True),
            *COMMON_KNOBS,
            Knob("polling_s", 30, 1, 3600, "seconds between looks at the trigger"),
            Knob("cooldown_s", 300, 0, 7200, "seconds without activity before zero"),
        ),
        build=Keda,
    ),
)
