"""Which reports of steps are believed: outliers are not, another engine is within a minute, and rare loads are not outvoted."""

import math
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_perf import StepModel, StepTotals, StepWatch, fed, fit_step_model, load_calibration
from moefleet_perf.online import CONTEXT_FADE_S

PRIOR = load_calibration("deepseek-v2-8xh800-aic").step
SLOWER = StepModel(*(1.5 * x for x in (PRIOR.a_s, PRIOR.b_s, PRIOR.c_s, PRIOR.d_s)))


def report(model, chance, *, prefill=400, sequences=200, steps=150, noise=0.1):
    totals = StepTotals()
    for _ in range(steps):
        p, n = chance.randint(0, 2 * prefill), chance.randint(1, 2 * sequences)
        kv = n * chance.randint(500, 1500)
        time_s = model.step_time_s(p, n, kv) * (1 + noise * chance.uniform(-1, 1))
        totals = totals.with_step(time_s, p, n, kv)
    return totals


def after(watch, seconds, model, chance, **load):
    for _ in range(int(seconds / 5)):
        watch = fed(watch, [report(model, chance, **load)], PRIOR, watch.at_s + 5.0)
    return watch


@pytest.fixture
def settled():
    return after(StepWatch(at_s=1.0), 300, PRIOR, random.Random(1))


def test_a_process_that_was_paused_says_nothing_of_its_steps(settled):
    paused = replace(report(PRIOR, random.Random(2)), time_s=30.0)
    watch = fed(settled, [paused], PRIOR, settled.at_s + 5.0)
    assert watch.ratio > 2
    assert watch.totals == settled.totals
    # The next ones are as before, and nothing is left of it.
    watch = after(watch, 60, PRIOR, random.Random(3))
    assert (watch.changed_at_s, watch.doubted_since_s) == (0.0, 0.0)


@pytest.mark.parametrize(("factor", "noticed"), [(1.05, False), (1.12, False), (1.5, True), (0.6, True)])
def test_another_engine_is_noticed_within_a_minute_and_believed(settled, factor, noticed):
    other = StepModel(*(factor * x for x in (PRIOR.a_s, PRIOR.b_s, PRIOR.c_s, PRIOR.d_s)))
    watch = after(settled, 60, other, random.Random(4))
    assert (watch.changed_at_s > 0) == noticed
    if noticed:
        assert watch.changed_at_s - settled.at_s <= 60
        found = fit_step_model(watch.totals, PRIOR)
        assert found.step_time_s(400, 200, 200_000) == pytest.approx(other.step_time_s(400, 200, 200_000), rel=0.05)  # fmt: skip
        assert watch.ratio == pytest.approx(1.0, abs=0.1)


def test_a_night_of_small_batches_does_not_outvote_the_hours_that_sizing_is_about(settled):
    chance = random.Random(5)
    true = replace(PRIOR, d_s=3 * PRIOR.d_s)
    day = after(settled, 600, true, chance, sequences=500)
    # Eight hours of one request at a time, which say nothing of d: without buckets their sums would be nearly all there is.
    night = day
    for hour in range(8):
        few = [report(true, chance, prefill=0, sequences=1, steps=300) for _ in range(20)]
        night = fed(night, few, PRIOR, day.at_s + 3600.0 * (hour + 1))
    busy = (400, 500, 500_000)
    learnt, kept = (fit_step_model(w.totals, PRIOR).step_time_s(*busy) for w in (day, night))
    assert kept == pytest.approx(learnt, rel=0.03)
    assert learnt == pytest.approx(true.step_time_s(*busy), rel=0.05)


def test_a_calibration_that_was_never_checked_makes_nothing_an_outlier():
    watch = after(StepWatch(at_s=1.0), 60, SLOWER, random.Random(6))
    assert watch.doubted.count == 0
    assert fit_step_model(watch.totals, PRIOR).step_time_s(400, 200, 200_000) == pytest.approx(
        SLOWER.step_time_s(400, 200, 200_000), rel=0.08
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 100), st.integers(0, 10**6), st.integers(0, 10**5), st.floats(0, 1e4)), max_size=12))  # fmt: skip
def test_whatever_is_reported_sums_stay_finite_and_never_negative(reports):
    watch, now = StepWatch(), 1.0
    for count, time_s, prefill, sequences, after_s in reports:
        now += after_s
        sums = StepTotals(count, time_s, prefill, sequences, prefill_prefill=prefill**2, sequences_sequences=sequences**2)  # fmt: skip
        watch = fed(watch, [sums], PRIOR, now)
        assert all(0 <= getattr(watch.totals, f.name) < float("inf") for f in fields(StepTotals))
        found = fit_step_model(watch.totals, PRIOR)
        assert min(found.a_s, found.b_s, found.c_s, found.d_s) >= 0


def test_contexts_are_a_mean_of_about_five_minutes_and_paused_steps_count():
    def steps(sequences, context):
        return StepTotals(count=100, time_s=100 * 0.03, sequences=sequences, kv_tokens=sequences * context)

    watch = fed(StepWatch(at_s=1.0), [steps(999, 1500.0)], PRIOR, 6.0)
    assert watch.context_tokens is None
    watch = fed(watch, [steps(9001, 1500.0)], PRIOR, 11.0)
    assert watch.context_tokens == pytest.approx(1500.0)
    # As many again one fade later: of the old ones a share of 1/e is left; steps that took ten times as long are no outliers in this.
    later = fed(watch, [replace(steps(10_000, 4500.0), time_s=30.0)], PRIOR, 11.0 + CONTEXT_FADE_S)
    kept = (9001 + 999 * math.exp(-5 / CONTEXT_FADE_S)) / 10_000 * math.exp(-1)
    assert later.context_tokens == pytest.approx((1500 * kept + 4500) / (kept + 1))
    # A night without steps forgets them.
    assert fed(watch, [], PRIOR, 11.0 + 3600).context_tokens is None
