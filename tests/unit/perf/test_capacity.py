"""The closed form: which limit binds where, and that a replica simulated step by step agrees with it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf import Arrival, Mix, capacity, load_calibration, scaled, simulate, with_limits, work_s

AIC = load_calibration("deepseek-v2-8xh800-aic")
CHAT, REASONING, LONG = Mix(1500, 300), Mix(500, 2000), Mix(100_000, 500)


@pytest.mark.parametrize(
    ("story", "calibration", "mix", "tpot_s", "bound"),
    [
        ("chat is limited by the step time", AIC, CHAT, 0.085, "TPOT"),
        ("reasoning fills the slots", AIC, REASONING, 0.085, "Slots"),
        (
            "long prompts with a small cache fill it",
            with_limits(AIC, kv_max_tokens=400_000),
            LONG,
            0.085,
            "KVCache",
        ),
        ("prompts alone fill the chunk", AIC, Mix(8000, 200), 0.085, "BatchTokens"),
        ("a tight objective binds before everything else", AIC, REASONING, 0.018, "TPOT"),
    ],
)
def test_the_limit_that_binds_is_named(story, calibration, mix, tpot_s, bound):
    found = capacity(calibration, mix, tpot_s)
    assert found.bound == bound, story
    # The state at capacity is the one of a = T*(1 - x*w), inside every limit.
    assert found.step_time_s <= tpot_s * (1 + 1e-9)
    x = found.requests_per_s
    assert found.step_time_s == pytest.approx(AIC.step.a_s / (1 - x * work_s(calibration, mix)))
    assert found.sequences == pytest.approx(x * mix.output_tokens * found.step_time_s)
    assert found.sequences <= calibration.limits.max_sequences * 0.95 * (1 + 1e-9)
    assert found.input_tokens_per_s == pytest.approx(x * mix.input_tokens)
    assert found.replica_s_per_request == pytest.approx(1 / x)


def test_tokens_per_second_are_no_unit_of_capacity():
    def tokens_per_s(mix):
        found = capacity(AIC, mix, 0.085)
        return found.input_tokens_per_s + found.output_tokens_per_s

    assert tokens_per_s(CHAT) > 1.4 * tokens_per_s(REASONING)


def test_an_objective_below_the_empty_step_has_no_capacity():
    found = capacity(AIC, CHAT, AIC.step.a_s)
    assert (found.requests_per_s, found.bound) == (0.0, "TPOT")
    assert found.replica_s_per_request == float("inf")


def test_cached_prompt_tokens_cost_no_prefill_but_the_last_one_is_always_computed():
    cold, warm = Mix(1500, 300), Mix(1500, 300, cached_tokens=1400)
    assert work_s(AIC, cold) - work_s(AIC, warm) == pytest.approx(1400 * AIC.step.b_s)
    assert Mix(1500, 300, cached_tokens=1500).prefill_tokens == 1.0


def test_the_context_of_long_answers_can_be_told_apart_from_the_mean():
    assert work_s(AIC, Mix(1500, 300, context_tokens=9000)) > work_s(AIC, CHAT)


MIXES = st.builds(Mix, st.floats(1, 120_000), st.floats(1, 8000))


@given(MIXES, st.floats(0.02, 1.0), st.floats(0.01, 2.0))
def test_half_the_speed_and_twice_the_objective_is_half_the_capacity(mix, tpot_s, speed):
    same = capacity(AIC, mix, tpot_s)
    slow = capacity(scaled(AIC, speed), mix, tpot_s / speed)
    assert slow.requests_per_s == pytest.approx(same.requests_per_s * speed)


@given(MIXES, st.floats(0.02, 1.0), st.floats(1.0, 3.0))
def test_a_looser_objective_and_more_memory_never_lower_capacity(mix, tpot_s, more):
    tight = capacity(AIC, mix, tpot_s)
    larger = with_limits(AIC, kv_max_tokens=int(AIC.limits.kv_max_tokens * more))
    assert capacity(larger, mix, tpot_s * more).requests_per_s >= tight.requests_per_s * (1 - 1e-9)


@pytest.mark.parametrize(("mix", "load"), [(Mix(800, 60), 0.5), (Mix(800, 60), 0.85), (Mix(400, 150), 0.7)])
def test_a_replica_simulated_request_by_request_takes_the_step_time_that_the_closed_form_says(mix, load):
    at_limit = capacity(AIC, mix, 0.085)
    x = at_limit.requests_per_s * load
    expected_s = AIC.step.a_s / (1 - x * at_limit.work_s)
    # Evenly spaced with jitter: the closed form speaks of means, and a Poisson stream's bunches are what TPOT_SHARE is for.
    chance = random.Random(7)
    arrivals = [
        Arrival(str(i), (i + chance.random()) / x, round(mix.input_tokens), round(mix.output_tokens))
        for i in range(3000)
    ]
    end_s = arrivals[-1].at_s
    settled = [o for o in simulate(AIC, arrivals) if end_s * 0.3 < o.arrival.at_s < end_s * 0.9]
    mean_tpot_s = sum(o.tpot_s for o in settled) / len(settled)
    assert mean_tpot_s == pytest.approx(expected_s, rel=0.03)


def test_what_a_replica_without_eviction_carries_is_counted_with_the_room_that_it_reserves():
    """Found by the story F5: with little cache and long answers the plain form promised more than a replica ever did."""
    small, mix = with_limits(AIC, kv_max_tokens=200_000), Mix(500, 2000)
    plain, reserved = capacity(small, mix, 0.085, kv_reserved=False), capacity(small, mix, 0.085)
    assert plain.bound == reserved.bound == "KVCache"

    def waits_s(rate_rps):
        arrivals = [Arrival(str(i), i / rate_rps, 500, 2000) for i in range(1200)]
        outcomes = sorted(simulate(small, arrivals), key=lambda o: o.arrival.at_s)
        return outcomes[-1].ttft_s

    assert waits_s(reserved.requests_per_s) < 2.0
    assert waits_s(plain.requests_per_s) > 20.0
