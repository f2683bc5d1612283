"""What the law remembers: windows over buckets, gaps that close, 4 KiB at the very most."""

import json
from dataclasses import replace

import pytest
from moefleet_operator.scaling import (
    DemandPoint,
    DemandTotals,
    Policy,
    Queue,
    Sample,
    ServedTotals,
    State,
    Supply,
    remember,
)
from moefleet_operator.scaling.state import (
    HISTORY_S,
    MAX_WISHES,
    STATE_MAX_BYTES,
    Wish,
    observed,
    wished,
)
from moefleet_operator.scaling.windows import Windows

T0 = 1_700_000_000.0


def remembered(rates, step_s=5.0):
    """A state after one tick per rate."""
    total, points = 0.0, [DemandPoint(T0, DemandTotals())]
    for i, rate in enumerate(rates, start=1):
        total += rate * step_s
        points.append(DemandPoint(T0 + i * step_s, DemandTotals(total, total * 100, total * 20, total * 10)))
    now = points[-1].at_s
    return remember(points, now), now


@pytest.mark.parametrize("length_s", [5, 30, 60, 120, 180, 300])
def test_windows_count_what_came_in_them(length_s):
    state, now = remembered([4.0] * 200)
    seen = Windows(state.buckets, now)
    assert seen.total("arrivals", length_s) == pytest.approx(4.0 * length_s)
    assert seen.total("prompt_tokens", length_s) == pytest.approx(400.0 * length_s)
    assert seen.total("span_s", length_s) == pytest.approx(length_s)


def test_a_window_longer_than_the_memory_says_how_much_of_it_is_covered():
    state, now = remembered([4.0] * 4)
    assert Windows(state.buckets, now).total("span_s", 120) == pytest.approx(20)
    assert Windows((), now).total("span_s", 120) == 0


@pytest.mark.parametrize(
    ("story", "rates", "low", "high"),
    [
        ("a constant rate is itself", [4.0] * 60, 4.0, 4.0),
        ("so it is when only half of the window is known", [4.0] * 25, 4.0, 4.0),
        ("half a window ago it doubled: three quarters of it are seen, not half", [4.0] * 35 + [8.0] * 25, 6.9, 7.0),
        ("what left the window is gone", [4.0] * 10 + [0.0] * 56, 0.0, 0.0),
        ("a burst of a tick is no rate of the whole window", [20.0], 4.0, 7.0),
    ],
)  # fmt: skip
def test_a_fading_rate_sees_the_newest_first(story, rates, low, high):
    state, now = remembered(rates)
    rate = Windows(state.buckets, now).fading_rate("arrivals", 250.0, 125.0, 15.0)
    assert low - 1e-9 <= rate <= high + 1e-9, story


def test_old_buckets_are_merged_and_forgotten_but_nothing_is_lost_between():
    state, now = remembered([float(i % 7) for i in range(500)])
    assert len(state.buckets) <= 24
    assert state.buckets[0].end_s > now - HISTORY_S
    for before, after in zip(state.buckets, state.buckets[1:], strict=False):
        assert after.end_s - after.span_s == pytest.approx(before.end_s)


def listened(rates, step_s=5.0):
    """A state that has seen its samples itself."""
    state, total = observed(State(), sample(DemandTotals()), T0), 0.0
    for i, rate in enumerate(rates, start=1):
        total += rate * step_s
        state = observed(state, sample(DemandTotals(total, total * 100, 0.0, total * 10)), T0 + i * step_s)
    return state, T0 + len(rates) * step_s


def sample(demand, **facts):
    return Sample(Policy(1, 5, 0.1, 2.0, None), Supply(1, 1), demand, **facts)


def test_unknown_demand_is_a_gap_that_the_next_total_fills():
    state, now = listened([4.0] * 60)
    assert observed(state, sample(None), now + 60) == state
    then = replace(state.last_demand, arrivals=state.last_demand.arrivals + 400)
    after = observed(state, sample(then), now + 100)
    assert Windows(after.buckets, now + 100).total("arrivals", 100) == pytest.approx(400)


