"""The next token: what each setting keeps, and that chance depends on the seed and the position alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.torch.sampling import Choice, LogitsNotFinite, chance_of, sample

# Probabilities 0.4, 0.3, 0.2, 0.1 of tokens 2, 0, 3, 1.
LOGITS = torch.tensor([[math.log(p) for p in (0.3, 0.1, 0.4, 0.2)]])
GRID = [i / 1000 for i in range(1000)]


def shares(**wanted: float) -> dict[int, float]:
    """How often each token comes over an even grid of chances."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **wanted}
    choices = [Choice(given["temperature"], int(given["top_k"]), given["top_p"], c) for c in GRID]
    tokens = sample(LOGITS.expand(len(GRID), -1), choices)
    return {t: tokens.count(t) / len(GRID) for t in sorted(set(tokens))}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {0: 0.3, 1: 0.1, 2: 0.4, 3: 0.2}),
        ({"temperature": 0.0}, {2: 1.0}),
        ({"temperature": 1e-6}, {2: 1.0}),
        # Squared and normalised: 0.09, 0.01, 0.16, 0.04 of 0.30.
        ({"temperature": 0.5}, {0: 0.3, 1: 1 / 30, 2: 16 / 30, 3: 4 / 30}),
        ({"top_k": 1}, {2: 1.0}),
        ({"top_k": 2}, {0: 3 / 7, 2: 4 / 7}),
        ({"top_k": 99}, {0: 0.3, 1: 0.1, 2: 0.4, 3: 0.2}),
        ({"top_p": 0.01}, {2: 1.0}),
        # 0.4 is not enough for 0.5, 0.4 + 0.3 is.
        ({"top_p": 0.5}, {0: 3 / 7, 2: 4 / 7}),
        ({"top_p": 0.75}, {0: 3 / 9, 2: 4 / 9, 3: 2 / 9}),
        # Of what top-k left, token 2 alone has 4/7.
        ({"top_k": 2, "top_p": 0.5}, {2: 1.0}),
    ],
)
def test_each_token_comes_as_often_as_its_probability(
    wanted: dict[str, float], expected: dict[int, float]
) -> None:
    assert shares(**wanted) == pytest.approx(expected, abs=0.002)


def test_top_p_that_is_reached_exactly_keeps_no_token_more() -> None:
    """Four equal tokens: two of them are one half."""
    tokens = sample(torch.zeros(len(GRID), 4), [Choice(1.0, 0, 0.5, c) for c in GRID])
    assert len(set(tokens)) == 2


ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        st.sampled_from([0, 1, 5, 64]),
        st.sampled_from([0.1, 0.9, 1.0]),
        st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, data=st.integers(0, 10**6))
def test_a_row_gets_the_same_token_alone_and_in_any_batch(
    rows: list[tuple[float, int, float, int]], data: int
) -> None:
    logits = torch.randn(len(rows), 50, generator=torch.Generator().manual_seed(data)) * 3
    choices = [Choice(t, k, p, chance_of(seed, 4)) for t, k, p, seed in rows]
    together = sample(logits, choices)
    alone = [sample(logits[i : i + 1], [choices[i]])[0] for i in range(len(rows))]
    assert together == alone
    backwards = sample(logits.flip(0), choices[::-1])
    assert backwards[::-1] == together


def test_no_rows_no_tokens() -> None:
    assert sample(torch.empty(0, 10), []) == []


def test_chance_is_even_and_depends_on_seed_and_position() -> None:
    values = [chance_of(seed, position) for seed in range(40) for position in range(50)]
    assert len(set(values)) == len(values)
    assert all(0 <= v < 1 for v in values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.03)


def test_chance_is_pinned_because_a_change_would_change_every_seeded_answer() -> None:
    assert [chance_of(42, 0), chance_of(42, 1)] == [0.127800788776263, 0.2480908728867547]
    assert chance_of(2**64 - 1, 5) == 0.0672453660168445


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error_and_not_a_token(bad: float) -> None:
    logits = LOGITS.repeat(2, 1)
    logits[1, 3] = bad
    with pytest.raises(LogitsNotFinite):
        sample(logits, [Choice(0.0, 0, 1.0, 0.0)] * 2)
