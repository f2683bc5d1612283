"""Kubernetes HPA. Numbers of the first two tables are those of upstream's replica_calculator_test.go at 0006726."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from moefleet_perf import Mix, capacity
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.hpa import (
    DEFAULT_DOWN,
    Behavior,
    Rules,
    external_metric_replicas,
    pods_metric_replicas,
)

Observe = Callable[..., Observation]


@pytest.mark.parametrize(
    ("case", "levels", "pods", "expected"),
    [
        ("ToleranceCM", [20.0, 21.0, 21.0], {"target": 20.0, "current": 3}, 3),
        ("ScaleDownIncludeUnreadyPods", [0.1, 0.3, 0.5], {"target": 0.5, "current": 5, "unready": 2}, 2),
        ("ScaleDownExcludeUnscheduledPods", [0.1], {"target": 0.5, "current": 5, "unready": 4}, 1),
        ("SuperfluousMetrics", [4.0, 9.5, 3.0, 7.0], {"target": 1.0, "current": 4}, 24),
        ("MissingMetrics", [0.4, 0.095], {"target": 1.0, "current": 4, "missing": 2}, 3),
        ("MissingMetricsNoChangeEq", [1.0], {"target": 1.0, "current": 2, "missing": 1}, 2),
        ("MissingMetricsNoChangeGt", [1.9], {"target": 1.0, "current": 2, "missing": 1}, 2),
        ("MissingMetricsNoChangeLt", [0.6], {"target": 1.0, "current": 2, "missing": 1}, 2),
        ("UnreadyChange", [0.45], {"target": 0.5, "current": 3, "unready": 1, "missing": 1}, 3),
        ("UnreadyScaleUp", [2.0], {"target": 0.5, "current": 3, "unready": 1, "missing": 1}, 4),
        ("UnreadyScaleDown", [0.1, 0.1], {"target": 0.5, "current": 4, "unready": 1, "missing": 1}, 3),
    ],
)
def test_pods_metric_gives_upstreams_numbers(
    case: str, levels: list[float], pods: dict[str, Any], expected: int
) -> None:
    # These cases are of CPU, where a missing pod counts its whole request (1.0) on the way down.
    got = pods_metric_replicas(sum(levels), measured=len(levels), missing_value=1.0, **pods)
    assert got == expected, case


@pytest.mark.parametrize(
    ("case", "total", "target", "status", "expected"),
    [
        ("ScaleDownPerPodCMExternal", 8600, 2867, 5, 3),
        ("TolerancePerPodCMExternal", 8600, 2900, 3, 3),
        ("TolerancePerPodCMObject", 20166, 5000, 4, 4),
    ],
)
def test_external_metric_gives_upstreams_numbers(
    case: str, total: float, target: float, status: int, expected: int
) -> None:
    assert external_metric_replicas(total, target=target, status_replicas=status) == expected, case


@pytest.mark.parametrize(
    ("current", "desired", "expected"),
    # max(+4, +100 %) of the documentation of the default behaviour.
    [(1, 50, 5), (3, 50, 7), (4, 50, 8), (5, 50, 10), (10, 50, 20), (10, 12, 12)],
)
def test_going_up_adds_four_or_doubles_in_15_s(current: int, desired: int, expected: int) -> None:
    assert Behavior().apply(0.0, current, desired, 1, 200) == expected


def test_the_limit_is_per_period_not_per_sync() -> None:
    behavior = Behavior()
    assert behavior.apply(0.0, 10, 50, 1, 200) == 20
    assert behavior.apply(5.0, 20, 50, 1, 200) == 20  # 10 at the start of the period, so 20 is all there is
    assert behavior.apply(15.0, 20, 50, 1, 200) == 40


def test_going_down_waits_until_300_s_agree() -> None:
    behavior = Behavior()
    assert behavior.apply(0.0, 10, 6, 1, 200) == 10  # starts with what is there
    assert behavior.apply(15.0, 10, 8, 1, 200) == 10
    assert behavior.apply(299.0, 10, 3, 1, 200) == 10
    assert behavior.apply(300.0, 10, 3, 1, 200) == 8  # the highest of the last 300 s
    assert behavior.apply(316.0, 8, 3, 1, 200) == 3


def test_down_policies_take_the_larger_step() -> None:
    behavior = Behavior(down=Rules(pods=4, percent=10, period_s=60.0))
    # The documentation's walk: 80 replicas with 4 pods or 10 % a minute: 8, 8 (7.2 rounded up), 7, ... then 4 a minute.
    replicas, walk = 80, []
    for minute in range(5):
        replicas = behavior.apply(60.0 * minute, replicas, 10, 1, 200)
        walk.append(replicas)
    assert walk == [72, 64, 57, 51, 45]
    assert DEFAULT_DOWN.stabilization_s == 300.0


CHAT = {
    Signal.ARRIVALS: 100.0,
    Signal.ARRIVED_INPUT_TOKENS: 100 * 1500.0,
    Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS: 100 * 300.0,
    Signal.COMPLETED: 100.0,
    Signal.COMPLETED_OUTPUT_TOKENS: 100 * 300.0,
}


def test_hpa_arrival_divides_by_a_share_of_what_one_replica_carries(observe: Observe) -> None:
    spec, knobs = policies.parse("hpa-arrival:target=0.5")
    o = observe(CHAT, ready=3)
    one = capacity(o.calibration, Mix(1500, 300), 0.85 * 0.1)
    assert spec.build(knobs).decide(o).replicas == math.ceil(100 / (0.5 * one.requests_per_s))


def test_the_number_in_the_manifest_stays_when_chat_turns_into_reasoning(observe: Observe) -> None:
    spec, knobs = policies.parse("hpa-arrival:target=0.5")
    policy = spec.build(knobs)
    before = policy.decide(observe(CHAT, ready=5)).replicas
    reasoning = {
        **CHAT,
        Signal.ARRIVED_INPUT_TOKENS: 100 * 300.0,
        Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS: 100 * 1500.0,
        Signal.COMPLETED_OUTPUT_TOKENS: 100 * 1500.0,
    }
    # Same tokens, more work: it sees no difference.
    assert policy.decide(observe(reasoning, ready=before, now_s=7215.0)).replicas == before
    fresh = spec.build(knobs).decide(observe(reasoning, ready=before)).replicas
    assert fresh > before


def test_loading_replicas_are_supply_for_arrivals_and_empty_pods_for_what_is_served(observe: Observe) -> None:
    busy = {**CHAT, Signal.PREFILLED_TOKENS: 100 * 1500.0, Signal.GENERATED_TOKENS: 100 * 300.0}
    for name in ("hpa-arrival", "hpa-served"):
        spec, knobs = policies.parse(f"{name}:target=0.5")
        wanted = spec.build(knobs).decide(observe(busy, ready=4)).replicas
        again = spec.build(knobs).decide(observe(busy, ready=4, pending=(30.0,) * (wanted - 4))).replicas
        assert again == wanted, name


def test_without_metrics_the_target_stays(observe: Observe) -> None:
    for name in ("hpa-arrival", "hpa-served", "hpa-concurrency", "hpa-kv"):
        spec, knobs = policies.parse(name)
        assert spec.build(knobs).decide(observe({}, ready=9, metrics_lost=True)).replicas == 9


def test_kv_of_mla_is_nearly_free_so_that_signal_sleeps_through_an_overload(observe: Observe) -> None:
    # F6: 2,000 requests of 2,000 tokens on one replica are two thirds of 6 M tokens; on four they are a sixth.
    spec, knobs = policies.parse("hpa-kv:target=0.6")
    assert spec.build(knobs).decide(observe({Signal.KV_USED_TOKENS: 4e6}, ready=1)).replicas == 2
    policy = spec.build(knobs)
    assert policy.decide(observe({Signal.KV_USED_TOKENS: 4e6}, ready=4, now_s=0.0)).replicas == 4
    assert policy.decide(observe({Signal.KV_USED_TOKENS: 4e6}, ready=4, now_s=300.0)).replicas == 2
