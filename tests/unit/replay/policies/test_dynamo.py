"""The Dynamo planner. Numbers are those of ai-dynamo 1.6.1, dynamo/planner/tests/unit, by the names of its tests."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf import Mix, load_calibration
from moefleet_replay import policies
from moefleet_replay.observation import Objective, Observation, ReplicaView, Signal
from moefleet_replay.policies.dynamo import capped, engine_rps, next_ttft_s
from moefleet_replay.policies.predictors import Arima, Constant, Kalman, Predictor, Prophet, ar2_forecast

Observe = Callable[..., Observation]

CHAT = {
    Signal.ARRIVALS: 100.0,
    Signal.ARRIVED_INPUT_TOKENS: 100 * 1500.0,
    Signal.COMPLETED: 100.0,
    Signal.COMPLETED_OUTPUT_TOKENS: 100 * 300.0,
    Signal.STEPS: 400.0,
    Signal.PREFILLED_TOKENS: 100 * 1500.0,
}


def replica(running: int, queued_tokens: int = 0) -> ReplicaView:
    return ReplicaView(1, 0.0, 0, running, queued_tokens, 0, running * 1650, 0.05)


# --- engine capacity ----------------------------------------------------------------------------------------


def test_the_batch_is_balanced_against_prefill_as_upstream_has_it() -> None:
    # test_find_best_engine_agg_rps_caps_spec_decode_by_prefill_admission: 133.2 requests/s, 25 ms.
    def step(prefill: float, sequences: float, kv: float) -> float:
        return 0.05

    rps, _, itl = engine_rps(
        step, Mix(100, 100), chunk_tokens=1000, ttft_s=10.0, itl_s=10.0, accept_length=2.0
    )
    assert rps == pytest.approx(133.2)
    assert itl == pytest.approx(0.025)
    # The same without speculation, by its docstring's balance: batch 500 of 1000 tokens, 100 requests/s.
    rps, _, _ = engine_rps(step, Mix(100, 100), chunk_tokens=1000, ttft_s=10.0, itl_s=10.0)
    assert rps == pytest.approx(100.0)


def test_ttft_is_simulated_chunk_by_chunk() -> None:
    # estimate_next_ttft: 3,000 queued and an own prompt of 1,096 in chunks of 2,048 are two steps.
    def step(prefill: float, sequences: float, kv: float) -> float:
        return 0.010 + prefill * 1e-5

    assert next_ttft_s(step, 3000 + 1096, 2048, 1, 1000) == pytest.approx(2 * 0.010 + 4096e-5)
    assert next_ttft_s(step, 0, 2048, 1, 1000) == 0.0


@given(
    st.floats(100, 8000),
    st.floats(20, 2000),
    st.floats(0.02, 0.1),
    st.sampled_from(["deepseek-v2-8xh800", "deepseek-v2-8xh800-aic"]),
)
def test_bisection_finds_what_the_sweep_finds(
    input_tokens: float, output_tokens: float, itl_s: float, name: str
) -> None:
    calibration = load_calibration(name)
    step, mix = calibration.step.step_time_s, Mix(input_tokens, output_tokens)
    limits: dict[str, Any] = {"chunk_tokens": 2048, "ttft_s": 2.0, "itl_s": itl_s, "max_sequences": 200}
    rps, ttft, itl = engine_rps(step, mix, **limits)
    best = None
    for batch in range(1, 201):
        prefill = batch * input_tokens / output_tokens
        if prefill > 2048 - batch:
            break
        step_s = step(prefill, batch, batch * (input_tokens + output_tokens / 2))
        first = next_ttft_s(
            step, prefill + input_tokens, 2048, batch, batch * (input_tokens + output_tokens / 2)
        )
        if step_s > itl_s or first > 2.0:
            break
        best = min(batch / (output_tokens * step_s), (2048 - batch) / (input_tokens * step_s))
    if best is not None:
        assert rps == pytest.approx(best)
        assert itl <= itl_s
        assert ttft <= 2.0


# --- predictors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictor", "values", "expected"),
    [
        # TestConstantPredictor, TestProphetPredictor, TestKalmanPredictor
        (Constant(), [], 0.0),
        (Constant(), [10.0, 20.0, 30.0], 30.0),
        (Prophet(), [10.0, 20.0, 30.0], 30.0),
        (Prophet(), [], 0.0),
        (Kalman(), [], 0.0),
        (Kalman(min_points=3), [10.0], 10.0),
        (Kalman(min_points=3), [10.0, 20.0], 20.0),
        (Arima(), [10.0, 20.0], 20.0),
        # auto_arima of a constant is corrected to the constant.
        (Arima(), [7.0] * 20, 7.0),
        (Prophet(), [2.0 * i for i in range(1, 21)], 42.0),
    ],
)
def test_forecasts(predictor: Predictor, values: list[float], expected: float) -> None:
    for value in values:
        predictor.add(value)
    assert predictor.predict() == pytest.approx(expected)


def test_kalman_is_the_filter_of_its_matrices() -> None:
    # Five points of the published filter (F, H, Q = diag(1, 0.1), R = 10, P = 1000*I), multiplied out by hand below.
    kalman = Kalman()
    level, trend, p = 10.0, 0.0, [[1000.0, 0.0], [0.0, 1000.0]]
    kalman.add(10.0)
    for value in (12.0, 15.0, 17.0, 20.0):
        kalman.add(value)
        level += trend
        p = [
            [p[0][0] + p[0][1] + p[1][0] + p[1][1] + 1.0, p[0][1] + p[1][1]],
            [p[1][0] + p[1][1], p[1][1] + 0.1],
        ]
        gain = [p[0][0] / (p[0][0] + 10.0), p[1][0] / (p[0][0] + 10.0)]
        surprise = value - level
        level, trend = level + gain[0] * surprise, trend + gain[1] * surprise
        p = [
            [(1 - gain[0]) * p[0][0], (1 - gain[0]) * p[0][1]],
            [p[1][0] - gain[1] * p[0][0], p[1][1] - gain[1] * p[0][1]],
        ]
    assert kalman.predict() == pytest.approx(level + trend)
    assert kalman.predict() == kalman.predict()  # test_caches_prediction_between_observations
    assert 21.0 < kalman.predict() < 23.0


@pytest.mark.parametrize("predictor", [Kalman(), Arima(), Prophet()], ids=["kalman", "arima", "prophet"])
def test_declining_traffic_never_goes_below_zero(predictor: Predictor) -> None:
    # test_predict_returns_non_negative_on_declining_traffic
    for value in [10.0, 15.0, 20.0, 15.0, 10.0, 5.0, 2.0, 1.0, 0.0]:
        predictor.add(value)
        assert predictor.predict() >= 0.0


def test_arima_learns_a_known_recursion() -> None:
    # x[t] = 10 + 0.6 x[t-1] - 0.3 x[t-2], from a start away from its mean.
    values = [30.0, 5.0]
    for _ in range(20):
        values.append(10 + 0.6 * values[-1] - 0.3 * values[-2])
    following = 10 + 0.6 * values[-1] - 0.3 * values[-2]
    assert ar2_forecast(values[:12], 1)[0] == pytest.approx(values[12], rel=1e-6)
    assert ar2_forecast(values[:12], 3) == pytest.approx(values[12:15], rel=1e-6)
    assert ar2_forecast(values, 1)[0] == pytest.approx(following, rel=1e-3)


# --- decisions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "current", "expected"),
    # test_agg_throughput_uses_replica_cap (10 to at most 18), and down by as many, never below none.
    [(100, 10, 18), (1, 20, 12), (1, 5, 1), (12, 10, 12)],
)
def test_a_throughput_decision_moves_at_most_eight(desired: int, current: int, expected: int) -> None:
    assert capped(desired, current, 8) == expected


def test_throughput_is_demand_over_engine_rps(observe: Observe) -> None:
    spec, knobs = policies.parse("dynamo-throughput:predictor=0,max_change=100")
    o = observe(CHAT, ready=3)
    limits = o.calibration.limits
    rps, _, _ = engine_rps(
        o.calibration.step.step_time_s,
        Mix(1500, 300),
        chunk_tokens=limits.max_batch_tokens,
        ttft_s=2.0,
        itl_s=0.1,
        max_kv_tokens=limits.kv_max_tokens,
        max_sequences=limits.max_sequences,
    )
    assert spec.build(knobs).decide(o).replicas == math.ceil(100 / rps)
    tight, knobs = policies.parse("dynamo-throughput:predictor=0,max_change=100,itl_share=0.33")
    assert tight.build(knobs).decide(o).replicas > math.ceil(100 / rps)


def test_starts_are_cancelled_by_a_second_signal_and_never_by_a_wish_to_grow(observe: Observe) -> None:
    # test_throughput_cancels_startup_only_for_actual_down_intent, test_startup_projection_requires_sustained_...
    spec, knobs = policies.parse("dynamo-throughput:predictor=0")
    policy = spec.build(knobs)
    surge = {s: 9 * v for s, v in CHAT.items()}
    assert policy.decide(observe(surge, ready=4, pending=(9.0,), now_s=7200.0)).replicas == 5
    assert policy.decide(observe(CHAT, ready=4, pending=(9.0,), now_s=7380.0)).replicas == 5
    assert policy.decide(observe(CHAT, ready=4, pending=(9.0,), now_s=7560.0)).replicas <= 4


@pytest.mark.parametrize(
    ("case", "replicas", "pending", "expected"),
    [
        ("all queues far over TTFT: one up", [replica(900, 900_000)] * 4, 0, 5),
        ("one engine is inside: hold", [replica(900, 900_000)] * 3 + [replica(2200, 0)], 0, 4),
        ("every ITL over the limit: one up", [replica(6000)] * 4, 0, 5),
        ("survivors would be inside: one down", [replica(100)] * 4, 0, 3),
        ("the last one stays", [replica(0)], 0, 1),
        ("growth waits for starts (F3)", [replica(900, 900_000)] * 4, 1, 5),
    ],
)
def test_load_moves_by_one(
    case: str, replicas: list[ReplicaView], pending: int, expected: int, observe: Observe
) -> None:
    spec, knobs = policies.parse("dynamo-load")
    o = observe(CHAT, ready=len(replicas), replicas=tuple(replicas), pending=(5.0,) * pending)
    assert spec.build(knobs).decide(o).replicas == expected, case


def test_load_can_cancel_starts_and_drain(observe: Observe) -> None:
    # test_load_can_cancel_startup_and_drain_serving_workers: ready 1 -> 1, ready 3 -> 2, one start pending.
    for ready, expected in ((1, 1), (3, 2)):
        spec, knobs = policies.parse("dynamo-load")
        policy = spec.build(knobs)
        o = observe(CHAT, ready=ready, replicas=(replica(10),) * ready, pending=(5.0,))
        assert policy.decide(o).replicas == ready + 1
        assert policy.decide(o).replicas == expected


def test_in_both_modes_throughput_is_the_floor(observe: Observe) -> None:
    spec, knobs = policies.parse("dynamo-both:predictor=0,itl_share=0.4")
    policy = spec.build(knobs)
    floor = policies.parse("dynamo-throughput:predictor=0,itl_share=0.4")
    wanted = floor[0].build(floor[1]).decide(observe(CHAT, ready=4)).replicas
    got = policy.decide(observe(CHAT, ready=4, replicas=(replica(10),) * 4)).replicas
    assert got == max(wanted, 3)
    assert wanted > 3


def test_an_objective_below_any_step_is_sized_at_batch_one(observe: Observe) -> None:
    # test_unreachable_prefill_ttft_does_not_create_replica_floor's kin: it answers with what it has.
    spec, knobs = policies.parse("dynamo-throughput:predictor=0")
    o = observe(CHAT, ready=2, objective=Objective(2.0, 0.001, 0.99))
    assert spec.build(knobs).decide(o).replicas == 10
