"""Where a stop text ends an answer, whatever tokens and messages it comes in: tables, then every cut of random texts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.base import TokenLogprob
from moefleet_runtime.serving.stopping import AnswerText, Said, StopFinder
from moefleet_runtime.tokenizer import FIRST_BYTE, SyllableTokenizer, load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT

# Every byte is a token, so a character may be four of them.
BYTES = SyllableTokenizer(1000)


def tokens_of(text: str) -> list[int]:
    return [FIRST_BYTE + b for b in text.encode()]


def said(text: str, stops: list[str], cuts: list[int], *, min_tokens: int = 0) -> list[Said]:
    """The answer in messages that end at `cuts` (tokens); nothing is pushed after a stop."""
    answer = AnswerText(BYTES.decoder(), stops, min_tokens)
    tokens = tokens_of(text)
    edges = [0, *sorted({c for c in cuts if 0 < c < len(tokens)}), len(tokens)]
    out = []
    for begin, end in pairwise(edges):
        out.append(answer.push(tokens[begin:end], last=end == len(tokens)))
        if out[-1].stop is not None:
            break
    return out


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first at which some stop text is complete; of several, the one that began first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@pytest.mark.parametrize(
    ("text", "stops", "kept", "stop"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one two three", ["four"], "one two three", None),
        ("one two three", ["three"], "one two ", "three"),
        ("one two three", ["one"], "", "one"),
        # The beginning of a stop text that does not go on is given out after all.
        ("aab", ["aac"], "aab", None),
        ("aaab", ["aab"], "a", "aab"),
        ("\n\nUser", ["\n\nUser:"], "\n\nUser", None),
        ("xaby", ["b", "ab"], "x", "ab"),
        ("xabcd", ["abcd", "bc"], "xa", "bc"),
        ("Grüße 👩‍👩‍👧 Ende", ["👩‍👧"], "Grüße 👩‍", "👩‍👧"),
        ("日本語。終", ["。"], "日本語", "。"),
    ],
)
def test_the_answer_ends_where_the_stop_text_would_begin(
    text: str, stops: list[str], kept: str, stop: str | None
) -> None:
    assert expected(text, stops) == (kept, stop)
    for size in (1, 2, 3, 100):
        messages = said(text, stops, list(range(0, 100, size)))
        assert ("".join(m.text for m in messages), messages[-1].stop) == (kept, stop)


ALPHABET = st.sampled_from(["a", "b", "ab", "\n", "é", "語", "👩", "\ufffd", " "])
TEXT = st.lists(ALPHABET, max_size=30).map("".join)
STOPS = st.lists(st.lists(ALPHABET, min_size=1, max_size=4).map("".join), min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(1, 120), max_size=12))
def test_no_cut_changes_where_an_answer_ends_and_no_stop_text_is_given_out(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    kept, stop = expected(text, stops)
    messages = said(text, stops, cuts) if text else []
    whole = "".join(m.text for m in messages)
    assert (whole, messages[-1].stop if messages else None) == (kept, stop)
    # What came out never had to be taken back, and is whole characters.
    assert all(s not in whole for s in stops)
    # The tokens spell the text exactly: each of them is one byte of one character.
    tokens = [t for m in messages for t in m.tokens]
    assert bytes(t - FIRST_BYTE for t in tokens).decode() == kept


@settings(max_examples=200, deadline=None)
@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=12))
def test_the_finder_alone_agrees_with_reading_character_by_character(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder, out, found = StopFinder(stops), "", None
    edges = [0, *sorted({c for c in cuts if 0 < c < len(text)}), len(text)]
    for begin, end in pairwise(edges):
        part, found = finder.push(text[begin:end])
        out += part
        if found:
            break
    assert (out if found else out + finder.finish(), found) == expected(text, stops)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, stops=STOPS, least=st.integers(0, 40))
def test_stop_texts_in_the_first_tokens_do_not_count(text: str, stops: list[str], least: int) -> None:
    messages = said(text, stops, list(range(200)), min_tokens=least) if text else []
    whole = "".join(m.text for m in messages)
    if messages and messages[-1].stop is not None:
        assert text.startswith(whole + messages[-1].stop)
        assert len(tokens_of(whole + messages[-1].stop)) > least
    else:
        assert whole == text


def test_a_real_tokenizer_whose_tokens_hold_ends_of_words() -> None:
    """The stop text ends in the middle of a token: the text before it in that token is given, the token is not."""
    tokenizer = load_tokenizer(CHECKPOINT, 2048)
    ids = tokenizer.encode("Emma was clever, and the evening passed. Captain Wentworth, in the most")[1:]
    decoded = tokenizer.decoder().push(ids)
    for begin in range(0, len(decoded) - 4, 3):
        stop = decoded[begin : begin + 4]
        kept, found = expected(decoded, [stop])
        answer, messages = AnswerText(tokenizer.decoder(), [stop]), []
        for i, token in enumerate(ids):
            messages.append(answer.push((token,), last=i == len(ids) - 1))
            if messages[-1].stop:
                break
        assert ("".join(m.text for m in messages), messages[-1].stop) == (kept, found)
        given_ids = [t for m in messages for t in m.tokens]
        assert ids[: len(given_ids)] == given_ids
        assert kept.startswith(tokenizer.decoder().push(given_ids))
        assert answer.used == len(messages)


def test_log_probabilities_stay_with_their_tokens() -> None:
    answer = AnswerText(BYTES.decoder(), ["cd"])
    one, two = (
        answer.push(tokens_of(part), [TokenLogprob(-float(t)) for t in tokens_of(part)])
        for part in ("abc", "e")
    )
    assert one.text == "ab"
    assert (two.text, two.stop) == ("ce", None)
    for message in (one, two):
        assert [-p.logprob for p in message.logprobs] == message.tokens


def test_without_stop_texts_nothing_waits_but_half_a_character() -> None:
    answer = AnswerText(BYTES.decoder())
    first, *rest = tokens_of("語")
    assert answer.push([*tokens_of("a"), first]) == Said([*tokens_of("a"), first], [], "a")
    assert answer.push(rest).text == "語"
    assert answer.push([first], last=True).text == "\ufffd"
    assert answer.used == 5
