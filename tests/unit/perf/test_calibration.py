"""Calibrations are data: those in the package load, and a wrong one says which field and what was wanted."""

import copy

import pytest
from moefleet_perf import CalibrationError, calibration_names, load_calibration, scaled, with_limits

GOOD = {
    "name": "good",
    "step": {"aS": 0.01, "bS": 1e-5, "cS": 2e-5, "dS": 0},
    "limits": {"maxSequences": 64, "kvMaxTokens": 1e5, "maxBatchTokens": 512},
    "provenance": "Made up.",
}


@pytest.mark.parametrize("name", calibration_names())
def test_every_packaged_calibration_loads_under_its_own_name_and_says_where_it_comes_from(name):
    calibration = load_calibration(name)
    assert calibration.name == name
    assert len(calibration.provenance) > 40


def test_the_announced_calibration_reaches_the_announced_throughput_and_the_first_principles_one_its_source():
    announced = load_calibration("deepseek-v2-8xh800")
    assert 1 / announced.step.b_s > 100_000
    n = announced.limits.max_sequences
    assert n / announced.step.step_time_s(0, n, n * 500) > 50_000
    # A step full of prompt stays inside 100 ms, or prefill bursts would break the objective.
    assert announced.step.step_time_s(announced.limits.max_batch_tokens, 0, 0) < 0.1
    table = load_calibration("deepseek-v2-8xh800-aic")
    assert 1 / table.step.b_s == pytest.approx(62_800, rel=0.01)
    assert table.step.step_time_s(table.limits.max_batch_tokens, 0, 0) < 0.1


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("step", "aS"), 0, "step.aS: a step takes time"),
        (("step", "aS"), -1, "step.aS: wanted seconds"),
        (("step", "bS"), float("nan"), "step.bS: wanted seconds"),
        (("step", "cS"), "fast", "step.cS: wanted seconds from 0 to 3600, found 'fast'"),
        (("step", "dS"), True, "step.dS"),
        (("step",), [1, 2], "step: wanted an object, found list"),
        (("limits", "maxSequences"), 0, "limits.maxSequences: wanted a whole number from 1"),
        (("limits", "kvMaxTokens"), 1.5, "limits.kvMaxTokens"),
        (("limits", "maxBatchTokens"), None, "limits.maxBatchTokens"),
        (("limits", "speed"), 1, "unknown speed; known are kvMaxTokens"),
        (("name",), "", "name: wanted text"),
        (("provenance",), 7, "provenance: wanted text, found 7"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(path, value, says):
    data = copy.deepcopy(GOOD)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CalibrationError) as error:
        load_calibration(data)
    assert says in str(error.value)


def test_free_tokens_are_no_calibration():
    data = copy.deepcopy(GOOD) | {"step": {"aS": 0.01, "bS": 0, "cS": 0, "dS": 0}}
    with pytest.raises(CalibrationError, match="capacity infinite"):
        load_calibration(data)


def test_a_missing_field_an_unknown_name_and_a_wrong_type_are_named():
    with pytest.raises(CalibrationError, match="limits missing"):
        load_calibration({k: v for k, v in GOOD.items() if k != "limits"})
    with pytest.raises(CalibrationError, match="'gpt-9' is unknown; known are deepseek-v2-8xh800, "):
        load_calibration("gpt-9")
    with pytest.raises(CalibrationError, match="wanted a name or an object, found int"):
        load_calibration(7)


def test_a_base_gives_what_is_not_given():
    base = load_calibration("deepseek-v2-8xh800")
    mine = load_calibration({"base": "deepseek-v2-8xh800", "name": "small", "limits": {"maxSequences": 16}})
    assert (mine.name, mine.step, mine.limits.max_sequences) == ("small", base.step, 16)
    assert mine.limits.kv_max_tokens == base.limits.kv_max_tokens


def test_speed_scales_time_and_nothing_else():
    fast = load_calibration(GOOD)
    slow = scaled(fast, 0.02)
    assert slow.step.step_time_s(100, 10, 1000) == pytest.approx(50 * fast.step.step_time_s(100, 10, 1000))
    assert slow.limits == fast.limits
    assert scaled(fast, 1.0) is fast
    for speed in (0, -1, float("inf"), float("nan")):
        with pytest.raises(CalibrationError, match="speed: wanted a number above 0"):
            scaled(fast, speed)


def test_an_engine_started_with_other_limits_replaces_only_those():
    calibration = load_calibration(GOOD)
    assert with_limits(calibration) is calibration
    changed = with_limits(calibration, max_batch_tokens=256)
    assert (changed.limits.max_batch_tokens, changed.limits.max_sequences) == (256, 64)
    with pytest.raises(CalibrationError, match="maxSequences: wanted 1 to"):
        with_limits(calibration, max_sequences=0)
