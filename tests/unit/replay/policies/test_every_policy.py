"""What holds for all policies, whatever they see: an answer, the same for the same sights, and no fall when nothing is known."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet_replay import policies
from moefleet_replay.observation import Observation, ReplicaView, Signal
from moefleet_replay.policy import ScalingPolicy

Observe = Callable[..., Observation]

# KEDA reads a query without a result as zero (its default); fixed fleets and the oracle read no metrics.
FALLS_WITHOUT_METRICS = {"keda"}
READS_NO_METRICS = {"static", "static-peak", "static-mean", "oracle"}


class FlatNeed:
    until_s = 3600.0

    def work_at(self, from_s: float, to_s: float) -> float:
        assert 0 <= from_s < to_s <= self.until_s
        return 5.0


def built(name: str) -> ScalingPolicy:
    spec, knobs = policies.parse(name)
    return spec.build(knobs)


moment = st.fixed_dictionaries(
    {
        "arrivals": st.floats(0, 1000),
        "input_tokens": st.floats(1, 8000),
        "output_tokens": st.floats(1, 4000),
        "cached": st.floats(0, 1),
        "ready": st.integers(0, 60),
        "pending": st.integers(0, 40),
        "draining": st.integers(0, 5),
        "running": st.integers(0, 8192),
        "queued": st.integers(0, 64),
        "lost": st.booleans(),
        "length_s": st.sampled_from([0, 1, 30, 7200]),
    }
)


def seen(observe: Observe, now_s: float, m: dict[str, float], target: int) -> Observation:
    rate, ready, running = m["arrivals"], int(m["ready"]), int(m["running"])
    signals = {
        Signal.ARRIVALS: rate,
        Signal.ARRIVED_INPUT_TOKENS: rate * m["input_tokens"],
        Signal.ARRIVED_CACHED_TOKENS: rate * m["input_tokens"] * m["cached"],
        Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS: rate * m["output_tokens"],
        Signal.PREFILLED_TOKENS: rate * m["input_tokens"],
        Signal.GENERATED_TOKENS: rate * m["output_tokens"],
        Signal.COMPLETED: rate / 2,
        Signal.COMPLETED_OUTPUT_TOKENS: rate / 2 * m["output_tokens"],
        Signal.GATEWAY_QUEUED: m["queued"] * 10,
        Signal.REPLICA_QUEUED: m["queued"] * ready,
        Signal.RUNNING: running * ready,
        Signal.KV_USED_TOKENS: min(6e6, running * 1000.0) * ready,
        Signal.STEPS: 20.0 * ready,
    }
    view = ReplicaView(
        0, 0.0, int(m["queued"]), running, int(m["queued"]) * 2000, 0, min(6_000_000, running * 1000), 0.04
    )
    return observe(
        signals,
        ready=ready,
        pending=(10.0,) * int(m["pending"]),
        target=target,
        now_s=now_s,
        replicas=(view,) * ready,
        metrics_lost=bool(m["lost"]),
        length_s=int(m["length_s"]),
        foresight=FlatNeed(),
    )


@pytest.mark.parametrize("name", list(policies.REGISTRY))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(moments=st.lists(moment, min_size=1, max_size=6))
def test_any_sight_has_an_answer_and_the_same_sights_the_same(
    name: str, moments: list[dict[str, float]], observe: Observe
) -> None:
    one, other = built(name), built(name)
    target = 4
    for tick, m in enumerate(moments):
        o = seen(observe, tick * one.interval_s, m, target)
        wanted = one.decide(o)
        assert isinstance(wanted.replicas, int)
        assert wanted.replicas >= 0
        assert other.decide(o) == wanted
        if m["lost"] and name not in FALLS_WITHOUT_METRICS | READS_NO_METRICS:
            # Prometheus has nothing: every published controller but one changes nothing.
            assert wanted.replicas == o.target
        target = min(max(wanted.replicas, o.min_replicas), o.max_replicas)


@pytest.mark.parametrize("name", [n for n in policies.REGISTRY if n not in READS_NO_METRICS])
def test_no_traffic_for_an_hour_ends_at_or_below_the_start(name: str, observe: Observe) -> None:
    policy = built(name)
    idle = {
        "arrivals": 0.0, "input_tokens": 1.0, "output_tokens": 1.0, "cached": 0.0, "ready": 6, "pending": 0,
        "draining": 0, "running": 0, "queued": 0, "lost": False, "length_s": 7200,
    }  # fmt: skip
    target, now_s = 6, 0.0
    while now_s <= 3600.0:
        o = seen(observe, now_s, {**idle, "ready": target}, target)
        target = min(max(policy.decide(o).replicas, o.min_replicas), o.max_replicas)
        assert target <= 6
        now_s += policy.interval_s
