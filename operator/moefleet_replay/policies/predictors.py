"""One-step forecasts of a series of window totals: the predictors of the Dynamo planner, and SageServe's.

Published: ai-dynamo 1.6.1, dynamo/planner/core/load/predictors.py and config/defaults.py (Kalman: level 1, trend 0.1, measurement 10,
5 points; Prophet window 50; ARIMA the default). All of them skip leading zeros and never answer below zero.

`constant` and `kalman` are the published ones. `arima` and `prophet` stand in for libraries that search over models:
- Arima: upstream fits pmdarima.auto_arima once (it chooses p, d, q) and then only appends observations. Here the order is fixed:
  AR(2) with a constant on the values, by least squares over the last 100 points, refitted at every step, or on first
  differences when the plain fit's coefficients are not those of a stationary series. No moving-average part, no log1p fallback.
- Prophet: upstream fits a piecewise linear trend with daily and weekly Fourier terms to the last 50 points (2.5 h at 180 s, so no
  daily term can be learnt). Here a robust straight line (Theil-Sen) through the same 50 points, read one step ahead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Final, Protocol

ARIMA_POINTS: Final = 100
PROPHET_POINTS: Final = 50
MIN_POINTS: Final = 5


class Predictor(Protocol):
    def add(self, value: float) -> None: ...

    def predict(self) -> float: ...


class Constant:
    """The next is the last."""

    def __init__(self) -> None:
        self._last = 0.0

    def add(self, value: float) -> None:
        self._last = 0.0 if math.isnan(value) else value

    def predict(self) -> float:
        return self._last


class Kalman:
    """Local linear trend, [level, trend] with F = [[1, 1], [0, 1]], observed level."""

    def __init__(
        self,
        *,
        level_noise: float = 1.0,
        trend_noise: float = 0.1,
        measurement_noise: float = 10.0,
        min_points: int = MIN_POINTS,
    ) -> None:
        self._q_level, self._q_trend, self._r = level_noise, trend_noise, measurement_noise
        self._min_points = min_points
        self._level = self._trend = self._last = 0.0
        self._p = (1000.0, 0.0, 1000.0)
        self._points = 0
        self._forecast = False

    def add(self, value: float) -> None:
        if self._points == 0 and value == 0:
            return
        self._points += 1
        self._last = value
        if self._points == 1:
            self._level = value
            return
        if not self._forecast:
            self._advance()
        self._forecast = False
        p00, p01, p11 = self._p
        gain_level, gain_trend = p00 / (p00 + self._r), p01 / (p00 + self._r)
        surprise = value - self._level
        self._level += gain_level * surprise
        self._trend += gain_trend * surprise
        self._p = (p00 * (1 - gain_level), p01 * (1 - gain_level), p11 - gain_trend * p01)

    def predict(self) -> float:
        if self._points < self._min_points:
            return self._last
        if not self._forecast:
            self._advance()
            self._forecast = True
        return max(0.0, self._level)

    def _advance(self) -> None:
        self._level += self._trend
        p00, p01, p11 = self._p
        self._p = (p00 + 2 * p01 + p11 + self._q_level, p01 + p11, p11 + self._q_trend)


class Arima:
    """AR(2) by least squares, differenced once when that is not stationary."""

    def __init__(self, points: int = ARIMA_POINTS) -> None:
        self._values: deque[float] = deque(maxlen=points)

    def add(self, value: float) -> None:
        if value != 0 or self._values:
            self._values.append(value)

    def predict(self) -> float:
        return ar2_forecast(list(self._values), 1)[0]


class Prophet:
    """A robust straight line through the last points."""

    def __init__(self, points: int = PROPHET_POINTS) -> None:
        self._values: deque[float] = deque(maxlen=points)

    def add(self, value: float) -> None:
        if value != 0 or self._values:
            self._values.append(value)

    def predict(self) -> float:
        values = list(self._values)
        if not values:
            return 0.0
        n = len(values)
        if n < MIN_POINTS:
            return values[-1]
        slope = median((values[j] - values[i]) / (j - i) for i in range(n) for j in range(i + 1, n))
        level = median(v - slope * i for i, v in enumerate(values))
        return max(0.0, level + slope * n)


def ar2_forecast(values: Sequence[float], steps: int, floor: float | None = 0.0) -> list[float]:
    """The next `steps` values of an AR(2) with a constant, on first differences when it is not stationary.

    The last value is repeated while there are too few points or all are equal; `floor` None lets it go below zero.
    """
    tail = list(values[-ARIMA_POINTS:])
    if not tail:
        return [0.0] * steps
    last = tail[-1]
    if len(tail) < MIN_POINTS or min(tail) == max(tail):
        return [last] * steps
    ahead: list[float] = []
    fit = _ar2(tail)
    if fit is not None and _stationary(fit):
        one, two = tail[-1], tail[-2]
        for _ in range(steps):
            one, two = fit[0] + fit[1] * one + fit[2] * two, one
            ahead.append(one)
    else:
        changes = [b - a for a, b in pairwise(tail)]
        fit = _ar2(changes) if len(changes) >= MIN_POINTS else None
        if fit is None or not _stationary(fit):
            return [last] * steps
        one, two = changes[-1], changes[-2]
        for _ in range(steps):
            one, two = fit[0] + fit[1] * one + fit[2] * two, one
            last += one
            ahead.append(last)
    return ahead if floor is None else [max(floor, value) for value in ahead]


def _ar2(values: list[float]) -> tuple[float, float, float] | None:
    """(constant, first, second) of v[t] = constant + first*v[t-1] + second*v[t-2]; None when it is not determined."""
    now, one, two = values[2:], values[1:-1], values[:-2]
    n = len(now)
    if n < 3:
        return None
    mean_now, mean_one, mean_two = sum(now) / n, sum(one) / n, sum(two) / n
    s11 = sum((x - mean_one) ** 2 for x in one)
    s22 = sum((x - mean_two) ** 2 for x in two)
    s12 = sum((x - mean_one) * (y - mean_two) for x, y in zip(one, two, strict=True))
    t1 = sum((x - mean_one) * (y - mean_now) for x, y in zip(one, now, strict=True))
    t2 = sum((x - mean_two) * (y - mean_now) for x, y in zip(two, now, strict=True))
    determinant = s11 * s22 - s12 * s12
    if determinant <= 1e-9 * max(s11 * s22, 1e-30):
        return None
    first = (t1 * s22 - t2 * s12) / determinant
    second = (t2 * s11 - t1 * s12) / determinant
    return mean_now - first * mean_one - second * mean_two, first, second


def _stationary(fit: tuple[float, float, float]) -> bool:
    _, first, second = fit
    return abs(second) < 1 and second + first < 1 and second - first < 1
