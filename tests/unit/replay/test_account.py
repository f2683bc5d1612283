"""GPU-hours by reason: every replica of a target is kept for something, and for one thing only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.scaling import Terms
from moefleet_perf import load_calibration
from moefleet_replay import fleet, policies
from moefleet_replay.account import REASONS, parts
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.result import GPUS_PER_REPLICA

from .replayed import poisson


@pytest.mark.parametrize(
    ("reason", "terms", "target", "wanted"),
    [
        ("forecast", {}, 4, 3.0),
        ("headroom", {"headroom_ratio": 0.2, "need": 3.6}, 4, 0.6),
        # Covered by the headroom: the level costs nothing ...
        ("level", {"headroom_ratio": 0.2, "need": 3.6, "level": 4.4}, 4, 0.0),
        # ... and what is above it does.
        ("level", {"headroom_ratio": 0.2, "need": 3.75, "level": 5.0}, 4, 0.15),
        ("surge", {"headroom_ratio": 0.2, "need": 3.9}, 4, 0.3),
        ("kv", {"kv": 3.8, "need": 3.8}, 4, 0.8),
        ("backlog", {"backlog": 0.7, "need": 3.7}, 4, 0.7),
        ("rounding", {"need": 3.7}, 4, 0.3),
        ("margin", {"enough": 5}, 6, 1.0),
        ("hold", {"enough": 5}, 7, 2.0),
        ("replaced", {"dead": 1}, 5, 1.0),
    ],
)
def test_a_replica_is_kept_for_the_term_that_reaches_it_first(reason, terms, target, wanted):
    found = parts(Terms(**{"forecast": 3.0, "need": 3.0, "wanted": 4, "enough": 4} | terms), target)
    assert found[reason] == pytest.approx(wanted)
    assert sum(found.values()) == pytest.approx(target)


@given(st.tuples(st.floats(0, 50), st.floats(0, 1), st.floats(0, 60), st.floats(0, 5), st.floats(0, 20)), st.integers(0, 3), st.integers(0, 9), st.integers(0, 80))  # fmt: skip
def test_the_parts_add_up_to_the_target(replicas, dead, over, target):
    forecast, headroom, level, backlog, kv = replicas
    need = max(forecast * (1 + headroom), 0.75 * level, kv) + backlog
    terms = Terms(
        forecast=forecast, headroom_ratio=headroom, level=level, backlog=backlog, kv=kv, need=need,
        wanted=round(need + 0.45), enough=round(need + 0.45) + over, dead=min(dead, target),
    )  # fmt: skip
    found = parts(terms, target)
    assert sum(found.values()) == pytest.approx(target)
    assert all(found[reason] >= -1e-9 for reason in REASONS if reason != "rounding")


def test_the_hours_of_a_run_are_those_of_its_reasons_and_its_drains():
    spec, knobs = policies.parse("moefleet")
    setup = FleetSetup(
        calibration=load_calibration("deepseek-v2-8xh800"), cold_start=ColdStart(60.0, 90.0, 0.1)
    )
    result = fleet.run(poisson(150, 1200.0, 3), spec.build(knobs), setup)
    hours = result.extra
    kept = sum(h for name, h in hours.items() if name.startswith("hours_for_"))
    # The first interval has no decision yet, and the target stands while a tick's replica is cut short.
    ticks = 2 * GPUS_PER_REPLICA * result.summary.peak_replicas * 5 / 3600
    assert kept + hours["hours_draining"] == pytest.approx(result.summary.gpu_hours, abs=ticks)
    assert hours["hours_for_forecast"] > 0
    assert hours["hours_for_rounding"] > 0


def test_a_policy_that_does_not_say_why_has_no_reasons():
    spec, knobs = policies.parse("hpa-arrival")
    setup = FleetSetup(calibration=load_calibration("deepseek-v2-8xh800"))
    result = fleet.run(poisson(50, 120.0, 3), spec.build(knobs), setup)
    assert not [name for name in result.extra if name.startswith("hours_for_")]
    assert result.extra["hours_starting"] == 0.0
