"""llm-d's workload-variant-autoscaler. Numbers are those of its tests and documents at 2976e4e, by their names."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from moefleet_perf import Mix, load_calibration
from moefleet_replay import policies
from moefleet_replay.observation import Objective, Observation, ReplicaView, Signal
from moefleet_replay.policies.wva import (
    Saturation,
    ThroughputAnalyzer,
    change_for,
    combined,
    decode_supply,
    derived_k2,
    itl_fit,
    v1_change,
)
from moefleet_replay.policies.wva_queue import Queue, Service, inferred_limits, service_of

Observe = Callable[..., Observation]
CHAT = {
    Signal.ARRIVALS: 100.0,
    Signal.ARRIVED_INPUT_TOKENS: 100 * 1500.0,
    Signal.COMPLETED: 100.0,
    Signal.COMPLETED_OUTPUT_TOKENS: 100 * 300.0,
}


def replica(uid: int, kv_share: float, queued: int = 0, step_time_s: float = 0.05) -> ReplicaView:
    return ReplicaView(uid, 0.0, queued, 100, 0, 0, int(kv_share * 6e6), step_time_s)


# --- saturation V1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "replicas", "expected"),
    [
        # saturationv1/analyzer_test.go
        ("scale up due to low KV spare", [(0.75, 2), (0.76, 2)], 1),
        ("scale up due to low queue spare", [(0.50, 3), (0.50, 3)], 1),
        ("scale down safe - adequate headroom", [(0.20, 1), (0.30, 1), (0.25, 1)], -1),
        ("scale down unsafe - insufficient headroom", [(0.60, 1), (0.65, 1)], 0),
        ("scale down unsafe - only one non-saturated", [(0.50, 2)], 0),
        ("all saturated", [(0.85, 2), (0.50, 6), (0.90, 7)], 1),
        # saturation-scaling-config.md, the example of 65 % and 72 %, then 76 %
        ("average spare 0.115", [(0.65, 0), (0.72, 0)], 0),
        ("average spare 0.095", [(0.65, 0), (0.76, 0)], 1),
    ],
)
def test_v1(case: str, replicas: list[tuple[float, float]], expected: int) -> None:
    assert v1_change(replicas) == expected, case


def test_v1_looks_at_the_peak_of_the_last_minute_and_waits_for_starts(observe: Observe) -> None:
    spec, knobs = policies.parse("wva-v1")
    policy = spec.build(knobs)

    def at(now_s: float, kv: float, pending: int = 0) -> int:
        replicas = tuple(replica(i, kv) for i in range(3))
        return policy.decide(
            observe(CHAT, ready=3, replicas=replicas, pending=(1.0,) * pending, now_s=now_s)
        ).replicas

    assert at(0.0, 0.75, pending=1) == 4
    assert at(15.0, 0.30) == 4
    assert [at(30.0 + 15 * i, 0.30) for i in range(4)] == [4, 4, 2, 2]


# --- saturation V2 ------------------------------------------------------------------------------------------


def test_v2_capacity_is_the_lesser_of_memory_and_what_was_seen_full() -> None:
    short, long = Mix(100, 50), Mix(100, 600)
    # "k1/k2 interaction", "k2 history", "Output-length bucketing"
    assert Saturation().capacity(0, 5000, 16000, short, None) == 12800
    assert Saturation().capacity(10, 4000, 16000, short, None) == 4000
    saturation = Saturation()
    assert saturation.capacity(6, 8000, 16000, short, None) == 8000
    assert saturation.capacity(2, 6000, 16000, short, None) == 8000
    assert saturation.capacity(2, 6000, 16000, long, None) == 12800


def test_v2_derives_capacity_from_batch_and_slots() -> None:
    # "k2 derivation": B 2048 or 8192, S 256, I 500, O 100: min(341.3, 256) * 550
    assert derived_k2(Mix(500, 100), 2048, 256) == 140800
    assert derived_k2(Mix(500, 100), 8192, 256) == 140800
    assert Saturation().capacity(2, 5000, 16000, Mix(500, 100), (2048, 256)) == 12800
    assert Saturation().capacity(2, 5000, 30000, Mix(500, 100), (8192, 256)) == 24000


@pytest.mark.parametrize(
    ("demand", "capacity", "ready", "pending", "expected"),
    [
        # RC = max(0, demand/0.85 - capacity*(ready+pending)), ceil; SC = max(0, capacity*ready - demand/0.70), floor
        (8500, 1000, 9, 0, 1),
        (8500, 1000, 9, 1, 0),
        (17000, 1000, 10, 0, 10),
        (7000, 1000, 12, 0, -2),
        (7000, 1000, 12, 5, -2),
        (6999, 1000, 11, 0, -1),
        (8000, 1000, 10, 0, 0),
        (5000, 0, 10, 0, 0),
    ],
)
def test_required_and_spare(demand: float, capacity: float, ready: int, pending: int, expected: int) -> None:
    assert change_for(demand, capacity, ready, pending) == expected


@pytest.mark.parametrize(
    ("changes", "expected"), [([2, -3], 2), ([1, 4], 4), ([-2, -3], -2), ([-2, 0], 0), ([], 0)]
)
def test_any_raises_all_must_agree_to_lower(changes: list[int], expected: int) -> None:
    assert combined(changes) == expected


# --- throughput analyzer ------------------------------------------------------------------------------------


def test_supply_of_upstreams_scenario() -> None:
    # analyzer_test.go: IL 5000, OL 200, 10 % cached, 1,024,000 tokens, ITL 0.073*0.85 + 0.006: about 2,782 tokens/s
    mix = Mix(5000, 200, 500)
    assert decode_supply(mix, 1_024_000, 0.073 * 0.85 + 0.006) == pytest.approx(2782, rel=0.001)
    # 15 requests/s of 200 are 3,000 tokens/s: more than one holds; queue of 450: 3,306.
    assert change_for(15 * 200, 2782, 1, 0) == 1
    assert pytest.approx(3306, rel=0.001) == 450 / (2.0 * (0.073 * 0.85 + 0.006))


def test_line_of_itl_over_kv() -> None:
    # itl_model_test.go
    line = [(k / 10, 0.073 * k / 10 + 0.006) for k in range(2, 8)]
    fit = itl_fit(line)
    assert fit is not None
    assert fit == pytest.approx((0.073, 0.006))
    assert itl_fit([(0.2, 0.018), (0.8, 0.048)]) == pytest.approx((0.05, 0.008))
    assert itl_fit([(0.5, 0.0425)]) is None
    assert itl_fit([(0.5, 0.0425)] * 4) is None
    assert itl_fit([(0.2, 0.03), (0.5, 0.03), (0.8, 0.03)]) is None
    assert itl_fit([(0.2, 0.09), (0.5, 0.075), (0.8, 0.06)]) is None


def test_the_window_must_be_wide_and_a_new_shape_clears_it() -> None:
    analyzer = ThroughputAnalyzer()
    mix = Mix(5000, 200)
    # Tier 2 through the default B of 6 ms until there are ten points over 0.30 of KV.
    assert analyzer.model([(0.5, 0.073 * 0.5 + 0.006)]) == pytest.approx((0.073, 0.006))
    for i in range(10):
        k = 0.20 + 0.05 * i
        analyzer.observe(15.0 * i, k, 0.05 * k + 0.010, mix)
    assert analyzer.model([]) == pytest.approx((0.05, 0.010))
    analyzer.observe(200.0, 0.5, 0.035, Mix(5000, 300))
    # T2-pinned: the B that was learnt stays.
    assert analyzer.model([(0.5, 0.060)]) == pytest.approx((0.1, 0.010))
    assert analyzer.model([(0.0, 0.0)]) is None


def test_v2_counts_starts_as_supply_and_the_throughput_arm_sees_what_kv_does_not(observe: Observe) -> None:
    # F6: KV of this model is nearly free, so V2 alone lets replicas go while they are far over their ITL.
    slow = tuple(replica(i, 0.16, step_time_s=0.09) for i in range(4))
    by_name = {}
    for name in ("wva-v2", "wva-throughput"):
        spec, knobs = policies.parse(name)
        policy = spec.build(knobs)
        policy.decide(observe(CHAT, ready=4, replicas=slow, now_s=0.0))
        by_name[name] = policy.decide(
            observe(
                {**CHAT, Signal.ARRIVALS: 4000.0, Signal.ARRIVED_INPUT_TOKENS: 6e6},
                ready=4,
                replicas=slow,
                now_s=400.0,
            )
        ).replicas
    assert by_name["wva-v2"] < 4 < by_name["wva-throughput"]
    spec, knobs = policies.parse("wva-v2")
    full = tuple(replica(i, 0.34) for i in range(4))
    assert spec.build(knobs).decide(observe(CHAT, ready=4, replicas=full)).replicas == 5
    assert spec.build(knobs).decide(observe(CHAT, ready=4, replicas=full, pending=(9.0,))).replicas == 5


def test_the_actuating_hpa_ignores_a_tenth(observe: Observe) -> None:
    # 8192*300/1800 sequences of 1,650 tokens are 0.375 of the cache: 0.35 of it on 20 asks for 22, inside the tolerance.
    for kv, expected in ((0.35, 20), (0.38, 24)):
        spec, knobs = policies.parse("wva-v2")
        full = tuple(replica(i, kv) for i in range(20))
        assert spec.build(knobs).decide(observe(CHAT, ready=20, replicas=full)).replicas == expected


# --- queueing model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_tokens", "batch", "expected_ms"),
    [(0, 4.0, 0.0), (1000, 1.0, 32.0), (2000, 8.0, 208.0), (500, 2.5, 29.25)],
)
def test_prefill_time(input_tokens: float, batch: float, expected_ms: float) -> None:
    # TestPrefillParms_PrefillTime: alpha 10, beta 0.01, gamma 0.001 ms
    service = Service(0.010, 1e-5, 1e-6)
    assert 1000 * service.prefill_s(input_tokens, 0, batch) == pytest.approx(expected_ms)


@pytest.mark.parametrize(("batch", "expected_ms"), [(1.0, 1.23), (4.0, 1.575), (8.0, 2.035), (2.5, 1.4025)])
def test_decode_time(batch: float, expected_ms: float) -> None:
    # TestDecodeParms_DecodeTime: alpha 1, beta 0.1, gamma 0.01 ms, one token in, one out
    service = Service(0.001, 1e-4, 1e-5)
    assert 1000 * service.decode_s(1, 1, batch) == pytest.approx(expected_ms)


def test_inferred_limits_are_those_of_the_document() -> None:
    # slo-queuemodel.md 3.2 with its defaults alpha 5 ms, beta 0.05, gamma 0.00005 and k = 3, for 1000 in and 200 out
    ttft, itl = inferred_limits(Service(0.005, 5e-5, 5e-8), 1000, 200, 3.0)
    assert 1000 * ttft == pytest.approx(15 + 50.05)
    assert 1000 * itl == pytest.approx(15 + 0.05 + 0.00005 * 1100.5)


def test_a_queue_of_one_server_is_the_textbook_one() -> None:
    # Batch 1 is M/M/1/K: with room to wait, mean time in the system = 1 / (mu - lambda).
    service = Service(0.010, 0.0, 0.0)
    queue = Queue(service, 1, 10, 1, 2000)
    mu = 1 / (0.010 * 11)
    ttft, itl, served = queue.latencies(0.5 * mu)
    assert served == pytest.approx(0.5 * mu)
    assert itl == pytest.approx(0.010)
    assert ttft - itl - 0.010 + 1 / mu == pytest.approx(1 / (mu - 0.5 * mu), rel=1e-6)


def test_capacity_is_where_a_limit_is_met() -> None:
    service = Service(0.010, 1e-5, 1e-8)
    queue = Queue(service, 200, 20, 64, 100)
    rate = queue.capacity(0.200, 0.015)
    ttft, itl, _ = queue.latencies(rate)
    assert ttft <= 0.200
    assert itl == pytest.approx(0.015, rel=1e-3)
    assert queue.capacity(0.200, 0.001) == 0.0


def test_iteration_time_of_the_present_mix_is_that_of_the_calibration() -> None:
    calibration = load_calibration("deepseek-v2-8xh800")
    mix = Mix(1500, 300)
    service = service_of(calibration, mix)
    # 400 sequences take in 400/300 prompts of 1,500 per step.
    expected = calibration.step.step_time_s(400 * 1500 / 300, 400, 400 * 1650)
    assert service.iteration_s(1500, 300, 400) == pytest.approx(expected)


def test_wva_queue_sizes_arrivals_and_k_is_its_headroom(observe: Observe) -> None:
    counts = []
    for k in (2.5, 3.0, 100.0):
        spec, knobs = policies.parse(f"wva-queue:k={k}")
        counts.append(spec.build(knobs).decide(observe(CHAT, ready=4)).replicas)
    assert counts[0] > counts[1] >= counts[2]
    spec, knobs = policies.parse("wva-queue")
    impossible = replace(observe(CHAT, ready=4), objective=Objective(2.0, 0.001, 0.99))
    assert spec.build(knobs).decide(impossible).replicas == 4
