"""A plan adds up: shapes of a day, money, and which limit binds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf import load_calibration
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.observation import Objective
from moefleet_replay.plan import (
    Plan,
    PlanError,
    Prices,
    bound_sentences,
    day_shape,
    from_rate,
    from_trace,
    mix_of,
)

MODEL = load_calibration("deepseek-v2-8xh800")


def plan(rate: float, inputs: float, outputs: float, *, peak_factor: float = 1.0, headroom: float = 0.0, min_replicas: int = 1) -> Plan:  # fmt: skip
    return from_rate(
        rate, inputs, outputs, peak_factor=peak_factor, headroom=headroom, calibration=MODEL, objective=Objective(), prices=Prices(),
        min_replicas=min_replicas,
    )  # fmt: skip


@given(st.floats(1, 20))
def test_a_day_has_its_mean_and_its_peak(peak_factor: float) -> None:
    shape = day_shape(peak_factor, 144)
    assert math.fsum(shape) / len(shape) == pytest.approx(1)
    assert max(shape) == pytest.approx(peak_factor, rel=0.005)
    assert min(shape) >= 0


def test_a_flat_day_is_the_closed_form() -> None:
    # Chat: w = b*600 + 200*(c + d*700) = 9.65 ms, x* = (1 - a/85 ms)/w = 87.8 requests/s: 200 of them are 2.28 replicas.
    found = plan(200, 600, 200)
    w = 9.8766e-6 * 600 + 200 * (1.7082e-5 + 2.1996e-9 * 700)
    need = 200 / ((1 - 0.0129324 / 0.085) / w)
    assert found.windows[0].need == pytest.approx(need)
    assert {x.replicas for x in found.windows} == {math.ceil(need)}
    assert found.gpu_hours == pytest.approx(math.ceil(need) * 8 * 24)
    assert found.cost == pytest.approx(found.gpu_hours * 14)
    tokens = 200 * 86_400 * 800 / 1e6
    assert found.cost_per_mtok == pytest.approx(found.cost / tokens)
    assert found.revenue == pytest.approx(200 * 86_400 * (600 * 1 + 200 * 2) / 1e6)
    assert found.margin_percent == pytest.approx(100 * (1 - found.cost / found.revenue))


@given(st.floats(0.1, 2000), st.floats(0, 1), st.floats(1, 5))
def test_more_headroom_is_never_fewer_replicas_and_static_is_never_less(
    rate: float, headroom: float, peak_factor: float
) -> None:
    lean = plan(rate, 600, 200, peak_factor=peak_factor)
    safe = plan(rate, 600, 200, peak_factor=peak_factor, headroom=headroom)
    assert all(a.replicas <= b.replicas for a, b in zip(lean.windows, safe.windows, strict=True))
    assert safe.static_gpu_hours >= safe.gpu_hours - 1e-6


def test_the_limit_that_binds_is_told_in_words() -> None:
    # 60,000-token prompts that answer with 30,000: caches are full long before steps are slow.
    found = plan(2, 100_000, 30_000)
    assert set(found.bounds) == {"KVCache"}
    assert bound_sentences(found)[0].startswith("100 % of the time: the KV cache")


def test_a_trace_is_planned_window_by_window() -> None:
    class Source:
        name = "by hand"
        duration_s = 1500.0

        def between(self, start_s: float, end_s: float) -> Arrivals:
            # 100 requests/s in the first window, none in the second, 200 in the last 300 s.
            count = {0.0: 60_000, 600.0: 0, 1200.0: 60_000}[start_s]
            ones = np.ones(count, np.int32)
            return Arrivals(np.linspace(start_s, end_s, count), 600 * ones, 200 * ones, 0 * ones)

    found = from_trace(Source(), headroom=0, calibration=MODEL, objective=Objective(), prices=Prices())
    needs = [w.need for w in found.windows]
    assert [w.length_s for w in found.windows] == [600, 600, 300]
    assert needs[1] == 0
    assert needs[2] == pytest.approx(2 * needs[0])
    assert found.days == pytest.approx(1500 / 86_400)
    assert found.input_tokens == pytest.approx(120_000 * 600)


def test_the_context_of_a_mix_is_that_of_the_tokens_that_are_made() -> None:
    # Two requests, one makes 9 times the tokens of the other: nine in ten tokens are made in its context.
    both = Arrivals(np.zeros(2), np.array([100, 100], np.int32), np.array([100, 900], np.int32), np.array([0, 50], np.int32))  # fmt: skip
    mix = mix_of(both)
    assert mix is not None
    assert (mix.input_tokens, mix.output_tokens, mix.cached_tokens) == (100, 500, 25)
    assert mix.context_tokens == pytest.approx(0.1 * 150 + 0.9 * 550)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 0}, "rate: wanted"),
        ({"rate": math.nan}, "rate: wanted"),
        ({"inputs": 0}, "input-tokens: wanted 1"),
        ({"peak_factor": 0.5}, "peak-factor: wanted 1 to 20"),
        ({"headroom": -1}, "headroom: wanted 0"),
    ],
)
def test_what_cannot_be_planned_is_named(changed: dict[str, float], said: str) -> None:
    given_ = {"rate": 1.0, "inputs": 600.0, "outputs": 200.0} | {k: v for k, v in changed.items() if k in ("rate", "inputs")}  # fmt: skip
    rest = {k: v for k, v in changed.items() if k not in given_}
    with pytest.raises(PlanError, match=said):
        plan(given_["rate"], given_["inputs"], given_["outputs"], **rest)
