"""Fleets of a fixed size: what most operators run, and the two ends that any autoscaler is measured against.

`static-peak` is sized for the busiest window of the whole trace and `static-mean` for `factor` times its mean, so both know the
future: they say what the best fixed size would have been, not what anybody could have chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moefleet_replay.observation import Foresight, Observation
from moefleet_replay.policy import Knob, PolicyError, PolicySpec, Wanted

# A peak shorter than this is absorbed by queues, and its mean over seconds is noise of single arrivals.
PEAK_WINDOW_S = 60.0


class Static:
    """The same count for ever."""

    interval_s = 60.0

    def __init__(self, replicas: int) -> None:
        self._wanted = Wanted(replicas, f"static: {replicas}")

    def decide(self, observation: Observation) -> Wanted:
        return self._wanted


class StaticFromTrace:
    """A size worked out once from the whole trace: the peak (`factor` times the busiest minute) or the mean."""

    interval_s = 60.0

    def __init__(self, name: str, factor: float, *, peak: bool) -> None:
        self._name, self._factor, self._peak = name, factor, peak
        self._wanted: Wanted | None = None

    def decide(self, observation: Observation) -> Wanted:
        if self._wanted is None:
            foresight = observation.foresight
            if foresight is None:
                raise PolicyError(f"policy {self._name}: needs the whole trace, found no foresight")
            need = peak_need(foresight) if self._peak else foresight.work_at(0.0, foresight.until_s)
            replicas = max(1, math.ceil(need * self._factor - 1e-9))
            self._wanted = Wanted(
                replicas, f"{'peak' if self._peak else 'mean'} need {need:.2f} x {self._factor:g}"
            )
        return self._wanted


def peak_need(foresight: Foresight) -> float:
    """Replicas that the busiest minute of the trace needs."""
    windows = max(1, math.ceil(foresight.until_s / PEAK_WINDOW_S))
    return max(
        foresight.work_at(i * PEAK_WINDOW_S, min((i + 1) * PEAK_WINDOW_S, foresight.until_s))
        for i in range(windows)
    )


def _static(knobs: Mapping[str, float]) -> Static:
    return Static(round(knobs["replicas"]))


def _static_peak(knobs: Mapping[str, float]) -> StaticFromTrace:
    return StaticFromTrace("static-peak", knobs["factor"], peak=True)


def _static_mean(knobs: Mapping[str, float]) -> StaticFromTrace:
    return StaticFromTrace("static-mean", knobs["factor"], peak=False)


SPECS = (
    PolicySpec(
        name="static",
        summary="A fixed count.",
        source="No algorithm: spec.replicas of a Deployment.",
        knobs=(Knob("replicas", 8, 1, 4096, "replicas", tuned=True),),
        build=_static,
    ),
    PolicySpec(
        name="static-peak",
        summary="A fixed count: what the busiest minute of the trace needs, known beforehand.",
        source="No algorithm: provisioning for the peak. Need = arrivals over closed-form capacity at 0.85 of the TPOT limit.",
        knobs=(Knob("factor", 1.0, 0.1, 10, "times the peak need", tuned=True),),
        build=_static_peak,
        foresees=True,
    ),
    PolicySpec(
        name="static-mean",
        summary="A fixed count: 1.3 times what the trace needs on average, known beforehand.",
        source="No algorithm: provisioning for the mean with a margin. Need as in static-peak.",
        knobs=(Knob("factor", 1.3, 0.1, 10, "times the mean need", tuned=True),),
        build=_static_mean,
        foresees=True,
    ),
)
