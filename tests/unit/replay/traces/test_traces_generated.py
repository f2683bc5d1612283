"""Requests from rates: the bytes are pinned, no cut changes them, and their statistics are those of the definition."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces import ArrivalShape, TraceSpec, fingerprint, open_servegen, open_trace
from moefleet_replay.traces.generation import SIGMA, Curve, Generated, Pool, joined, modulation

TRACES = Path(__file__).parents[3] / "support/traces"
RATES = TRACES / "servegen/m-large_5h_7h.csv"
LENGTHS = TRACES / "servegen/m-large_0h_12h_lengths.npz"
# 5 h to 7 h of day 0; ten minutes around the change of the length window at 6 h.
TEN_MINUTES = (21_300 / 86_400, 21_900 / 86_400)


@pytest.mark.parametrize(
    ("arrivals", "scale", "seed", "requests", "sha256"),
    [
        (
            ArrivalShape.LINEAR,
            1.0,
            1,
            132454,
            "96a98acd745eb926a55afcc48da4def2eedc4155430336e4d052c96cae548f3a",
        ),
        (
            ArrivalShape.STEP,
            1.0,
            1,
            132740,
            "8aa786794abbc4a24d3e71d730a4f3f5d5183192bc83f91f2761f7c08692c69d",
        ),
        (
            ArrivalShape.LINEAR,
            0.25,
            7,
            31015,
            "4feae028c250f15c76f3e4d69312624b246561be27fd59ac7464d8e491563a3a",
        ),
    ],
)
def test_the_same_arguments_give_the_same_bytes_on_every_machine(arrivals, scale, seed, requests, sha256):
    """A change here changes every published comparison: it needs a reason in the changelog."""
    source = open_servegen(RATES, LENGTHS, days=TEN_MINUTES, scale=scale, arrivals=arrivals, seed=seed)
    made = source.between(0.0, source.duration_s)
    assert (len(made), fingerprint(made)) == (requests, sha256)


@pytest.mark.parametrize(
    "source",
    [
        open_servegen(RATES, LENGTHS, days=TEN_MINUTES, scale=0.2, seed=3),
        open_trace(TraceSpec(trace="synthetic:mix-shift,duration_s=600,at_s=100,over_s=300,rate=20", seed=3)),
        open_trace(TraceSpec(trace=f"azure:{TRACES}/azure2023/code_495s_720s.csv", scale=2.5, seed=3)),
    ],
    ids=["servegen", "synthetic", "azure"],
)
@given(cuts=st.lists(st.floats(0, 700), max_size=12), between=st.integers(0, 11))
@settings(max_examples=60, deadline=None)
def test_no_cut_changes_a_request(source, cuts, between):
    whole = source.between(0.0, source.duration_s)
    edges = sorted([0.0, *(min(cut, source.duration_s) for cut in cuts), source.duration_s])
    parts = [source.between(a, b) for a, b in pairwise(edges)]
    assert fingerprint(joined(parts)) == fingerprint(whole)
    # In any order, too: the last question does not depend on those before it.
    place = between % (len(edges) - 1)
    assert fingerprint(source.between(edges[place], edges[place + 1])) == fingerprint(parts[place])
    for part, (a, b) in zip(parts, pairwise(edges), strict=True):
        assert ((part.at_s >= a) & (part.at_s < b)).all()
    assert (np.diff(whole.at_s) >= 0).all()


def test_days_are_a_part_of_the_whole():
    whole = open_servegen(RATES, LENGTHS, seed=5).between(3300.0, 3900.0)
    part = open_servegen(RATES, LENGTHS, days=TEN_MINUTES, seed=5).between(0.0, 600.0)
    np.testing.assert_array_equal(whole.at_s - 3300.0, part.at_s)
    np.testing.assert_array_equal(whole.input_tokens, part.input_tokens)


def test_lengths_are_joint_samples_of_the_window_that_holds_the_arrival():
    made = open_servegen(RATES, LENGTHS, days=TEN_MINUTES, seed=5).between(0.0, 600.0)
    with np.load(LENGTHS) as archive:
        for key, inside in (("0", made.at_s < 300.0), ("21600", made.at_s >= 300.0)):
            pool = list(zip(archive[f"in_{key}"].tolist(), archive[f"out_{key}"].tolist(), strict=True))
            drawn = list(
                zip(made.input_tokens[inside].tolist(), made.output_tokens[inside].tolist(), strict=True)
            )
            assert set(drawn) <= set(pool)
            # 512 samples, drawn evenly about 120 times each.
            times = np.array([drawn.count(pair) / pool.count(pair) for pair in set(pool)])
            assert abs(times.mean() - len(drawn) / 512) < 1
            assert times.std() < 1.5 * np.sqrt(len(drawn) / 512)
    assert not made.cached_tokens.any()


@pytest.mark.parametrize(
    ("found", "idc"), [(0.5, 2.0), (8.0, 8.0), (4550.0, 50.0)], ids=["too even", "inside", "too wild"]
)
def test_counts_have_the_mean_and_the_dispersion_that_is_written(found, idc):
    seconds, rate = 40_000, 40.0
    counts = counts_of(flat(rate, found, seconds, modulated=False))
    assert abs(counts.mean() - rate) < 4 * np.sqrt(idc * rate / seconds)
    # Excess kurtosis of a negative binomial, for the error of a variance.
    excess = 6 * (idc - 1) / rate + 1 / (idc * rate)
    assert abs(counts.var() / counts.mean() / idc - 1) < 4 * np.sqrt((2 + excess) / seconds)
    # Seconds are independent of each other.
    assert abs(np.corrcoef(counts[1:], counts[:-1])[0, 1]) < 4 / np.sqrt(seconds)


def test_times_are_uniform_inside_the_second():
    made = flat(50.0, 8.0, 6000, modulated=False).between(0.0, 6000.0)
    shares = np.bincount((made.at_s % 1 * 20).astype(int), minlength=20) / len(made)
    assert np.abs(shares - 0.05).max() < 4 * np.sqrt(0.05 * 0.95 / len(made))


def test_the_rate_wanders_as_a_lognormal_ar1_of_mean_one():
    seconds = 2_000_000
    factor = modulation(seconds, seed=1)
    logs = np.log(factor) + SIGMA**2 / 2
    # Neighbours are alike: 2e6 s hold about 2e6 / (2 * 90 s) independent values.
    error = 4 / np.sqrt(seconds / 180)
    assert abs(factor.mean() - 1) < SIGMA * error
    assert abs(logs.std() / SIGMA - 1) < error
    for lag, expected in ((1, np.exp(-1 / 90)), (90, np.exp(-1)), (270, np.exp(-3))):
        assert abs(np.corrcoef(logs[lag:], logs[:-lag])[0, 1] - expected) < error
    np.testing.assert_array_equal(modulation(1000, seed=1), factor[:1000])


@pytest.mark.parametrize("arrivals", list(ArrivalShape))
def test_windows_become_rates(arrivals):
    """Mean over seeds of the arrivals in a minute: at the edge of two windows, and in the middle of one."""
    edge_s, middle_s = 600.0, 900.0
    # 177.075, then 188.6567 requests/s; scaled by ten so that a minute's noise is small beside the step.
    rates = {
        ArrivalShape.LINEAR: {edge_s: (177.075 + 188.6567) / 2, middle_s: 188.6567, 30.0: 177.075},
        ArrivalShape.STEP: {edge_s - 31.0: 177.075, edge_s + 31.0: 188.6567, middle_s: 188.6567},
    }[arrivals]
    seeds = 300
    for at_s, rate in rates.items():
        seen = [
            len(
                open_servegen(RATES, LENGTHS, scale=0.1, arrivals=arrivals, seed=seed).between(
                    at_s - 30, at_s + 30
                )
            )
            for seed in range(seeds)
        ]
        assert abs(np.mean(seen) / (60 * rate * 0.1) - 1) < 4 * np.std(seen) / np.mean(seen) / np.sqrt(seeds)


def test_a_hole_in_the_data_is_filled_from_its_neighbours_and_named(tmp_path):
    lines = RATES.read_text().splitlines()
    for row in (4, 5):
        lines[row - 1] = ",".join([lines[row - 1].split(",")[0], "0.2", *lines[row - 1].split(",")[2:]])
    holed = tmp_path / "holed.csv"
    holed.write_text("\n".join(lines))
    source = open_servegen(holed, LENGTHS, arrivals=ArrivalShape.STEP, seed=1)
    assert source.warnings == (
        "holed.csv: rps below 1 in 2 windows (rows 4, 5): interpolated from their neighbours",
    )
    assert len(source.between(1200.0, 2400.0)) == pytest.approx(1200 * 195, rel=0.15)
    # Outside of the days that are run, nobody needs to know.
    assert open_servegen(holed, LENGTHS, days=TEN_MINUTES, seed=1).warnings == ()


def test_a_sample_of_no_tokens_counts_as_one_and_is_named(tmp_path):
    with np.load(LENGTHS) as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    arrays["out_0"][:3] = 0
    # 6 h to 12 h.
    arrays["in_21600"][:1] = 0
    np.savez(tmp_path / "zeros.npz", **arrays)
    source = open_servegen(RATES, tmp_path / "zeros.npz", days=(5 / 24, 6 / 24), seed=1)
    assert source.warnings == ("zeros.npz: out_0 has 3 samples of 0 tokens: taken as 1",)
    assert source.between(0.0, 600.0).output_tokens.min() == 1


def flat(rate: float, idc: float, seconds: int, *, modulated: bool) -> Generated:
    one = np.ones(1, np.int32)
    return Generated(
        name="flat",
        describe="",
        warnings=(),
        curve=Curve(0, np.full(seconds, rate), np.full(seconds, idc)),
        pools=[Pool(0, one, one, 0 * one)],
        start_s=0,
        end_s=seconds,
        seed=11,
        modulated=modulated,
    )


def counts_of(source: Generated) -> np.ndarray:
    made: Arrivals = source.between(0.0, source.duration_s)
    return np.bincount(made.at_s.astype(int), minlength=int(source.duration_s))
