"""Numbers for people: from cumulative counts, honest about what they cannot know."""

import pytest
from moefleet_operator.telemetry.demand import Histogram
from moefleet_operator.telemetry.figures import (
    LATENCY_WINDOW_S,
    FigureBook,
    Figures,
    Snapshot,
    attained,
    quantile_s,
    share_within,
)

BOUNDS = (0.1, 1.0, 10.0)


def histogram(*counts):
    return Histogram(BOUNDS, tuple(map(float, counts)))


@pytest.mark.parametrize(
    ("counts", "share", "expected_s"),
    [
        ((100, 0, 0, 0), 0.5, 0.05),
        ((50, 50, 0, 0), 0.75, 0.55),
        ((99, 0, 0, 1), 0.99, 0.1),
        # Beyond the last bound: at least so much.
        ((0, 0, 0, 100), 0.99, 10.0),
        # Too few to speak of a p99.
        ((19, 0, 0, 0), 0.99, None),
    ],
)
def test_quantiles(counts, share, expected_s):
    assert quantile_s(histogram(*counts), share) == (
        None if expected_s is None else pytest.approx(expected_s)
    )


@pytest.mark.parametrize(
    ("limit_s", "share"),
    [(0.05, 0.25), (0.1, 0.5), (0.55, 0.65), (1.0, 0.8), (10.0, 0.9), (99.0, 0.9), (0.0, 0.0)],
)
def test_share_within_a_limit(limit_s, share):
    assert share_within(histogram(50, 30, 10, 10), limit_s) == pytest.approx(share)


def test_figures_are_of_the_last_minute_and_the_last_ten():
    book = FigureBook()
    for i in range(0, 1300, 5):
        # 100 in, 40 cached, 10 out a second; after ten minutes all requests are slow.
        slow = max(i - 600, 0)
        book.record(
            Snapshot(
                1000.0 + i,
                (100.0 * i, 40.0 * i, 10.0 * i),
                histogram(min(i, 600), 0, slow, 0),
                Histogram((0.05, 0.2), (float(i), 0.0, 0.0)),
            )
        )
    found = book.figures(ttft_limit_s=1.0, tpot_limit_s=0.05)
    assert (found.input_tok_s, found.cached_tok_s, found.output_tok_s) == pytest.approx((100, 40, 10))
    assert found.requests == pytest.approx(LATENCY_WINDOW_S, abs=5)
    assert found.attainment_percent == pytest.approx(0.0, abs=1.0)
    assert found.ttft_p99_s == pytest.approx(9.91)
    assert found.tpot_p99_s == pytest.approx(0.0495)
    assert found.as_status() == {
        "throughput": {"inputTokensPerSecond": 100, "outputTokensPerSecond": 10},
        "objective": {
            "attainmentPercent": f"{found.attainment_percent:.2f}",
            "ttftP99": "9910ms",
            "tpotP99": "50ms",
        },
    }


def test_attainment_is_the_least_that_both_limits_allow():
    book = FigureBook()
    book.record(Snapshot(0.0, (0, 0, 0), histogram(0, 0, 0, 0), histogram(0, 0, 0, 0)))
    book.record(Snapshot(5.0, (0, 0, 0), histogram(95, 5, 0, 0), histogram(98, 2, 0, 0)))
    assert book.figures(0.1, 0.1).attainment_percent == pytest.approx(93.0)


def test_attained_counts_a_request_outside_one_limit_as_inside_the_other():
    ttft, tpot = histogram(95, 5, 0, 0), histogram(98, 2, 0, 0)
    limits = {"ttft_limit_s": 0.1, "tpot_limit_s": 0.1}
    found = attained(ttft, tpot, **limits)
    assert (found.requests, found.within) == pytest.approx((100, 93))
    # Engines that answer with one token have no time per token.
    assert attained(ttft, None, **limits).within == pytest.approx(95)
    assert attained(histogram(0, 9, 0, 0), histogram(0, 9, 0, 0), **limits).within == 0
    assert attained(None, None, **limits) is None


def test_an_idle_fleet_has_no_latencies_and_a_new_one_no_figures():
    book = FigureBook()
    assert book.figures(1, 1) == Figures()
    for at in (0.0, 5.0):
        book.record(Snapshot(at, (7.0, 0, 7.0), None, None))
    found = book.figures(1, 1)
    assert found == Figures()
    assert found.as_status() == {"throughput": {"inputTokensPerSecond": 0, "outputTokensPerSecond": 0}}


def test_new_bounds_begin_a_new_histogram():
    book = FigureBook()
    book.record(Snapshot(0.0, (0, 0, 0), histogram(1000, 0, 0, 0), None))
    book.record(Snapshot(5.0, (0, 0, 0), Histogram((2.0,), (30.0, 0.0)), None))
    assert book.figures(2.0, 1.0).attainment_percent == pytest.approx(100.0)
