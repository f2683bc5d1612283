"""Estimates before anything is known, and what they learn."""

import pytest
from moefleet_gateway.picking.demand import TPOT_BOUNDS_S, TTFT_BOUNDS_S, Demand, Ring
from moefleet_gateway.picking.lengths import Lengths, bucket


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (1023, 9), (1024, 10), (2**40, 31)]
)
def test_bucket(tokens: int, expected: int) -> None:
    assert bucket(tokens) == expected


def test_priors() -> None:
    lengths = Lengths()
    assert lengths.prompt_tokens(400) == 100
    assert lengths.cached_tokens(100) == 0
    assert [lengths.output_tokens(100, m) for m in (None, 10, 1000)] == [256, 10, 256]


def learn(lengths: Lengths, times: int, **more: int | None) -> None:
    facts = {
        "text_bytes": None,
        "estimated_prompt_tokens": 100,
        "max_tokens": 1000,
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "output_tokens": 50,
    }
    for _ in range(times):
        lengths.learn(**{**facts, **more})


def test_output_is_learnt_for_its_class_only() -> None:
    lengths = Lengths()
    learn(lengths, 200, output_tokens=50)
    assert lengths.output_tokens(100, 1000) == pytest.approx(50, abs=6)
    assert lengths.output_tokens(100, 900) == lengths.output_tokens(100, 1000)  # the same powers of two
    assert lengths.output_tokens(5000, 1000) == 256
    assert lengths.output_tokens(100, 20) == 20


def test_an_estimate_follows_a_change() -> None:
    lengths = Lengths()
    learn(lengths, 1000, output_tokens=50)
    learn(lengths, 600, output_tokens=400)
    assert lengths.output_tokens(100, 1000) == pytest.approx(400, rel=0.1)


def test_never_more_than_max_tokens_nor_less_than_one() -> None:
    lengths = Lengths()
    learn(lengths, 100, output_tokens=0)
    assert lengths.output_tokens(100, 1000) >= 1
    learn(lengths, 300, max_tokens=17, output_tokens=31)  # usage above the limit: an engine that lies
    assert lengths.output_tokens(100, 17) == 17


def test_bytes_are_corrected_by_usage_of_texts_and_not_of_ids() -> None:
    lengths = Lengths()
    learn(lengths, 300, text_bytes=300, prompt_tokens=100)
    assert lengths.prompt_tokens(3000) == pytest.approx(1000, rel=0.02)
    learn(lengths, 300, text_bytes=None, prompt_tokens=10_000)
    assert lengths.prompt_tokens(3000) == pytest.approx(1000, rel=0.02)


def test_cached_share_is_learnt() -> None:
    lengths = Lengths()
    learn(lengths, 300, cached_tokens=40)
    assert lengths.cached_tokens(1000) == pytest.approx(400, rel=0.05)


def test_times_land_in_the_bucket_of_their_bound() -> None:
    demand = Demand()
    demand.timed(ttft_s=TTFT_BOUNDS_S[3], stream_s=9 * TPOT_BOUNDS_S[2], output_tokens=10)
    assert demand.ttft_counts[3] == 1
    assert demand.tpot_counts[2] == 1
    demand.timed(ttft_s=1e9, stream_s=0.0, output_tokens=1)  # one token has no time between tokens
    assert demand.ttft_counts[-1] == 1
    assert sum(demand.tpot_counts) == 1


def test_the_ring_forgets_the_oldest_and_keeps_counting() -> None:
    ring: Ring[str] = Ring(kept=3)
    for n in range(5):
        ring.push(f"s{n + 1}")
    assert ring.after(0) == [(3, "s3"), (4, "s4"), (5, "s5")]
    assert ring.after(4) == [(5, "s5")]
    assert ring.after(5) == []
