"""How headroom is learnt: tables over the pure functions, then a fleet that lives with it."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.scaling import (
    Attained,
    DemandTotals,
    Policy,
    Queue,
    Sample,
    State,
    Supply,
    decide,
)
from moefleet_operator.scaling.headroom import (
    AIM,
    BIN,
    LOWEST,
    MAX_HEADROOM,
    MIN_BALANCE,
    Budget,
    Surprises,
    allowed_share,
    headroom,
    observed,
    settled,
)
from moefleet_operator.scaling.state import STATE_MAX_BYTES
from moefleet_perf import load_calibration

LEAD_S, HOLD_S = 245.0, 120.0
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


def learnt(ratios, step_s=15.0, forecast=100.0):
    """A memory in which work was so many times a forecast that stands still, one after the other."""
    memory, now = Surprises(), 1.0
    for ratio in ratios:
        now += step_s
        memory = seen(memory, ratio * forecast, forecast, now)
    return memory


def seen(memory, work, forecast, now):
    return observed(memory, work, forecast, lead_s=LEAD_S, hold_s=HOLD_S, weight=1.0, now=now)


def noise(spread, seconds, seed=1):
    chance = random.Random(seed)
    return [math.exp(chance.gauss(0, spread)) for _ in range(int(seconds / 15))]


@pytest.mark.parametrize(
    ("story", "ratios", "low", "high"),
    [
        ("nothing seen: the prior of a spread of 12 %", [], 0.25, 0.33),
        ("a calm day: hardly any", [1.0] * 5760, 0.0, 0.15),
        ("a day of noise of 15 %: what a normal tail says, 0.35", noise(0.15, DAY_S), 0.31, 0.43),
        ("a day of noise of 30 %: twice that", noise(0.3, DAY_S), 0.6, MAX_HEADROOM),
        ("an hour of 30 % weighs as much as the prior", noise(0.3, HOUR_S), 0.35, 0.65),
        ("a restless day, then two calm ones: forgotten", noise(0.3, DAY_S) + [1.0] * 11520, 0.0, 0.15),
        ("one surge of five minutes in a calm day is no headroom", [1.0] * 5000 + [2.0] * 20 + [1.0] * 60, 0.0, 0.15),
        ("demand that falls all the time needs none", [0.6] * 5760, 0.0, 0.05),
    ],
)  # fmt: skip
def test_headroom_is_what_all_but_the_allowed_share_stayed_below(story, ratios, low, high):
    assert low <= headroom(learnt(ratios), 0.01) <= high, story


@given(st.lists(st.floats(0.2, 5.0), max_size=200), st.floats(0.0005, 0.25), st.floats(0.0005, 0.25))
def test_leaving_out_more_never_keeps_more(ratios, one, other):
    memory = learnt(ratios)
    assert headroom(memory, max(one, other)) <= headroom(memory, min(one, other)) + 1e-9
    assert 0.0 <= headroom(memory, one) <= MAX_HEADROOM


def test_a_gap_in_the_ticks_is_no_surprise():
    memory = learnt([1.0] * 400)
    late = seen(memory, 5000.0, 100.0, 1e6)
    assert late.weights == memory.weights


def newest(forecasts, work):
    """The headroom that would just have been enough for `work` after these forecasts, one each 15 s; the middle of its bin."""
    memory = learnt([1.0] * 60)
    for n, forecast in enumerate(forecasts, start=1):
        before = memory
        memory = seen(memory, work, forecast, 1.0 + 15.0 * (60 + n))
    grown = [after - then for after, then in zip(memory.weights, before.weights, strict=True)]
    return LOWEST + (grown.index(max(grown)) + 0.5) * BIN


@pytest.mark.parametrize(
    ("story", "forecasts", "work", "enough"),
    [
        ("a steady fleet, and work that is as it was", [100.0] * 40, 100.0, 0.0),
        ("half as much again is not there", [100.0] * 40, 150.0, math.log(1.5)),
        ("replicas are whole: four are there for 3.1, and mostly for 3.9", [3.1] * 40, 3.9, math.log(3.135 / 3.1)),
        ("a fifth one is not", [3.1] * 40, 4.1, math.log(4.055 / 3.1)),
        ("what is forecast only now is not ready yet", [100.0] * 40 + [150.0] * 8, 150.0, math.log(1.5)),
        ("what was forecast a lead ago is", [100.0] * 40 + [150.0] * 18, 150.0, 0.0),
        ("a forecast that dips for less than a hold takes nothing down", [100.0] * 30 + [70.0] * 5 + [100.0] * 5, 100.0, 0.0),
        ("one that dips for longer does, and it is missed when work comes back", [100.0] * 20 + [70.0] * 20 + [100.0] * 5, 100.0, math.log(1 / 0.7)),
    ],
)  # fmt: skip
def test_a_surprise_is_what_was_missing_of_what_would_have_been_there(story, forecasts, work, enough):
    assert newest(forecasts, work) == pytest.approx(enough, abs=BIN), story


def spend(budget, hours, miss_share, rps=100.0, objective=0.99):
    total, within, now = 0.0, 0.0, budget.at_s or 1.0
    before = Attained(total, within)
    for _ in range(int(hours * 60)):
        now += 60.0
        total += rps * 60
        within += rps * 60 * (1 - miss_share)
        after = Attained(total, within)
        budget = settled(budget, before, after, objective, now)
        before = after
    return budget


@pytest.mark.parametrize(
    ("story", "hours", "miss_share", "balance"),
    [
        ("just what is aimed at: nothing is saved or owed", 24, 0.01 * AIM, 0.0),
        ("half a day without a miss: half of what may be saved up", 12, 0.0, 0.5),
        ("a week without a miss is worth a day, no more", 7 * 24, 0.0, 1.0),
        ("an hour in which a twelfth is missed spends more than there was", 1, 0.08, MIN_BALANCE),
        ("an outage of a day is not paid back by days of replicas that nobody needs", 24, 1.0, MIN_BALANCE),
    ],
)
def test_the_budget_in_days_of_allowed_misses(story, hours, miss_share, balance):
    # A day of traffic before, so that the mean rate is known.
    known = replace(spend(Budget(), 24, 0.01 * AIM))
    assert spend(known, hours, miss_share).balance == pytest.approx(balance, abs=0.03), story


def test_an_unknown_attainment_leaves_the_balance_and_a_hundred_percent_is_planned_for_as_well():
    budget = Budget(100.0, 0.4, 1e5, 1e4)
    assert settled(budget, None, Attained(5, 5), 0.99, 200.0).balance == 0.4
    assert settled(budget, Attained(5, 5), None, 0.99, 200.0).balance == 0.4
    assert math.isfinite(settled(budget, Attained(5, 5), Attained(9, 6), 1.0, 200.0).balance)
    assert allowed_share(budget, 1.0) > 0


def test_unspent_budget_lowers_headroom_and_a_spent_one_takes_that_back():
    memory = learnt(noise(0.15, DAY_S))
    rooms = [headroom(memory, allowed_share(Budget(balance=b), 0.99)) for b in (-4.0, -0.5, 0.0, 0.5, 1.0)]
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[2] == pytest.approx(headroom(memory, 0.01))
    # Hardly stricter than the objective, also with a balance that an older release left.
    assert rooms[2] < rooms[1] == rooms[0] < headroom(memory, 0.005)
    assert rooms[-1] < 0.7 * rooms[2]


def test_a_week_of_ticks_fits_into_the_state_and_comes_back_from_it():
    chance = random.Random(3)
    policy = Policy(1, 2000, tpot_s=0.1, ttft_s=2.0, calibration=load_calibration("deepseek-v2-8xh800"))
    state, totals, attained, now = None, DemandTotals(), Attained(), 1_700_000_000.0
    for i in range(3000):
        now += 5.0
        n = 5 * 12345.678 * math.exp(chance.gauss(0, 0.2))
        totals = replace(
            totals,
            arrivals=totals.arrivals + n,
            prompt_tokens=totals.prompt_tokens + n * 987.6,
            output_tokens=totals.output_tokens + n * 123.4,
        )
        attained = Attained(attained.requests + n, attained.within + n * 0.995)
        supply = Supply(100, 100, (7.0,) * 3, cold_starts_s=(240.0, 600.0))
        sample = Sample(policy, supply, totals, queue=Queue(3, 999, 0.1), attained=attained)
        state = decide(state, sample, now).state
        if i == 1500:
            # A week later: what was learnt fades, it does not grow.
            state = State.from_json(state.to_json())
    text = state.to_json()
    assert len(text.encode()) <= STATE_MAX_BYTES
    again = State.from_json(text)
    share = allowed_share(state.budget, 0.99)
    assert allowed_share(again.budget, 0.99) == pytest.approx(share, rel=1e-4)
    assert headroom(again.surprises, share) == pytest.approx(headroom(state.surprises, share), abs=0.01)
    assert headroom(state.surprises, 0.01) > 0.15
