"""What holds for every road that a fleet can take."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator.scaling import (
    DemandTotals,
    Load,
    Policy,
    Queue,
    Sample,
    ServedTotals,
    State,
    Supply,
    decide,
)
from moefleet_operator.scaling.state import STATE_MAX_BYTES
from moefleet_perf import StepTotals, load_calibration
from moefleet_testing.reading import faults

POLICY = Policy(1, 20, tpot_s=0.1, ttft_s=2.0, calibration=load_calibration("deepseek-v2-8xh800"))
COUNTS = st.integers(0, 10**9)


@st.composite
def ticks(draw):
    """One tick: how time and totals move on, and what is seen. Bounds come first, so that they are valid."""
    low = draw(st.integers(1, 10))
    pending = tuple(draw(st.lists(st.floats(0, 2000), max_size=4)))
    return {
        "after_s": draw(st.sampled_from([0.0, 1.0, 5.0, 5.0, 5.0, 60.0, 4000.0])),
        "policy": replace(
            POLICY,
            min_replicas=low,
            max_replicas=low + draw(st.integers(0, 30)),
            tpot_s=draw(st.sampled_from([0.1, 0.05, 0.001])),
            calibration=draw(st.sampled_from([POLICY.calibration] * 3 + [None])),
            scale_to_zero_after_s=draw(st.sampled_from([None, None, 60.0])),
        ),
        "arrived": draw(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 10**4))),
        "supply": Supply(
            target=-1,
            ready=draw(st.integers(0, 30)),
            pending_ages_s=pending,
            unschedulable=draw(st.integers(0, 3)),
            cold_starts_s=tuple(draw(st.lists(st.floats(1, 600), max_size=6))),
        ),
        "known": draw(st.sampled_from([True, True, True, False])),
        "facts": {
            "silent_gateways": draw(st.sampled_from([0, 0, 0, 1])),
            "silent_replicas": draw(st.sampled_from([0, 0, 0, 2])),
            "queue": Queue(draw(st.integers(0, 10**5)), draw(COUNTS), draw(st.floats(0, 1e4))),
            "load": Load(
                draw(st.integers(0, 30)), *draw(st.tuples(*[st.integers(0, 10**7)] * 5)), draw(st.integers(0, 10**8))
            ),
            "context_tokens": draw(st.sampled_from([None, 0.0, 3000.0, 1e7])),
            "steps": draw(st.sampled_from([None, StepTotals(1000, 20.0, 5e5, 1e5, 1e8, 1e4, 2e3, 2e6, 1e9, 6e7, 6e10, 1.5e7, 1.5e10, 2e13)])),
        },
    }  # fmt: skip


def drive(roads, state=None, target=1):
    """Yields (now, sample, decision) of each tick; the target is always carried out at once."""
    now, totals, served = 1_700_000_000.0, DemandTotals(), ServedTotals()
    for tick in roads:
        now += tick["after_s"]
        n, prompt, output = tick["arrived"]
        totals = replace(
            totals,
            arrivals=totals.arrivals + n,
            prompt_tokens=totals.prompt_tokens + n * prompt,
            output_tokens=totals.output_tokens + n * output,
        )
        served = replace(served, admitted=served.admitted + n // 2, output_tokens=served.output_tokens + n)
        sample = Sample(
            policy=tick["policy"],
            supply=replace(tick["supply"], target=target),
            demand=totals if tick["known"] else None,
            served=served,
            **tick["facts"],
        )
        decision = decide(state, sample, now)
        yield now, sample, decision
        state, target = decision.state, decision.replicas


ROADS = st.lists(ticks(), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(ROADS)
def test_never_outside_the_bounds_and_every_decision_says_why(roads):
    for _, sample, decision in drive(roads):
        policy = sample.policy
        assert decision.replicas <= policy.max_replicas
        asleep = policy.scale_to_zero_after_s is not None and decision.replicas == 0
        assert asleep or decision.replicas >= policy.min_replicas
        assert decision.message
        assert faults(decision.message) == [], decision.message
        assert len(decision.message) < 500
        numbers = [v for v in decision.terms.as_dict().values() if not isinstance(v, str)]
        assert all(math.isfinite(number) for number in numbers)


@settings(max_examples=60, deadline=None)
@given(ROADS)
def test_what_is_unknown_never_lowers_the_target(roads):
    for _, sample, decision in drive(roads):
        unknown = (
            sample.demand is None
            or sample.silent_gateways
            or sample.silent_replicas
            or sample.policy.calibration is None
            or sample.policy.tpot_s < 0.01
        )
        if unknown:
            assert decision.replicas >= min(sample.supply.target, sample.policy.max_replicas), (
                decision.message
            )


@settings(max_examples=60, deadline=None)
@given(ROADS)
def test_the_same_facts_give_the_same_decision_also_through_json(roads):
    first = list(drive(roads))
    assert first == list(drive(roads))
    for i, (now, sample, decision) in enumerate(first[:-1]):
        text = decision.state.to_json()
        assert len(text.encode()) <= STATE_MAX_BYTES
        again = State.from_json(text)
        assert again is not None
        following = first[i + 1]
        resumed = decide(again, following[1], following[0])
        assert (resumed.replicas, resumed.reason) == (following[2].replicas, following[2].reason)
        assert now <= following[0]
        assert sample.policy is not None


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 300), st.floats(0, 300))
def test_more_work_never_asks_for_fewer(low_rps, more_rps):
    def after_ten_minutes(rps):
        roads = [
            {"after_s": 5.0, "policy": replace(POLICY, max_replicas=1000), "arrived": (round(rps * 5), 800, 60), "supply": Supply(-1, 50, cold_starts_s=(30.0,) * 5), "known": True, "facts": {}}
        ] * 120  # fmt: skip
        return list(drive(roads))[-1][2].terms.wanted

    assert after_ten_minutes(low_rps + more_rps) >= after_ten_minutes(low_rps)


@st.composite
def states_and_a_tick(draw):
    """A fleet after some minutes of uneven traffic of one mix, and the sample that is to be decided on."""
    prompt, output = draw(st.integers(50, 5000)), draw(st.integers(1, 1000))
    rates = draw(st.lists(st.integers(0, 3000), min_size=12, max_size=40))
    facts = {
        "queue": Queue(draw(st.sampled_from([0, 0, 50])), 0, draw(st.sampled_from([0.0, 1.1, 30.0]))),
        "load": Load(10, 5, draw(st.sampled_from([0, 40])), draw(st.integers(0, 10**6)), 0, 10**6, 10**7),
    }
    policy = replace(POLICY, max_replicas=10**6)
    roads = [
        {"after_s": 5.0, "policy": policy, "arrived": (n, prompt, output), "supply": Supply(-1, 10, cold_starts_s=(60.0,) * 4), "known": True, "facts": facts}
        for n in rates
    ]  # fmt: skip
    *_, (now, sample, decision) = drive(roads, target=10)
    return decision.state, sample, now + 5.0, (prompt, output)


def arrived(sample, count, mix):
    d = sample.demand
    more = replace(
        d, arrivals=d.arrivals + count, prompt_tokens=d.prompt_tokens + count * mix[0], output_tokens=d.output_tokens + count * mix[1]
    )  # fmt: skip
    return replace(sample, demand=more)


@settings(max_examples=60, deadline=None)
@given(states_and_a_tick(), st.integers(0, 3000), st.integers(0, 3000))
def test_more_arrivals_in_this_sample_never_lower_the_need(found, few, more):
    state, sample, now, mix = found
    low = decide(state, arrived(sample, few, mix), now).terms
    high = decide(state, arrived(sample, few + more, mix), now).terms
    assert high.need >= low.need * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    states_and_a_tick(),
    st.floats(0.03, 2.0),
    st.floats(1.0, 10.0),
    st.floats(0.1, 10.0),
    st.floats(1.0, 10.0),
)
def test_a_larger_limit_never_raises_the_need(found, tpot_s, tpot_times, ttft_s, ttft_times):
    state, sample, now, mix = found
    sample = arrived(sample, 100, mix)
    strict = replace(sample.policy, tpot_s=tpot_s, ttft_s=ttft_s)
    loose = replace(strict, tpot_s=tpot_s * tpot_times, ttft_s=ttft_s * ttft_times)
    needs = [decide(state, replace(sample, policy=p), now).terms.need for p in (strict, loose)]
    assert needs[1] <= needs[0] * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(states_and_a_tick(), st.integers(1, 200), st.integers(0, 3000))
def test_a_restart_changes_the_target_by_at_most_one_for_one_cold_start(found, target, count):
    _, sample, now, mix = found
    state, begun = None, target
    calm = replace(sample, queue=Queue(), load=Load(target, 5))
    for i in range(11):
        calm = arrived(calm, count, mix)
        calm = replace(calm, supply=Supply(target, target, cold_starts_s=(60.0,) * 4))
        decision = decide(state, calm, now + 5.0 * i)
        state, target = decision.state, decision.replicas
        assert abs(target - begun) <= 1, decision.message
