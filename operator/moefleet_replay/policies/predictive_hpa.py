"""Predictive Horizontal Pod Autoscaler: an HPA whose own past counts are extrapolated by a straight line.

Published: jthomperoo/predictive-horizontal-pod-autoscaler at c91d060, internal/controllers/controller.go:145-330 (sync 15 s, decision
type maximum, up 4 pods or 100 % per 60 s, down 100 % per 60 s after 300 s), algorithms/linear_regression/linear_regression.py
(least squares of replicas on time, rounded up), internal/prediction/linear/linear.go:45-110 (history, one point is its own forecast).

The HPA below it reads arriving tokens as hpa-arrival does, the best signal that we know for it.
Deviations: only the linear model; Holt-Winters needs a season and three smoothing factors that the project has no defaults for.
historySize and lookAhead have no shipped defaults either: 6 and 10 s are those of upstream's examples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from moefleet_replay.observation import Observation
from moefleet_replay.policies.hpa import COMMON_KNOBS, Behavior, Rules, arrival_metric
from moefleet_replay.policy import Knob, PolicySpec, Wanted


def linear_forecast(history: Iterable[tuple[float, int]], at_s: float) -> int:
    """Replicas that the least-squares line through (seconds, replicas) has at `at_s`, rounded up."""
    points = list(history)
    if len(points) == 1:
        return points[0][1]
    n = len(points)
    # Seconds before the moment asked for: the forecast is the line's intercept.
    before = [at_s - time_s for time_s, _ in points]
    mean_x, mean_y = sum(before) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x in before)
    if spread == 0:
        return math.ceil(mean_y)
    slope = sum((x - mean_x) * (y - mean_y) for x, (_, y) in zip(before, points, strict=True)) / spread
    return math.ceil(mean_y - slope * mean_x - 1e-9)


class PredictiveHpa:
    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._metric = arrival_metric(knobs["target"], knobs["window_s"])
        self._tolerance, self._interval_s = knobs["tolerance"], knobs["sync_s"]
        self._look_ahead_s = knobs["look_ahead_s"]
        self._history: deque[tuple[float, int]] = deque(maxlen=round(knobs["history"]))
        self._behavior = Behavior(
            Rules(pods=4, percent=100, period_s=60.0),
            Rules(pods=0, percent=100, period_s=60.0, stabilization_s=knobs["hold_s"]),
        )

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        calculated = self._metric.desired(o, self._tolerance)
        if calculated is None:
            return Wanted(o.target, "no metrics: the target stays")
        self._history.append((o.now_s, calculated))
        predicted = linear_forecast(self._history, o.now_s + self._look_ahead_s)
        wanted = self._behavior.apply(
            o.now_s, o.target, max(calculated, predicted), o.min_replicas, o.max_replicas
        )
        return Wanted(wanted, f"metric asks for {calculated}, the line for {predicted}")


SPECS = (
    PolicySpec(
        name="predictive-hpa",
        summary="HPA on arriving tokens, raised by a straight line through its own last counts.",
        source="jthomperoo/predictive-horizontal-pod-autoscaler c91d060 internal/controllers/controller.go:145-330,"
        " algorithms/linear_regression/linear_regression.py",
        knobs=(
            Knob("target", 0.6, 0.01, 1, "share of the configured capacity, 0 to 1", tuned=True),
            *COMMON_KNOBS,
            Knob("history", 6, 2, 1000, "past counts that the line is drawn through"),
            Knob("look_ahead_s", 10, 0, 3600, "seconds ahead for which it is read"),
        ),
        build=PredictiveHpa,
    ),
)