def test_the_same_tick_twice_and_totals_that_fall_count_nothing():
    state, now = listened([4.0] * 60)
    again = observed(state, sample(state.last_demand), now)
    assert again.buckets == state.buckets
    lower = observed(state, sample(DemandTotals()), now + 5)
    assert Windows(lower.buckets, now + 5).total("arrivals", 5) == 0


def test_sent_is_what_left_the_gateways():
    state = observed(State(), sample(DemandTotals(), served=ServedTotals()), T0)
    # 100 came, 10 were shed, 30 wait: 60 went on.
    state = observed(
        state, sample(DemandTotals(arrivals=100, shed=10), queue=Queue(30), served=ServedTotals(60)), T0 + 5
    )
    assert (
        Windows(state.buckets, T0 + 5).total("sent", 5),
        Windows(state.buckets, T0 + 5).total("admitted", 5),
    ) == (60, 60)
    state = observed(
        state, sample(DemandTotals(arrivals=100, shed=10), queue=Queue(0), served=ServedTotals(90)), T0 + 10
    )
    assert Windows(state.buckets, T0 + 10).total("sent", 5) == 30
    # A client that tries again by itself is no new arrival, but replicas see it.
    state = observed(
        state, sample(DemandTotals(arrivals=100, shed=10, retries=7), served=ServedTotals(97)), T0 + 15
    )
    assert (
        Windows(state.buckets, T0 + 15).total("sent", 5),
        Windows(state.buckets, T0 + 15).total("arrivals", 5),
    ) == (7, 0)


def test_wishes_keep_what_can_still_be_the_highest():
    state = State()
    for age, wish in ((50, 9), (40, 5), (30, 7), (20, 3), (10, 4)):
        state = wished(state, T0 - age, wish, 45.0)
    assert [w.replicas for w in state.wishes] == [9, 7, 4]
    state = wished(state, T0, 1, 45.0)
    assert [w.replicas for w in state.wishes] == [7, 4, 1]


def test_many_different_wishes_are_merged_upwards():
    state = State()
    for i in range(100):
        state = wished(state, T0 + i, 500 - i, 1000.0)
    assert len(state.wishes) == MAX_WISHES
    assert state.wishes[0] == Wish(T0, 500)
    # At no age does the thinned record promise less than what was wished for then.
    for i in range(100):
        assert max(w.replicas for w in state.wishes if w.at_s >= T0 + i) >= 500 - i


def test_json_is_small_exact_where_it_must_be_and_of_one_version():
    state, now = remembered([987.654] * 400)
    big = DemandTotals(
        9_876_543_210, 98_765_432_100_000, 9_876_543_210_000, 987_654_321_000, 123_456_789, 987_654_321
    )
    state = replace(state, last_demand=big, last_served=ServedTotals(9_876_543_210, 98_765_432_100_000, 1, 2))
    for i in range(100):
        state = wished(state, now + i, 1000 - i, 1000.0)
    state = replace(
        state, mix=(12345.678901, 123.456789, 1234.56789), since_s=now, last_down_s=now, last_call_s=now
    )
    text = state.to_json()
    assert len(text.encode()) <= STATE_MAX_BYTES
    again = State.from_json(text)
    assert again.last_demand == big
    assert again.last_served == state.last_served
    assert [w.replicas for w in again.wishes] == [w.replicas for w in state.wishes]
    assert Windows(again.buckets, now).total("arrivals", 120) == pytest.approx(
        Windows(state.buckets, now).total("arrivals", 120), rel=1e-5
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"v": 0}',
        "not json",
        json.dumps({"v": 1, "since": "x"}),
        '{"v": 1, "last": 1}',
    ],
)
def test_a_memory_that_cannot_be_read_is_no_memory(text):
    assert State.from_json(text) is None


def test_no_history_is_an_empty_state():
    assert remember([], T0) == State()
    assert remember([DemandPoint(T0 + 60, DemandTotals())], T0) == State()
