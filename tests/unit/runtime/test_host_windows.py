"""Tokens of one answer wait for each other in the engine host: which go when, in virtual time."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.engine.base import Finish, TokenDelta, TokenLogprob
from moefleet_runtime.host.batches import (
    MESSAGE_COST_S,
    SLACK_S,
    WINDOW_S,
    WINDOW_TOKENS,
    Fields,
    Windows,
    slack_s,
    window_s,
)


def token(name: str, *tokens: int, finish: Finish | None = None) -> TokenDelta:
    return TokenDelta(name, tokens, finish=finish)


def at(windows: Windows, now_s: float, *deltas: TokenDelta) -> list[tuple[str, tuple[int, ...]]]:
    windows.add(deltas, now_s)
    return [(entry[0], entry[1]) for entry in windows.take(now_s)]


def test_the_first_token_goes_at_once_and_the_next_ones_together() -> None:
    windows = Windows()
    assert at(windows, 1.0, token("a", 7)) == [("a", (7,))]
    assert at(windows, 1.004, token("a", 8)) == []
    assert at(windows, 1.008, token("a", 9), token("b", 3)) == [("b", (3,))]
    assert windows.next_s == pytest.approx(1.0 + WINDOW_S)
    assert at(windows, 1.0 + WINDOW_S) == [("a", (8, 9))]
    assert windows.next_s is None


def test_a_token_after_a_quiet_window_goes_at_once() -> None:
    windows = Windows()
    at(windows, 1.0, token("a", 7))
    assert at(windows, 1.0 + WINDOW_S, token("a", 8)) == [("a", (8,))]
    # The new message has a window of its own.
    assert at(windows, 1.001 + WINDOW_S, token("a", 9)) == []


def test_so_many_tokens_do_not_wait_and_the_time_they_left_behind_sends_nothing() -> None:
    windows = Windows()
    at(windows, 1.0, token("a", 7))
    assert at(windows, 1.004, token("a", 8)) == []
    many = tuple(range(WINDOW_TOKENS - 1))
    assert at(windows, 1.008, token("a", *many)) == [("a", (8, *many))]
    assert at(windows, 1.009, token("a", 9)) == []
    assert at(windows, 1.0 + WINDOW_S) == []
    assert at(windows, 1.008 + WINDOW_S) == [("a", (9,))]


def test_the_end_waits_for_nothing_and_takes_with_it_what_was_held() -> None:
    windows = Windows()
    at(windows, 1.0, token("a", 7))
    at(windows, 1.001, token("a", 8))
    windows.add([TokenDelta("a", (9,), finish=Finish.STOP)], 1.002)
    assert windows.take(1.002) == [("a", (8, 9), 0, Finish.STOP, "", ())]
    assert windows.take(9.0, everything=True) == []
    # Nothing of it is remembered: an id that comes again begins again.
    assert at(windows, 1.003, token("a", 1)) == [("a", (1,))]


def test_one_entry_has_all_fields_of_its_deltas_in_their_order() -> None:
    sure, likely = TokenLogprob(-0.1), TokenLogprob(-0.7)
    made = [
        TokenDelta("a", (1,), cached_tokens=32),
        TokenDelta("b", (7, 8), logprobs=(sure, likely)),
        TokenDelta("a", (2, 3)),
        TokenDelta("b", (9,), finish=Finish.STOP, logprobs=(sure,)),
        TokenDelta("a", (), finish=Finish.FAILED, error="boom"),
    ]
    windows = Windows()
    windows.add(made, 1.0)
    assert windows.take(1.0) == [
        ("a", (1, 2, 3), 32, Finish.FAILED, "boom", ()),
        ("b", (7, 8, 9), 0, Finish.STOP, "", (sure, likely, sure)),
    ]


def test_windows_that_close_soon_after_each_other_close_together() -> None:
    windows = Windows()
    at(windows, 1.0, token("a", 1))
    at(windows, 1.0 + SLACK_S / 2, token("b", 1))
    at(windows, 1.01, token("a", 2), token("b", 2))
    assert at(windows, 1.0 + WINDOW_S) == [("a", (2,)), ("b", (2,))]


def test_with_many_answers_soon_is_a_part_of_the_window() -> None:
    assert slack_s(window_s(1)) == SLACK_S
    assert slack_s(window_s(1000)) == pytest.approx(0.003)
    windows = Windows()
    at(windows, 1.0, *(token(f"r{i}", 1) for i in range(1000)))
    assert len(at(windows, 1.002, token("soon", 1))) == 1
    assert len(at(windows, 1.006, token("later", 1))) == 1
    assert at(windows, 1.02, token("r0", 2), token("soon", 2), token("later", 2)) == []
    assert at(windows, 1.1) == [("r0", (2,)), ("soon", (2,))]
    assert at(windows, 1.106) == [("later", (2,))]


def test_messages_of_many_answers_wait_longer_for_each_other() -> None:
    assert window_s(1) == window_s(200) == WINDOW_S
    assert window_s(1000) == pytest.approx(0.1)
    # Half a core at most goes into messages.
    assert 5000 / window_s(5000) * MESSAGE_COST_S == pytest.approx(0.5)
    windows = Windows()
    at(windows, 1.0, *(token(f"r{i}", 1) for i in range(1000)))
    assert at(windows, 1.001, *(token(f"r{i}", 2) for i in range(1000))) == []
    assert at(windows, 1.09) == []
    assert len(at(windows, 1.1)) == 1000


STEPS = st.lists(
    st.tuples(
        # Milliseconds to the next step, and who gets how many tokens in it.
        st.integers(0, 30),
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.booleans()), max_size=6),
    ),
    max_size=25,
)


@given(STEPS)
def test_no_token_is_lost_early_late_or_out_of_order(
    steps: list[tuple[int, list[tuple[str, int, bool]]]],
) -> None:
    """Read at each step and at each time that `next_s` names, as the writer does."""
    windows, now_s, made = Windows(), 0.0, 0
    runs: dict[str, int] = defaultdict(int)
    given_at: dict[str, list[float]] = defaultdict(list)
    sent: dict[str, list[tuple[float, Fields]]] = defaultdict(list)
    wanted: dict[str, list[int]] = defaultdict(list)

    def take() -> None:
        for entry in windows.take(now_s):
            sent[entry[0]].append((now_s, entry))

    for wait_ms, deltas in steps:
        until_s = now_s + wait_ms / 1e3
        while windows.next_s is not None and windows.next_s < until_s:
            now_s = max(now_s, windows.next_s)
            take()
        now_s = until_s
        batch = []
        for letter, tokens, ends in deltas:
            name = f"{letter}{runs[letter]}"
            ids = tuple(range(made, made + tokens))
            made += tokens
            wanted[name] += ids
            given_at[name] += [now_s] * tokens
            batch.append(token(name, *ids, finish=Finish.STOP if ends else None))
            runs[letter] += ends
        windows.add(batch, now_s)
        take()
    while windows.next_s is not None:
        now_s = max(now_s, windows.next_s)
        take()
    for name, ids in wanted.items():
        entries = sent[name]
        assert [t for _, entry in entries for t in entry[1]] == ids
        sent_at = [at_s for at_s, entry in entries for _ in entry[1]]
        held_s = [out - came for came, out in zip(given_at[name], sent_at, strict=True)]
        assert all(-1e-9 <= s <= WINDOW_S + 1e-9 for s in held_s)
        assert held_s[:1] == [0.0] * len(held_s[:1])
        # Only the end, the limit of tokens, or a message without tokens comes within a window.
        for (before_s, before), (after_s, after) in pairwise(entries):
            early = after_s - before_s < WINDOW_S - SLACK_S - 1e-9
            assert not early or after[3] or len(after[1]) >= WINDOW_TOKENS or not before[1] or not after[1]
