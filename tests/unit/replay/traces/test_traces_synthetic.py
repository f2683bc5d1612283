"""Synthetic shapes do what their names say."""

import numpy as np
import pytest
from moefleet_perf import Mix, load_calibration, work_s
from moefleet_replay.traces import SHAPES, TraceSpec, open_trace
from moefleet_replay.traces.synthetic import lengths


def per_minute(shape, values="", **options):
    source = open_trace(TraceSpec(trace=f"synthetic:{shape},noise=0{values}", seed=1, **options))
    made = source.between(0.0, source.duration_s)
    minutes = (made.at_s // 60).astype(int)
    return made, minutes, np.bincount(minutes, minlength=int(source.duration_s / 60)) / 60


@pytest.mark.parametrize(
    ("shape", "values", "expected"),
    [
        # Requests per second in the minute that begins at so many minutes.
        ("constant", ",rate=50", {0: 50, 60: 50, 119: 50}),
        ("step", ",rate=50,at_s=1800,factor=4", {29: 50, 30: 200, 119: 200}),
        ("ramp", ",rate=50,at_s=1800,over_s=600,factor=3", {29: 50, 34: 95, 35: 105, 40: 150, 119: 150}),
        (
            "surge",
            ",rate=50,at_s=1800,factor=3,rise_s=120,hold_s=900,fall_s=300",
            {29: 50, 31: 125, 40: 150, 46: 150, 49: 100, 60: 50},
        ),
        ("sinusoid", ",low=10,high=240,period_s=3600", {0: 10, 30: 240, 15: 131, 60: 10}),
    ],
)
def test_rates(shape, values, expected):
    _, _, rate = per_minute(shape, values)
    for minute, wanted in expected.items():
        # Four times the error of a minute's mean at the dispersion of 8.
        assert abs(rate[minute] - wanted) < 4 * np.sqrt(8 * wanted / 60) + 0.02 * wanted


def test_a_mix_shift_keeps_the_work_and_changes_the_tokens():
    made, minutes, rate = per_minute("mix-shift", ",rate=200,duration_s=3600,at_s=1200,over_s=600")
    calibration = load_calibration("deepseek-v2-8xh800")

    def work(of):
        return work_s(
            calibration, Mix(float(made.input_tokens[of].mean()), float(made.output_tokens[of].mean()))
        )

    before, after = minutes < 20, minutes >= 30
    assert np.percentile(made.input_tokens[before], [50, 95]) == pytest.approx([623, 2405], rel=0.05)
    assert np.median(made.output_tokens[before]) == pytest.approx(45, rel=0.05)
    assert np.median(made.input_tokens[after]) == pytest.approx(210, rel=0.05)
    assert np.median(made.output_tokens[after]) == pytest.approx(811, rel=0.05)
    assert np.percentile(made.output_tokens[after], 99) > 10_000
    assert rate[30:].mean() < 0.4 * rate[:20].mean()
    # The closed form counts slots too, so replica-seconds agree more closely than the marginal work alone.
    assert rate[30:].mean() * work(after) == pytest.approx(rate[:20].mean() * work(before), rel=0.25)


def test_a_prefix_collapse_changes_nothing_but_the_hits():
    made, minutes, rate = per_minute("prefix-collapse", ",duration_s=3600,hit=0.6,hit_after=0.05")
    hit = [made.cached_tokens[minutes == m].sum() / made.input_tokens[minutes == m].sum() for m in range(60)]
    assert hit[:30] == pytest.approx([0.6] * 30, abs=0.01)
    assert hit[31:] == pytest.approx([0.05] * 29, abs=0.01)
    assert abs(rate[:30].mean() - rate[31:].mean()) < 4
    assert np.median(made.input_tokens[minutes < 30]) == pytest.approx(
        np.median(made.input_tokens[minutes > 31]), rel=0.02
    )


def test_scale_multiplies_the_rate():
    assert per_minute("constant", ",rate=50", scale=2.0)[2].mean() == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_runs_at_its_defaults(shape):
    source = open_trace(TraceSpec(trace=f"synthetic:{shape}"))
    made = source.between(3600.0, 3660.0)
    assert source.duration_s == 7200.0
    assert len(made)
    assert ((made.input_tokens > made.cached_tokens) & (made.output_tokens >= 1)).all()


def test_prompts_and_outputs_are_independent():
    for kind in ("chat", "reasoning"):
        pool = lengths(kind)
        assert abs(np.corrcoef(np.log(pool.input_tokens), np.log(pool.output_tokens))[0, 1]) < 0.05
