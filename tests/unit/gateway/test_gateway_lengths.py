"""Estimates before anything is known, and what they learn."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


class Line:
    """Requests of one class, one a second at 20 ms a token, in virtual time. Returns what is expected of the next, second by second."""

    def __init__(self, seed: int = 1) -> None:
        self.lengths, self.chance, self.now = Lengths(), random.Random(seed), 0.0
        self.running: list[tuple[float, float, int]] = []

    def run(self, seconds: int, mean_tokens: float, corrected: bool = True) -> list[int]:
        expected = []
        for _ in range(seconds):
            self.now += 1.0
            for end_s, begun_s, tokens in [r for r in self.running if r[0] <= self.now]:
                self.running.remove((end_s, begun_s, tokens))
                if corrected:
                    self.lengths.left(100, None, end_s)
                learn(
                    self.lengths,
                    1,
                    max_tokens=None,
                    output_tokens=tokens,
                    lasted_s=(end_s - begun_s) * corrected,
                )  # type: ignore[arg-type]
            expected.append(self.lengths.output_tokens(100, None, self.now))
            tokens = max(1, round(self.chance.lognormvariate(math.log(mean_tokens) - 0.32, 0.8)))
            if corrected:
                self.lengths.began(100, None, self.now)
            self.running.append((self.now + 0.5 + 0.02 * tokens, self.now, tokens))
        return expected


def test_answers_that_still_run_are_counted_when_chat_turns_into_reasoning() -> None:
    """From 150 to 4,500 tokens: a mean answer now takes 90 s, and those that end in the first minutes are the short ones."""
    plain, corrected = Line(), Line()
    for line, knows in ((plain, False), (corrected, True)):
        steady = line.run(1200, 150, knows)
        assert sum(steady[-600:]) / 600 == pytest.approx(150, rel=0.1)
    late = plain.run(600, 4500, corrected=False)
    early = corrected.run(600, 4500)

    def reached(expected: list[int]) -> int:
        return next((i for i, tokens in enumerate(expected) if tokens > 0.5 * 4500), 600)

    assert reached(early) < 0.75 * reached(late)
    # And what is made of it is no invention.
    assert max(early) < 2 * 4500
    assert sum(corrected.run(600, 4500)[-200:]) / 200 == pytest.approx(4500, rel=0.25)


@given(st.integers(1, 5), st.sampled_from([30.0, 300.0, 900.0]))
@settings(max_examples=10, deadline=None)
def test_in_the_long_run_the_correction_changes_nothing(seed: int, mean_tokens: float) -> None:
    corrected, plain = Line(seed), Line(seed)
    one, other = corrected.run(1500, mean_tokens)[-500:], plain.run(1500, mean_tokens, corrected=False)[-500:]
    assert sum(one) == pytest.approx(sum(other), rel=0.1)


def test_a_class_that_reasons_is_expected_to_take_long_until_enough_have_ended() -> None:
    lengths = Lengths()
    for i in range(199):
        learn(lengths, 1, output_tokens=[500, 1000, 3000, 6000][i % 4])
    few = lengths.output_tokens(100, 1000)
    assert few == 1000  # never more than max_tokens
    lengths = Lengths()
    for i in range(199):
        learn(lengths, 1, max_tokens=None, output_tokens=[500, 1000, 3000, 6000][i % 4])
    assert lengths.output_tokens(100, None) == 3000
    learn(lengths, 1, max_tokens=None, output_tokens=6000)
    assert lengths.output_tokens(100, None) == pytest.approx(2625, rel=0.05)


def test_running_answers_that_are_lost_leave_no_trace() -> None:
    lengths = Lengths()
    learn(lengths, 50, max_tokens=None, lasted_s=1.0)  # type: ignore[arg-type]
    for i in range(1000):
        lengths.began(100, None, float(i))
        lengths.left(100, None)
    lengths.left(100, None, 1000.0)
    assert lengths.output_tokens(100, None, 5000.0) == pytest.approx(50, rel=0.6)
