"""SageServe: an hourly plan from a forecast of prompt tokens, followed when memory says so (LT-U), or also when the forecast
was far too low (LT-UA).

Published: shashwatj07/SageServe at 0b95ca2 (arXiv 2502.14617): arbiter.py:441-514 (GlobalAribiterMemoryUtilizationScaling, LT-U),
:535-617 (GlobalArbiterARIMAChecking, LT-UA), global_arbiter.py:135-186 (plan: the highest forecast from 20 to 60 minutes ahead),
long_term_allocation.py:66-105 (the ILP), configs/config.yaml:37 (ratio 5), configs/arbiter_repo/arbiters/*.yaml (spin-up 155 s).

    plan     every hour: instances = ceil(highest forecast / tokens/s of an instance): with one model, region and GPU type the ILP
             has this one answer, because every instance costs and only the demand asks for any
    LT-U     towards the plan, one at a time: up while utilisation > 0.5, down while < 0.25; at the plan, one more above 0.9
    LT-UA    the same, but at the plan one more only when the last minute's tokens exceed 5 times their forecast

Utilisation is memory without the weights (application.py:79-95), the KV share. Instances
carry the configured capacity in prompt tokens/s (signals.ConfiguredCapacity).
Deviations: the forecast is our AR(2) on 10-minute means, on differences to the day before when those were easier to foretell (upstream
reads ARIMA forecasts from files made outside); checked every 5 s instead of at every request; the batch tier and its 10 % buffer,
spot instances and the choice of regions have no counterpart here; before the first full hour the plan is what the present
mean needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.predictors import ar2_forecast
from moefleet_replay.policies.signals import ConfiguredCapacity
from moefleet_replay.policy import Knob, PolicySpec, Wanted

BIN_S: Final = 600.0
BINS_PER_DAY: Final = 144
PLAN_EVERY_S: Final = 3600.0
# Of 10-minute bins ahead, those of 20 to 60 minutes.
AHEAD: Final = slice(1, 6)
AHEAD_BINS: Final = 6
# Bins over which the two forecasts are compared.
COMPARED: Final = 36


def planned_instances(forecast_tokens_s: float, tokens_s_per_instance: float) -> int:
    """The ILP for one model, one region and one GPU type; never below none."""
    return max(0, math.ceil(forecast_tokens_s / tokens_s_per_instance - 1e-9))


def forecast(bins: Sequence[float], steps: int) -> list[float]:
    """The next `steps` bins, with the day before taken off when that has been the better forecast lately."""
    plain = ar2_forecast(bins, steps)
    if len(bins) < BINS_PER_DAY + COMPARED:
        return plain
    changes = [now - before for now, before in zip(bins[BINS_PER_DAY:], bins, strict=False)]
    recent = changes[-COMPARED:]
    by_day = sum(abs(c - b) for b, c in pairwise(recent))
    lately = bins[-COMPARED:]
    by_last = sum(abs(c - b) for b, c in pairwise(lately))
    if by_day > by_last:
        return plain
    day = bins[-BINS_PER_DAY:]
    return [max(0.0, day[i] + c) for i, c in enumerate(ar2_forecast(changes, steps, floor=None))]


class SageServe:
    interval_s = 5.0

    def __init__(self, knobs: Mapping[str, float], *, arrivals: bool) -> None:
        self._up, self._spin_up_s = knobs["utilization"], knobs["spin_up_s"]
        self._down, self._override = self._up * 0.5, min(1.0, self._up * 1.8)
        self._ratio, self._arrivals = knobs["ratio"], arrivals
        self._configured = ConfiguredCapacity()
        self._bins: list[float] = []
        self._minute_forecast = 0.0
        # Changes of the plan that are still to be made: positive up.
        self._changes = 0
        self._planned_at_s = float("-inf")
        self._busy_until_s = float("-inf")

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        measured = self._configured.of(o)
        if measured is None or o.metrics_lost or o.ready == 0:
            return Wanted(o.target, "nothing measured")
        self._collect(o)
        if o.now_s - self._planned_at_s >= PLAN_EVERY_S:
            self._planned_at_s = o.now_s
            ahead = self._ahead(o)
            self._minute_forecast = ahead[0]
            plan = planned_instances(max(ahead[AHEAD]), measured.capacity.input_tokens_per_s)
            self._changes = max(1, plan) - o.target
        if o.now_s < self._busy_until_s:
            return Wanted(o.target, "an instance spins up")
        utilization = o.series.last(Signal.KV_USED_TOKENS) / (o.calibration.limits.kv_max_tokens * o.ready)
        change = self._change(o, utilization)
        self._changes -= change
        if change > 0:
            self._busy_until_s = o.now_s + self._spin_up_s
        return Wanted(o.target + change, f"plan has {self._changes:+d} to go, utilisation {utilization:.2f}")

    def _change(self, o: Observation, utilization: float) -> int:
        if self._changes > 0:
            return 1 if utilization > self._up else 0
        if self._changes < 0:
            return -1 if utilization < self._down and o.target > 1 else 0
        if self._arrivals:
            minute = o.series.mean(Signal.ARRIVED_INPUT_TOKENS, 60.0)
            return 1 if self._minute_forecast > 0 and minute / self._minute_forecast > self._ratio else 0
        return 1 if utilization > self._override else 0

    def _collect(self, o: Observation) -> None:
        while (len(self._bins) + 1) * BIN_S <= o.now_s:
            self._bins.append(o.series.mean(Signal.ARRIVED_INPUT_TOKENS, BIN_S))

    def _ahead(self, o: Observation) -> list[float]:
        if len(self._bins) * BIN_S < PLAN_EVERY_S:
            return [o.series.mean(Signal.ARRIVED_INPUT_TOKENS, PLAN_EVERY_S)] * AHEAD_BINS
        return forecast(self._bins, AHEAD_BINS)


_KNOBS: Final = (
    Knob(
        "utilization",
        0.5,
        0.01,
        1,
        "KV share above which the plan is followed up; half of it for down",
        tuned=True,
    ),
    Knob("ratio", 5, 1, 100, "actual over forecast tokens that overrides the plan (LT-UA)"),
    Knob("spin_up_s", 155, 0, 3600, "seconds between two steps up"),
)
_SOURCE: Final = "shashwatj07/SageServe 0b95ca2 (arXiv 2502.14617) arbiter.py"


def _lt_u(knobs: Mapping[str, float]) -> SageServe:
    return SageServe(knobs, arrivals=False)


def _lt_ua(knobs: Mapping[str, float]) -> SageServe:
    return SageServe(knobs, arrivals=True)


SPECS = (
    PolicySpec(
        "sageserve-lt-u",
        "SageServe LT-U: an hourly plan from forecast tokens, followed by memory utilisation.",
        _SOURCE + ":441-514, global_arbiter.py:135-186",
        _KNOBS,
        _lt_u,
    ),
    PolicySpec(
        "sageserve",
        "SageServe LT-UA: LT-U, overridden when arrivals leave the forecast behind.",
        _SOURCE + ":535-617, global_arbiter.py:135-186",
        _KNOBS,
        _lt_ua,
    ),
)
