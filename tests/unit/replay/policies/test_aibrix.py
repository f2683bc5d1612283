"""AIBrix APA and KPA. Numbers are those of upstream's apa_test.go and kpa_test.go at e3e10f9."""

from collections.abc import Callable

import pytest
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.aibrix import Cooldown, apa_replicas, kpa_replicas

Observe = Callable[..., Observation]


@pytest.mark.parametrize(
    ("case", "current", "value", "up", "down", "expected"),
    [
        ("basic_scale_up", 2, 45, 2, 2, 3),
        ("scale_up_upto_ceiling", 2, 35, 2, 2, 3),
        ("scale_up_upto_max_scale_up", 2, 90, 2, 2, 4),
        ("scale_up_upto_max_scale_up_ceiling", 2, 90, 2.5, 2, 5),
        ("basic_scale_down", 6, 20, 2, 2, 4),
        ("scale_down_upto_ceiling", 6, 18, 2, 2, 4),
        ("scale_down_upto_max_scale_down", 6, 10, 2, 2, 3),
        ("scale_down_upto_max_scale_down_floor", 6, 5, 2, 2.5, 2),
        ("no_scaling_as_within_up_tolerance", 2, 33, 2, 2, 2),
        ("no_scaling_as_within_down_tolerance", 2, 27, 2, 2, 2),
    ],
)
def test_apa(case: str, current: int, value: float, up: float, down: float, expected: int) -> None:  # noqa: PLR0917
    got = apa_replicas(current, value, 30.0, max_up_rate=up, max_down_rate=down)
    assert got == expected, case


def test_apa_without_a_target_keeps_what_is_there() -> None:
    assert apa_replicas(1, 10.0, 0.0, max_up_rate=1000) == 1  # division_by_zero


@pytest.mark.parametrize(
    ("case", "current", "stable", "panic", "panicking", "up", "expected"),
    [
        ("stable_mode_basic_scaling", 2, 20, 20, False, 2, 2),
        ("panic_mode_scaling_up", 2, 30, 40, True, 2, 4),
        ("scale_to_zero", 1, 0, 0, False, 2, 0),
        ("max_scale_up_rate_limit", 2, 100, 100, False, 1.5, 3),
        ("max_scale_down_rate_limit", 4, 5, 5, False, 2, 2),
    ],
)
def test_kpa(  # noqa: PLR0917
    case: str, current: int, stable: float, panic: float, panicking: bool, up: float, expected: int
) -> None:
    got = kpa_replicas(current, stable, panic, 10.0, panicking=panicking, tolerance=0.0, max_up_rate=up)
    assert got == expected, case


def test_the_cooldown_down_takes_the_lowest_of_its_window_as_upstream_does() -> None:
    cooldown = Cooldown(0.0, 300.0)
    assert cooldown.apply(0.0, 4, 10) == 4
    assert cooldown.apply(100.0, 8, 10) == 4
    assert cooldown.apply(301.0, 8, 10) == 8
    assert cooldown.apply(310.0, 12, 10) == 12


def test_apa_doubles_while_replicas_load(observe: Observe) -> None:
    # F2, upstream's issue 2670: 2, 4, 8, 16 while the mean of those that serve stays high.
    spec, knobs = policies.parse("aibrix-apa:target=100")
    policy = spec.build(knobs)
    target, asked = 2, []
    for tick in range(4):
        o = observe(
            {Signal.RUNNING: 2000.0}, ready=2, pending=(5.0,) * (target - 2), now_s=10.0 * tick, target=target
        )
        asked.append(target)
        target = policy.decide(o).replicas
    assert asked == [2, 4, 8, 16]


def test_kpa_counts_the_fleet_and_kv_counts_a_pod(observe: Observe) -> None:
    spec, knobs = policies.parse("aibrix-kpa:target=100")
    busy = {Signal.RUNNING: 450.0, Signal.GATEWAY_QUEUED: 50.0}
    assert spec.build(knobs).decide(observe(busy, ready=4)).replicas == 5
    spec, knobs = policies.parse("aibrix-apa:target=0.5,kv=1")
    full = {Signal.KV_USED_TOKENS: 4 * 4.5e6}
    assert spec.build(knobs).decide(observe(full, ready=4)).replicas == 6
