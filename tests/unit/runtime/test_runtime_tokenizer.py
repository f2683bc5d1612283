"""Text in pieces is the text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.ending import FatalError
from moefleet_runtime.engine.base import Tokenizer
from moefleet_runtime.tokenizer import (
    FIRST_BYTE,
    FIRST_WORD,
    MAX_PENDING_TOKENS,
    IncrementalDecoder,
    SyllableTokenizer,
    load_tokenizer,
)

TINY = Path(__file__).parents[2] / "support/models/tiny-deepseek-v2"
BUILT_IN = SyllableTokenizer(102400)
FROM_FILE = load_tokenizer(TINY, 2048)
TOKENIZERS = [pytest.param(BUILT_IN, id="built in"), pytest.param(FROM_FILE, id="file")]
# U+FFFD itself stands for bytes that are no text; surrogates are no text at all.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="�"), max_size=60)


def pieces(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    decoder = tokenizer.decoder()
    out, at = [], 0
    for size in [*sizes, *[1] * len(ids)]:
        if at >= len(ids):
            break
        out.append(decoder.push(ids[at : at + size]))
        at += size
    return [*out, decoder.finish()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=TEXT, sizes=st.lists(st.integers(1, 7), max_size=30))
def test_any_cut_into_pieces_gives_the_text_and_never_half_a_character(
    tokenizer: Tokenizer, text: str, sizes: list[int]
) -> None:
    out = pieces(tokenizer, tokenizer.encode(text), sizes)
    assert "".join(out) == text
    assert not any("�" in piece for piece in out)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_bytes_that_never_become_a_character_do_not_hold_back_the_answer(tokenizer: Tokenizer) -> None:
    # A lone continuation byte, again and again.
    bad = FIRST_BYTE + 0x80 if tokenizer is BUILT_IN else tokenizer.encode("é")[-1]
    decoder = tokenizer.decoder()
    shown = ""
    for number in range(100):
        shown += decoder.push([bad])
        assert number + 1 - len(shown) <= MAX_PENDING_TOKENS + 1
    assert "�" in shown + decoder.finish()


@given(st.integers(FIRST_WORD, 102399))
def test_every_made_word_has_one_token_and_every_token_one_word(token: int) -> None:
    decoder = BUILT_IN.decoder()
    word = decoder.push([token])
    assert word[0] == " "
    assert word[1:].isalpha()
    assert BUILT_IN.encode(word)[1:] == [token]


def test_a_first_token_is_decoded_once_and_an_end_without_tokens_not_at_all() -> None:
    decoded: list[list[int]] = []

    def decode(ids: list[int]) -> str:
        decoded.append(list(ids))
        return "".join(f" {each}" for each in ids)

    decoder = IncrementalDecoder(decode)
    assert decoder.push([7]) == " 7"
    assert decoder.finish() == ""
    assert decoded == [[7]]
    assert decoder.push([8]) == " 8"
    assert decoded == [[7], [7], [7, 8]]


def test_the_file_adds_its_begin_token_as_transformers_does() -> None:
    assert FROM_FILE.encode("Emma was") == [0, 1794, 307]
    assert FROM_FILE.vocabulary_size == 2048


def test_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FatalError) as caught:
        load_tokenizer(tmp_path, 2048)
    assert caught.value.failure.reason == "TokenizerUnreadable"
    assert str(tmp_path) in caught.value.failure.message
