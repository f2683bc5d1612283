"""KEDA and the predictive HPA: what they put around the HPA of Kubernetes."""

import math
from collections.abc import Callable

import pytest
from moefleet_perf import Mix, capacity
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.keda import Activation
from moefleet_replay.policies.predictive_hpa import linear_forecast

Observe = Callable[..., Observation]

CHAT = {
    Signal.ARRIVALS: 100.0,
    Signal.ARRIVED_INPUT_TOKENS: 100 * 1500.0,
    Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS: 100 * 300.0,
    Signal.COMPLETED: 100.0,
    Signal.COMPLETED_OUTPUT_TOKENS: 100 * 300.0,
}


@pytest.mark.parametrize(
    ("case", "value", "current", "since_active_s", "expected"),
    [
        # scale_scaledobjects_test.go at 8b4f083: from none to one when active; the HPA's business above that; to none when
        # not active after the cooldown (300 s by default), and at once when it was never active.
        ("active at 0", 1.0, 0, None, 1),
        ("active above", 1.0, 2, None, None),
        ("inactive at 0", 0.0, 0, None, 0),
        ("inactive, never active", 0.0, 2, None, 0),
        ("inactive inside the cooldown", 0.0, 2, 300.0, None),
        ("inactive after the cooldown", 0.0, 2, 301.0, 0),
    ],
)
def test_activation(
    case: str, value: float, current: int, since_active_s: float | None, expected: int | None
) -> None:
    activation = Activation(300.0)
    if since_active_s is not None:
        activation.replicas(1000.0 - since_active_s, 1.0, 1)
    assert activation.replicas(1000.0, value, current) == expected, case


def test_keda_is_the_hpa_on_arrivals(observe: Observe) -> None:
    o = observe(CHAT, ready=3)
    expected = math.ceil(100 / (0.6 * capacity(o.calibration, Mix(1500, 300), 0.085).requests_per_s))
    for name in ("keda", "hpa-arrival", "predictive-hpa"):
        spec, knobs = policies.parse(f"{name}:target=0.6")
        assert spec.build(knobs).decide(o).replicas == expected, name


def test_lost_metrics_are_zero_for_keda_and_nothing_for_the_hpa(observe: Observe) -> None:
    # F9, with the HPA's 300 s of memory between the loss and the floor.
    for name, end in (("keda", 1), ("hpa-arrival", 9)):
        spec, knobs = policies.parse(f"{name}:cooldown_s=3600" if name == "keda" else name)
        policy = spec.build(knobs)
        assert policy.decide(observe(CHAT, ready=9, now_s=7200.0)).replicas == 9
        assert policy.decide(observe(CHAT, ready=9, now_s=7215.0, metrics_lost=True)).replicas == 9
        assert policy.decide(observe(CHAT, ready=9, now_s=7516.0, metrics_lost=True)).replicas == end, name


@pytest.mark.parametrize(("ahead_s", "expected"), [(0, 5), (10, 6), (15, 7)])
def test_the_line_gives_upstreams_numbers(ahead_s: float, expected: int) -> None:
    # test_linear_regression.py at c91d060: 1, 2, 3, 4 replicas every 10 s, the last 9 s ago.
    history = [(-39.0, 1), (-29.0, 2), (-19.0, 3), (-9.0, 4)]
    assert linear_forecast(history, ahead_s) == expected


def test_one_point_is_its_own_forecast() -> None:
    assert linear_forecast([(0.0, 3)], 600.0) == 3


def test_a_ramp_is_extrapolated(observe: Observe) -> None:
    spec, knobs = policies.parse("predictive-hpa:target=0.6,look_ahead_s=240,window_s=15")
    policy = spec.build(knobs)
    wanted = 4
    for tick in range(6):
        load = {s: v * (1 + 0.2 * tick) for s, v in CHAT.items()}
        wanted = policy.decide(observe(load, ready=wanted, now_s=7200.0 + 60 * tick)).replicas
    one = capacity(observe().calibration, Mix(1500, 300), 0.085).requests_per_s
    assert wanted > math.ceil(200 / (0.6 * one))
