"""Knative KPA and KServe. Numbers are those of upstream's autoscaler_test.go and target_test.go at 98e5ef9."""

from collections.abc import Callable

import pytest
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.knative import Kpa, metric_target

Observe = Callable[..., Observation]


def upstreams(target: float, *, up: float = 10.0, down: float = 10.0, delay_s: float = 0.0) -> Kpa:
    """The decider of upstream's tests: rates of 10, 60 s, threshold 2."""
    return Kpa(target, max_up_rate=up, max_down_rate=down, scale_down_delay_s=delay_s)


@pytest.mark.parametrize(
    ("case", "kpa", "ready", "stable", "panic", "expected"),
    [
        ("StableModeIncreaseWithConcurrencyDefault", upstreams(10), 1, 50, 10, 5),
        ("StableModeIncreaseWithConcurrencyDefault, second", upstreams(10), 1, 100, 10, 10),
        ("StableModeDecrease", upstreams(10), 8, 50, 50, 5),
        ("StableModeNoTrafficScaleToZero", upstreams(10), 1, 0, 0, 0),
        ("StableModeIncreaseWithSmallScaleUpRate", upstreams(1, up=1.1), 2, 3, 3.1, 3),
        ("StableModeDecreaseWithSmallScaleDownRate", upstreams(10, down=1.1), 100, 1, 1, 90),
        ("PanicModeDoublePodCount", upstreams(10), 1, 50, 100, 10),
        ("RateLimitScaleUp", upstreams(10), 1, 1000, 1001, 10),
        ("RateLimitScaleUp, second", upstreams(10), 10, 1000, 1001, 100),
        ("RateLimitScaleDown", upstreams(10), 100, 1, 1, 10),
    ],
)
def test_one_decision(  # noqa: PLR0917
    case: str, kpa: Kpa, ready: int, stable: float, panic: float, expected: int
) -> None:
    assert kpa.scale(1000.0, ready, stable, panic) == expected, case


def test_panic_tracks_an_exponential_rise() -> None:
    # PanicModeExponentialTrackAndStabilize
    kpa = upstreams(1)
    for second, (ready, load, expected) in enumerate(
        [(1, 6, 6), (6, 36, 36), (36, 216, 216), (216, 1296, 1296), (1296, 1296, 1296)]
    ):
        assert kpa.scale(float(second), ready, load, load) == expected


def test_panic_holds_until_a_stable_window_was_calm() -> None:
    # PanicThenUnPanicScaleDown
    kpa = upstreams(10)
    assert kpa.scale(0.0, 1, 100, 100) == 10
    assert kpa.scale(0.0, 10, 100, 1000) == 100
    assert kpa.scale(30.0, 10, 1, 1) == 100
    assert kpa.scale(61.0, 10, 1, 1) == 1


def test_a_slow_rise_ends_panic_and_a_surge_extends_it() -> None:
    # UnpanicAfterSlowIncrease
    kpa = upstreams(1)
    assert kpa.scale(0.0, 10, 11, 25) == 25
    assert kpa.scale(30.0, 40, 30, 41) == 41
    assert kpa.panicking_since_s == 0.0
    assert kpa.scale(62.0, 55, 50, 56) == 50
    assert kpa.panicking_since_s is None
    # ExtendPanicWindow
    kpa = upstreams(1)
    assert kpa.scale(0.0, 10, 11, 25) == 25
    assert kpa.scale(30.0, 40, 30, 80) == 80
    assert kpa.panicking_since_s == 30.0


def test_scale_down_delay_keeps_the_highest_of_its_window() -> None:
    # ScaleDownDelay, gradual
    kpa = Kpa(10, panic_threshold=100, max_up_rate=10, max_down_rate=10, scale_down_delay_s=300)
    minutes = [(9, 40, 4), (10, 30, 4), (11, 0, 4), (14, 0, 3), (15, 0, 0)]
    assert [kpa.scale(60.0 * m, 1, load, load) for m, load, _ in minutes] == [n for _, _, n in minutes]


@pytest.mark.parametrize(
    ("total", "utilization", "target"),
    [(100, 0.8, 80), (2, 0.3, 0.6), (12, 0.75, 9), (1, 0.001, 0.01), (200, 0.7, 140), (10, 0.75, 7.5)],
)
def test_target_is_a_share_of_what_a_pod_may_carry(total: float, utilization: float, target: float) -> None:
    assert metric_target(total, utilization) == pytest.approx(target)


def test_kserve_is_knative_with_its_target_passed_on(observe: Observe) -> None:
    busy = {Signal.RUNNING: 140.0, Signal.GATEWAY_QUEUED: 70.0}
    for name in ("knative", "kserve"):
        spec, knobs = policies.parse(f"{name}:target=100")
        # (140 + 70) / (100 * 0.7)
        assert spec.build(knobs).decide(observe(busy, ready=1, target=1)).replicas == 3, name
    # docs/samples/autoscaling/README.md at aaac4e2: a target of 1 and 5 requests in flight are 5 pods; with Knative's
    # present 70 % of the target they are 8.
    for utilization, pods in ((1, 5), (0.7, 8)):
        spec, knobs = policies.parse(f"kserve:target=1,utilization={utilization}")
        assert spec.build(knobs).decide(observe({Signal.RUNNING: 5.0}, ready=1)).replicas == pods


def test_loading_replicas_are_no_supply_so_the_ratchet_climbs(observe: Observe) -> None:
    # F2: the load that makes 4 from 1 asks for more while the three load and requests pile up.
    spec, knobs = policies.parse("knative:target=100")
    kpa = spec.build(knobs)
    asked = [
        kpa.decide(observe({Signal.RUNNING: load}, ready=1, pending=(10.0,) * 3, now_s=now)).replicas
        for now, load in ((0.0, 280.0), (60.0, 700.0), (120.0, 1400.0), (180.0, 200.0))
    ]
    assert asked == [4, 10, 20, 20]


def test_without_data_nothing_changes_and_a_restart_begins_in_panic(observe: Observe) -> None:
    spec, knobs = policies.parse("knative")
    kpa = spec.build(knobs)
    assert kpa.decide(observe({}, ready=7, metrics_lost=True)).replicas == 7
    # StartInPanicMode: what was there when it started is held for a stable window.
    assert kpa.decide(observe({}, ready=7, now_s=7230.0)).replicas == 7
    assert kpa.decide(observe({}, ready=7, now_s=7262.0)).replicas == 3
