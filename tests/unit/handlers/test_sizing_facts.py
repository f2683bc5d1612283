"""What scaling is told: wishes from the spec, replicas from pods, numbers for people."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from moefleet_operator import names
from moefleet_operator.api.status import MoEFleetStatus, ThroughputStatus
from moefleet_operator.handlers.numbers import numbers
from moefleet_operator.handlers.policy import calibration, policy, supply
from moefleet_operator.planning.cold_start import ColdStart
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import Terms
from moefleet_operator.telemetry import Figures
from moefleet_perf import EIGHT_H800, load_calibration
from moefleet_runtime.engine.arguments import SimulatedArguments
from moefleet_testing.builders import NOW, a_pod, a_resource, false, true


def replica(slot: int = 0, **changes: Any) -> Replica:
    return Replica(a_pod(slot, **changes), None)


READY = {"Ready": true(at=NOW - 100), names.GATE_REGISTERED: true(at=NOW - 100)}
NOT_READY = {"Ready": false()}


def test_wishes() -> None:
    spec = a_resource(
        scaling={
            "minReplicas": 2,
            "maxReplicas": 9,
            "objective": {"timeToFirstToken": "3s", "timePerOutputToken": "50ms"},
            "idle": {"scaleToZeroAfter": "30m"},
        }
    ).spec
    wishes = policy(spec)
    assert (wishes.min_replicas, wishes.max_replicas) == (2, 9)
    assert (wishes.ttft_s, wishes.tpot_s, wishes.scale_to_zero_after_s) == (3.0, 0.05, 1800.0)
    assert policy(a_resource().spec).scale_to_zero_after_s is None


def engine(kind: str, **fields: Any) -> Any:
    return a_resource(engine={"type": kind, "image": "runtime:1", **fields}).spec.engine


def test_a_simulated_replica_is_counted_on_as_it_will_be() -> None:
    named = load_calibration("deepseek-v2-8xh800")
    found = calibration(
        engine(
            "Simulated",
            args={"speed": 0.5},
            limits={"maxBatchSize": 2, "maxBatchTokens": 512},
            parallelism={"tensor": 8, "expert": 8, "attentionData": True},
        )
    )
    assert found is not None
    assert found.step.a_s == pytest.approx(named.step.a_s * 2)
    # Two a rank, eight ranks.
    assert found.limits.max_sequences == 16
    assert found.limits.max_batch_tokens == 512
    assert found.limits.kv_max_tokens == named.limits.kv_max_tokens


@pytest.mark.parametrize(
    ("kind", "sequences"),
    [("Torch", 3), ("TensorRTLLM", 24), ("Simulated", 24)],
    ids=["one device, one batch", "three a rank, eight ranks", "as the engine that it stands in for"],
)
def test_every_engine_keeps_the_fleets_limits(kind: str, sequences: int) -> None:
    found = calibration(
        engine(
            kind,
            limits={"maxBatchSize": 3, "maxBatchTokens": 128},
            parallelism={"tensor": 8, "expert": 8, "attentionData": True},
        )
    )
    assert found is not None
    assert (found.limits.max_sequences, found.limits.max_batch_tokens) == (sequences, 128)


def test_what_the_simulated_engine_is_by_default_is_what_scaling_counts_on() -> None:
    found = calibration(engine("Simulated"))
    assert found is not None
    assert found.name == SimulatedArguments().calibration == EIGHT_H800


def test_limits_never_make_a_replica_larger_than_it_was_calibrated() -> None:
    named = load_calibration("deepseek-v2-8xh800")
    found = calibration(engine("Simulated", limits={"maxBatchSize": 65536, "maxBatchTokens": 1 << 20}))
    assert found is not None
    assert found.limits == named.limits


@pytest.mark.parametrize(
    ("kind", "args", "name"),
    [
        ("TensorRTLLM", {}, "deepseek-v2-8xh800"),
        ("Torch", {}, "tiny-cpu"),
        ("Simulated", {"calibration": "tiny-cpu"}, "tiny-cpu"),
        ("Simulated", {"calibration": "unheard-of"}, None),
        ("Simulated", {"speed": "fast"}, None),
        ("Simulated", {"speed": 0}, None),
    ],
)
def test_which_calibration(kind: str, args: dict[str, Any], name: str | None) -> None:
    found = calibration(engine(kind, args=args))
    assert (found.name if found is not None else None) == name


def test_supply_counts_each_replica_once() -> None:
    replicas = [
        replica(0, conditions=READY),
        replica(1, conditions=NOT_READY, created_at=NOW - 40),
        replica(2, conditions={}, node="", phase="Pending"),
        replica(3, conditions={**READY, "moefleet.io/Draining": true()}),
        replica(4, conditions={**READY, "moefleet.io/Draining": true()}, deleted_at=NOW - 5),
        replica(5, conditions=READY, deleted_at=NOW - 5),
        replica(6, conditions=NOT_READY, phase="Failed"),
    ]
    have = supply(replicas, 3, [10.0, 20.0], NOW)
    assert (have.target, have.ready, have.unschedulable, have.draining) == (3, 1, 1, 1)
    assert have.pending_ages_s == (40.0,)
    assert have.cold_starts_s == (10.0, 20.0)


def test_only_the_newest_cold_starts_are_told() -> None:
    have = supply([], 0, [float(n) for n in range(100)], NOW)
    assert have.cold_starts_s == tuple(float(n) for n in range(36, 100))


def test_numbers_for_people() -> None:
    spec = a_resource(
        pricing={
            "currency": "CNY",
            "inputPerMillionTokens": "1",
            "outputPerMillionTokens": "2",
            "gpuHourCost": "14",
        }
    ).spec
    figures = Figures(input_tok_s=50_000.0, output_tok_s=25_000.0)
    terms = Terms(capacity_input_tok_s=100_000.0, capacity_output_tok_s=50_000.0)
    found = numbers(
        spec,
        figures,
        terms,
        [replica(0, conditions=READY), replica(1, conditions=NOT_READY)],
        [
            ColdStart("r", 30.0, (("loading", 20.0), ("warming", 10.0))),
            ColdStart("r", 50.0, (("pulling", 5.0), ("loading", 45.0))),
            ColdStart("r", 90.0, (("loading", 90.0),)),
        ],
    )
    assert found["throughput"] == {
        "inputTokensPerSecond": 50_000,
        "outputTokensPerSecond": 25_000,
        # One of the two is ready.
        "capacityInputTokensPerSecond": 100_000,
        "capacityOutputTokensPerSecond": 50_000,
        "utilizationPercent": 50,
    }
    # 0.05 + 0.05 yuan a second, 3600 times; both replicas hold their eight GPUs.
    assert found["economics"]["revenuePerHour"] == "360.00"
    assert found["economics"]["marginPercent"] == "37.78"
    assert found["coldStart"] == {
        "p50": "50s",
        "p90": "90s",
        "p99": "90s",
        "starts": 3,
        "slowestPhase": "loading",
        # Medians: one start of three had the others.
        "phases": [
            {"name": "pulling", "p50": "0s"},
            {"name": "loading", "p50": "45s"},
            {"name": "warming", "p50": "0s"},
        ],
    }
    assert MoEFleetStatus.model_validate(found).cold_start is not None


def test_what_is_not_known_is_absent() -> None:
    found = numbers(a_resource().spec, Figures(), Terms(), [], [])
    assert found == {"throughput": {"inputTokensPerSecond": 0, "outputTokensPerSecond": 0}}


@pytest.mark.parametrize("speed", [0, -1, 1001, 1e308, "nan", "inf", [2]])
def test_a_speed_that_the_engine_refuses_is_no_capacity(speed: Any) -> None:
    assert calibration(engine("Simulated", args={"speed": speed})) is None


@pytest.mark.parametrize("speed", [1000, 0.001, "0.5"])
def test_a_speed_that_the_engine_takes_is_counted_on(speed: Any) -> None:
    assert calibration(engine("Simulated", args={"speed": speed})) is not None


@pytest.mark.parametrize("odd", [math.inf, math.nan, 1e300, -math.inf])
def test_a_number_beyond_all_sense_is_absent(odd: float) -> None:
    pricing = {
        "currency": "CNY",
        "inputPerMillionTokens": "1",
        "outputPerMillionTokens": "2",
        "gpuHourCost": "14",
    }
    found = numbers(
        a_resource(pricing=pricing).spec,
        Figures(input_tok_s=odd, cached_tok_s=odd, output_tok_s=odd, ttft_p99_s=odd, attainment_percent=odd),
        Terms(capacity_input_tok_s=odd, capacity_output_tok_s=odd),
        [replica(0, conditions=READY)],
        [ColdStart("r", odd, (("loading", odd),))],
    )
    status = MoEFleetStatus.model_validate(found)
    for count in (status.throughput or ThroughputStatus()).model_dump().values():
        assert count is None or count <= 10**15
    assert not re.search(r"nan|inf|\d{20}", json.dumps(found, allow_nan=False).lower())
