"""SageServe and Chiron. Both are papers: numbers are those of SageServe's own example (long_term_allocation.py at 0b95ca2), and
of its and Chiron's equations computed by hand."""

from collections.abc import Callable

import pytest
from moefleet_perf import Mix, capacity
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.chiron import instances_for
from moefleet_replay.policies.sageserve import forecast, planned_instances

Observe = Callable[..., Observation]
CHAT = {
    Signal.ARRIVALS: 100.0,
    Signal.ARRIVED_INPUT_TOKENS: 100 * 1500.0,
    Signal.COMPLETED: 100.0,
    Signal.COMPLETED_OUTPUT_TOKENS: 100 * 300.0,
}


@pytest.mark.parametrize(
    ("tokens_s", "change"),
    # The ILP's example: 100 tokens/s an instance, one instance there; 101, 10 and 201 are forecast.
    [(101, 1), (10, 0), (201, 2)],
)
def test_the_plan_is_what_the_ilp_answers(tokens_s: float, change: int) -> None:
    assert planned_instances(tokens_s, 100) - 1 == change


def test_the_forecast_takes_yesterday_when_days_repeat() -> None:
    day = [100.0 if 48 <= i % 144 < 96 else 10.0 for i in range(3 * 144)]
    # Six bins before the morning's step: the plain recursion does not see it, the day before does.
    until = 2 * 144 + 46
    assert forecast(day[:until], 6) == pytest.approx(day[until : until + 6])


def _walk(policy_text: str, observe: Observe, steps: list[tuple[float, float, float]]) -> list[int]:
    """Targets after each (now, KV share, load factor)."""
    spec, knobs = policies.parse(policy_text)
    policy = spec.build(knobs)
    target, walked = 4, []
    for now_s, share, load in steps:
        seen = {s: v * load for s, v in CHAT.items()} | {Signal.KV_USED_TOKENS: share * 6e6 * target}
        target = policy.decide(observe(seen, ready=target, now_s=now_s)).replicas
        walked.append(target)
    return walked


def test_lt_u_follows_the_plan_as_memory_allows(observe: Observe) -> None:
    o = observe(CHAT)
    one = capacity(o.calibration, Mix(1500, 300), 0.085).input_tokens_per_s
    plan = planned_instances(100 * 1500 * 3, one)
    assert plan > 5
    steps = [
        (7200.0, 0.30, 3.0),  # planned, but memory is not above 0.5
        (7205.0, 0.60, 3.0),  # up by one
        (7210.0, 0.60, 3.0),  # it spins up for 155 s
        (7360.0, 0.60, 3.0),  # the next one
    ]
    # The number in the plan is fixed by the first hour, which was the same load here too.
    assert _walk("sageserve-lt-u", observe, steps) == [4, 5, 5, 6]


def test_at_the_plan_lt_u_asks_memory_and_lt_ua_asks_the_forecast(observe: Observe) -> None:
    o = observe(CHAT)
    one = capacity(o.calibration, Mix(1500, 300), 0.085).input_tokens_per_s
    at_plan = 4 * one / (100 * 1500) * 0.999
    calm, full, surge = (7200.0, 0.4, at_plan), (7205.0, 0.95, at_plan), (7205.0, 0.4, 5.1 * at_plan)
    assert _walk("sageserve-lt-u", observe, [calm, full]) == [4, 5]
    assert _walk("sageserve-lt-u", observe, [calm, surge]) == [4, 4]
    assert _walk("sageserve", observe, [calm, full]) == [4, 4]
    assert _walk("sageserve", observe, [calm, surge]) == [4, 5]
    assert _walk("sageserve", observe, [calm, (7205.0, 0.4, 4.9 * at_plan)]) == [4, 4]


@pytest.mark.parametrize(
    ("busy", "expected"),
    # IBP = busy / all <= 0.6: 3 of 5, 6 of 10, 7 of 12 (7/11 = 0.64), none of 1.
    [(3, 5), (6, 10), (7, 12), (0, 1)],
)
def test_backpressure_settles_at_the_threshold(busy: int, expected: int) -> None:
    assert instances_for(busy, 0.6) == expected
    assert expected == 1 or busy / (expected - 1) > 0.6


def test_chiron_counts_instances_as_if_they_were_packed(observe: Observe) -> None:
    o = observe(CHAT)
    batch = capacity(o.calibration, Mix(1500, 300), 0.1).sequences
    spec, knobs = policies.parse("chiron")
    busy = {**CHAT, Signal.RUNNING: 2.5 * batch, Signal.GATEWAY_QUEUED: 0.4 * batch}
    assert spec.build(knobs).decide(observe(busy, ready=4)).replicas == 5
    assert spec.build(knobs).decide(observe(busy, ready=4, metrics_lost=True)).replicas == 4
