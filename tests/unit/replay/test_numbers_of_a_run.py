"""What is counted over a run: need, windows, quantiles, surges, and the seconds that policies see."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf import Mix, capacity, load_calibration
from moefleet_replay import fleet
from moefleet_replay.cold_start import ColdStart, ColdStartError, parse_cold_start
from moefleet_replay.engine import CompiledEngine
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.layout import BIN_LOG, BIN_LOW_S, BINS
from moefleet_replay.need import NeedBlocks, SourceForesight, needed
from moefleet_replay.observation import Signal
from moefleet_replay.outcome import quantile, surges, windows_ok
from moefleet_replay.series import FleetSeries

from .replayed import Listed, Scripted, poisson

NODE = load_calibration("deepseek-v2-8xh800")


def test_need_is_the_rate_over_the_closed_form_of_its_own_mix():
    blocks = NeedBlocks(10.0)
    requests = [(1.0, 1000, 100, 200), (2.0, 3000, 300, 0)]
    blocks.add(Listed(requests, 10.0).between(0.0, 10.0))
    # Long answers are the ones that are here: their context counts by their tokens.
    context = (100 * 1050 + 300 * 3150) / 400
    mix = Mix(2000, 200, 100, context_tokens=context)
    assert needed(NODE, 0.1, 10.0, blocks.sums[0]) == pytest.approx(
        0.2 / capacity(NODE, mix, 0.085).requests_per_s
    )


def test_foresight_is_the_need_of_blocks_and_of_parts_of_them():
    source = poisson(50, 95.0, 1)
    foresight = SourceForesight(source, NODE, 0.1)
    blocks = NeedBlocks(95.0)
    for start in range(0, 95, 7):
        blocks.add(source.between(float(start), min(start + 7.0, 95.0)))
    assert foresight.until_s == 95.0
    third = needed(NODE, 0.1, 10.0, blocks.sums[2])
    fourth = needed(NODE, 0.1, 10.0, blocks.sums[3])
    assert foresight.work_at(20, 30) == pytest.approx(third)
    assert foresight.work_at(25, 35) == pytest.approx((third + fourth) / 2)
    assert foresight.work_at(1000, 1010) == 0.0


@pytest.mark.parametrize(
    ("minutes", "share"),
    [
        ([(100, 99)], 1.0),
        ([(100, 98)], 0.0),
        # The same window: 199 of 200.
        ([(100, 100), (100, 98)], 1.0),
        ([(100, 100)] * 5 + [(10, 0)], 0.5),
        # A window without requests is none.
        ([(100, 100)] * 5 + [(0, 0)] * 5 + [(10, 0)], 0.5),
        ([], 1.0),
    ],
)
def test_windows_of_five_minutes(minutes, share):
    assert windows_ok(np.array(minutes, np.int64).reshape(-1, 2), 0.99) == share


@given(
    values=st.lists(st.floats(2e-4, 1e4), min_size=1, max_size=200), share=st.sampled_from([0.5, 0.99, 0.999])
)
def test_quantiles_are_less_than_one_percent_off(values, share):
    bins = np.zeros(BINS, np.int64)
    for value in values:
        bins[int(math.log(value / BIN_LOW_S) / BIN_LOG) + 1] += 1
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    assert quantile(bins, share) == pytest.approx(true, rel=0.0051)


def test_a_surge_is_marked_from_its_foot_to_its_top():
    need = np.array([4.0, 4.0, 5.0, 6.0, 6.0, 6.0])
    assert surges(need, 2).tolist() == [False, True, True, True, False, False]
    assert not surges(np.full(5, 3.0), 2).any()


ROWS = st.lists(st.integers(0, 9), max_size=30)


@given(rows=ROWS, seen=st.integers(0, 30), window=st.integers(0, 40))
def test_windows_of_the_series_are_those_of_a_list(rows, seen, window):
    series = FleetSeries(4)
    series.reserve(len(rows))
    for second, value in enumerate(rows):
        series.rows[second, Signal.ARRIVALS] = value
        series.grow_to(second + 1)
    series.now = min(seen, len(rows))
    last = rows[: series.now][-window:] if window else []
    assert series.values(Signal.ARRIVALS, window) == last
    assert series.total(Signal.ARRIVALS, window) == sum(last)
    assert series.mean(Signal.ARRIVALS, window) == pytest.approx(sum(last) / len(last) if last else 0.0)
    assert series.highest(Signal.ARRIVALS, window) == max(last, default=0)


def test_cold_starts_have_the_median_and_the_tail_that_were_asked_for():
    healthy = ColdStart(240, 420, failing_share=0.0)
    draws = sorted(healthy.draw_s(1, k) for k in range(2000))
    assert draws[1000] == pytest.approx(240, rel=0.04)
    assert draws[1900] == pytest.approx(420, rel=0.06)
    # One in ten begins again: the same first draw, and another one.
    failing = ColdStart(240, 420)
    more = [failing.draw_s(1, k) > healthy.draw_s(1, k) for k in range(2000)]
    assert 0.08 < sum(more) / 2000 < 0.12


@pytest.mark.parametrize(
    "text",
    ["lognormal:240", "lognormal:420,240", "lognormal:0,1", "fixed:x", "gamma:1,2", "fixed:5,failing=1"],
)
def test_cold_starts_that_cannot_be(text):
    with pytest.raises(ColdStartError, match="cold start"):
        parse_cold_start(text)


def test_a_run_repeats_bit_by_bit_and_its_timeline_adds_up():
    source = poisson(40, 600, 3)
    setup = FleetSetup(calibration=NODE, cold_start=ColdStart(30, 60), seed=7)
    told = []
    first = fleet.run(source, Scripted([2, 3, 1, 4], interval_s=15.0), setup, told.append)
    second = fleet.run(source, Scripted([2, 3, 1, 4], interval_s=15.0), setup)
    assert replace(first.summary, wall_s=0) == replace(second.summary, wall_s=0)
    assert (first.timeline, first.decisions, first.extra) == (second.timeline, second.decisions, second.extra)
    assert sum(first.timeline.requests) == first.summary.requests == len(source.requests)
    assert sum(first.timeline.within) == round(first.summary.attainment * first.summary.requests)
    assert [(d.before, d.after) for d in first.decisions] == [(1, 2), (2, 3), (3, 1), (1, 4)]


def test_progress_is_told_each_hour():
    told = []
    fleet.run(
        Listed([(1.0, 10, 2, 0)], 7300.0), Scripted([1], interval_s=600.0), FleetSetup(NODE), told.append
    )
    assert [t // 3600 for t in told] == [1, 2]


def test_surges_and_falls_are_told_by_the_minute():
    # Two replicas are enough for the first ten minutes, then six times as much comes, and three more replicas after two minutes.
    chance = np.random.default_rng(5)
    at_s = np.sort(np.concatenate([chance.uniform(0, 1800, 90_000), chance.uniform(600, 1200, 150_000)]))
    source = Listed([(float(t), 600, 60, 0) for t in at_s], 1800.0)
    setup = FleetSetup(NODE, cold_start=ColdStart(120, 120, 0.0), initial_replicas=2, keep_times=True)
    engines = []

    def engine_of(*args):
        engines.append(CompiledEngine(*args))
        return engines[-1]

    result = fleet.run(source, Scripted([2] * 40 + [8], interval_s=15.0), setup, engine_of=engine_of)
    marked = surges(np.array(result.timeline.need), 2)
    assert 0 < result.extra["surge_minutes"] == marked.sum()
    inside = np.isin((at_s / 60).astype(int), np.flatnonzero(marked))
    ttft = np.sort((engines[-1].times[:, 0] - at_s)[inside])
    for share, name in ((0.99, "surge_ttft_p99_s"), (0.999, "surge_ttft_p999_s")):
        true = ttft[math.ceil(share * len(ttft)) - 1]
        assert true <= result.extra[name] <= true * 1.042
    bad = [w < 0.99 * r for r, w in zip(result.timeline.requests, result.timeline.within, strict=True) if r]
    assert result.extra["below_objective_s"] == 60 * sum(bad) >= result.extra["longest_recovery_s"] >= 120
    assert result.extra["falls"] == sum(now and not before for before, now in pairwise([False, *bad]))
