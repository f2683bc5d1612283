"""The online fit finds what steps show, keeps the calibration where they show nothing, and never goes below zero."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_perf import StepModel, StepTotals, fit_step_model, load_calibration

PRIOR = load_calibration("deepseek-v2-8xh800-aic").step


def steps(model, count, seed=1, noise=0.1, prefill=True):
    chance = random.Random(seed)
    totals = StepTotals()
    for _ in range(count):
        p = chance.choice([0, 0, chance.randint(1, 4000)]) if prefill else 0
        n = chance.randint(1, 1000)
        kv = n * chance.randint(100, 20_000)
        totals = totals.with_step(model.step_time_s(p, n, kv) * (1 + noise * chance.uniform(-1, 1)), p, n, kv)
    return totals


def test_an_engine_that_differs_from_its_calibration_is_found():
    true = StepModel(0.03, 0.8e-5, 5e-5, 1e-8)
    found = fit_step_model(steps(true, 3000), PRIOR)
    for name in ("a_s", "b_s", "c_s", "d_s"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.15), name


def test_steps_that_take_no_time_say_nothing():
    totals = StepTotals()
    for _ in range(300):
        totals = totals.with_step(1e-292, 0, 0, 0)
    assert fit_step_model(totals, PRIOR) == PRIOR


def test_few_steps_change_nothing():
    assert fit_step_model(steps(StepModel(0.1, 1e-4, 1e-4, 1e-8), 199), PRIOR) == PRIOR
    assert fit_step_model(StepTotals(), PRIOR) == PRIOR


def test_a_fleet_that_only_decodes_keeps_the_calibrated_price_of_prompts():
    found = fit_step_model(steps(StepModel(0.03, 9.9, 5e-5, 1e-8), 3000, prefill=False), PRIOR)
    assert found.b_s == pytest.approx(PRIOR.b_s)
    assert found.a_s == pytest.approx(0.03, rel=0.1)


def test_a_replica_at_one_constant_load_cannot_be_taken_apart_but_is_predicted():
    totals = StepTotals()
    for _ in range(1000):
        totals = totals.with_step(0.05, 500, 300, 300_000)
    found = fit_step_model(totals, PRIOR)
    assert found.step_time_s(500, 300, 300_000) == pytest.approx(0.05, rel=0.02)


def test_a_window_is_the_difference_of_two_reports():
    before = steps(PRIOR, 500, seed=1)
    model = StepModel(0.05, 3e-5, 4e-5, 5e-9)
    after = before + steps(model, 2000, seed=2, noise=0)
    assert fit_step_model(after - before, PRIOR).a_s == pytest.approx(0.05, rel=0.05)


def test_the_price_of_attention_stays_the_calibrations_and_is_not_counted_twice():
    """Prompts that attend to 20,000 tokens each: their time is e, and what is left of it b."""
    prior = replace(PRIOR, e_s=4.4e-10)
    context = 20_000
    chance, totals = random.Random(3), StepTotals()
    for _ in range(3000):
        p, n = chance.choice([0, chance.randint(1, 4000)]), chance.randint(1, 500)
        time_s = prior.step_time_s(p, n, n * 1000, p * context) * (1 + 0.1 * chance.uniform(-1, 1))
        totals = totals.with_step(time_s, p, n, n * 1000)
    found = fit_step_model(totals, prior, context_tokens=context)
    assert found.e_s == prior.e_s
    assert found.b_s == pytest.approx(prior.b_s, rel=0.1)
    # Whoever does not say what was attended to finds it in the price of a token.
    assert fit_step_model(totals, prior).b_s == pytest.approx(prior.b_s + prior.e_s * context, rel=0.1)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, 4000), st.integers(0, 500), st.integers(0, 10**6)),
        min_size=200,
        max_size=220,
    )
)
def test_coefficients_are_never_negative_whatever_steps_report(reported):
    totals = StepTotals()
    for step in reported:
        totals = totals.with_step(*step)
    found = fit_step_model(totals, PRIOR)
    assert min(found.a_s, found.b_s, found.c_s, found.d_s) >= 0
    assert found.step_time_s(1, 1, 1) > 0 or totals.time_s == 0 or found == PRIOR
