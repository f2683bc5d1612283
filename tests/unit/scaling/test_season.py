"""The hour of the day: heard where days repeat, silent where they do not, and never a reason to go down."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator.scaling import DemandTotals, Policy, Sample, State, Supply, decide
from moefleet_operator.scaling.season import (
    DAY_S,
    LEAST_SKILL,
    MAX_LIFT,
    SLOT_S,
    SLOTS,
    Season,
    compared,
    lift,
    seen,
    skill,
)
from moefleet_operator.scaling.state import STATE_MAX_BYTES
from moefleet_perf import Calibration, ReplicaLimits, StepModel

MIDNIGHT = 19_676 * DAY_S
LEAD_S = 600.0
STEP_S = 60.0


def lived(days, work_at, seed=1):
    """A memory after so many days of `work_at(seconds, chance)`, in replicas; the forecast is the work of the step before."""
    season, chance, past = Season(), random.Random(seed), []
    for i in range(int(days * DAY_S / STEP_S)):
        now = MIDNIGHT + i * STEP_S
        work = work_at(i * STEP_S, chance)
        lead = round(LEAD_S / STEP_S)
        if len(past) >= lead:
            season = compared(season, work, past[-lead], headroom=0.2, lead_s=LEAD_S, now=now)
        past.append(work)
        season = seen(season, work, now)
    return season, now


def batch_at_nine(t_s, chance):
    """A morning's ramp, the same every day: from 4 to 12 replicas within half an hour."""
    hour = t_s % DAY_S / 3600
    share = min(max((hour - 9) / 0.5, 0.0), 1.0) if hour < 17 else 0.0
    return (4 + 8 * share) * math.exp(chance.gauss(0, 0.05))


class Wandering:
    """No day is like another: it forgets within two hours."""

    def __init__(self):
        self.height = 0.0

    def __call__(self, t_s, chance):
        kept = math.exp(-STEP_S / 7200)
        self.height = self.height * kept + 0.4 * math.sqrt(1 - kept**2) * chance.gauss(0, 1)
        return 4 * math.exp(self.height + chance.gauss(0, 0.05))


@pytest.mark.parametrize(
    ("story", "days", "work", "heard"),
    [
        ("a batch at nine, on the first day: nobody can know", 1, batch_at_nine, False),
        ("on the fourth it is known", 4, batch_at_nine, True),
        ("days that do not repeat never earn it", 4, Wandering(), False),
        ("a constant load has nothing to say", 4, lambda t, c: 4.0, False),
    ],
)
def test_the_season_is_heard_only_where_it_has_spared_something(story, days, work, heard):
    season, _ = lived(days, work)
    assert (skill(season) > LEAST_SKILL) == heard, f"{story}: {skill(season):.3f}"


def test_what_is_known_of_the_morning_is_how_much_more_comes_within_a_cold_start():
    season, now = lived(4, batch_at_nine)
    morning = now - now % DAY_S + DAY_S + 9 * 3600
    # Ten minutes of half an hour from 4 to 12; quarters of an hour blur where it begins.
    assert 0.2 < lift(season, LEAD_S, morning) < math.log((4 + 8 / 3) / 4) + 0.1
    assert lift(season, LEAD_S, morning - 3 * 3600) == pytest.approx(0.0, abs=0.05)
    # What falls every evening is no reason to have less before.
    assert lift(season, LEAD_S, morning + 8 * 3600) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e5)), max_size=60), st.floats(0, 7200))
@settings(max_examples=50)
def test_lift_is_bounded_whatever_came(points, lead_s):
    season, now = Season(), MIDNIGHT
    for work, after_s in points:
        now += after_s
        season = compared(season, work, work / 2, headroom=0.1, lead_s=lead_s, now=now)
        season = seen(season, work, now)
    assert 0.0 <= lift(season, lead_s, now) <= MAX_LIFT
    assert math.isfinite(skill(season))


def test_a_fleet_whose_mornings_repeat_is_ready_before_nine_and_says_so():
    step = StepModel(a_s=0.0085, b_s=0.0005, c_s=0.005, d_s=0.0)
    calibration = Calibration("round", step, ReplicaLimits(1000, 10**6, 10**4), "Made up.")
    policy = Policy(1, 50, tpot_s=0.1, ttft_s=2.0, calibration=calibration)
    season, now = lived(4, batch_at_nine)
    at = now - now % DAY_S + DAY_S + 9 * 3600 + 60.0
    needs = []
    for memory in (Season(), season):
        state, n = None, 0.0
        for i in range(120):
            t = at - 600 + 5.0 * i
            n += 36 * 5
            supply = Supply(5, 5, cold_starts_s=(LEAD_S - 5,) * 4)
            sample = Sample(policy, supply, DemandTotals(n, n * 100, 0, n * 10))
            if state is not None:
                state = replace(state, season=replace(memory, at_s=0.0))
            decision = decide(state, sample, t)
            state = decision.state
        needs.append(decision.terms.need)
    assert needs[1] > 1.2 * needs[0]
    assert decision.terms.season_ratio > 0.2
    assert "more at this hour of other days" in decision.message


def test_a_full_memory_fits_and_comes_back():
    season, _ = lived(3, batch_at_nine)
    assert len(season.profile) == SLOTS == DAY_S / SLOT_S
    state = State(season=season)
    text = state.to_json()
    assert len(text.encode()) <= STATE_MAX_BYTES / 3
    again = State.from_json(text).season
    assert skill(again) == pytest.approx(skill(season), abs=1e-3)
    assert again.profile == pytest.approx(season.profile, abs=1e-3)
