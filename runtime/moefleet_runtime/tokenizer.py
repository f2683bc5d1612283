"""Text to token ids and back: the model's own tokenizer file, or a built-in one where there is none.

Encoding adds what the tokenizer's own template adds (begin of text), as transformers does, so that the same text is
the same prompt everywhere. Decoding goes on where it stopped and never splits a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from moefleet_runtime.ending import FatalError
from moefleet_runtime.engine.base import TextDecoder, Tokenizer

if TYPE_CHECKING:
    import tokenizers

# A character is at most four bytes, so at most four byte tokens; what is still no character after a few more never
# becomes one, and waiting for it would hold back the rest of the answer.
MAX_CHARACTER_TOKENS = 4
MAX_PENDING_TOKENS = 8
REPLACEMENT = "�"


def load_tokenizer(folder: Path | None, vocabulary_size: int) -> Tokenizer:
    """The folder's tokenizer.json, else the built-in one. Raises FatalError(TokenizerUnreadable)."""
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.exists():
        return SyllableTokenizer(vocabulary_size)
    import tokenizers

    try:
        # tokenizers raises bare Exception for whatever is wrong with the file.
        return FileTokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:
        raise FatalError("TokenizerUnreadable", f"{file}: {error}") from error


class FileTokenizer:
    """A Hugging Face tokenizer.json."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        inner.no_truncation()
        inner.no_padding()

    @property
    def vocabulary_size(self) -> int:
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text).ids)

    def decoder(self) -> TextDecoder:
        return IncrementalDecoder(lambda ids: str(self._inner.decode(ids, skip_special_tokens=True)))


class IncrementalDecoder:
    """Text of an answer piece by piece, from a function that decodes a whole list.

    A token's text can depend on the one before (spaces), so each piece is the difference of two decodes that begin at the
    same earlier token. Two decodes a message and one for the first, whatever the number of tokens in it.
    """

    __slots__ = ("_decode", "_done", "_tokens")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        # The tokens of the last emitted piece (the context), then those not emitted yet.
        self._tokens: list[int] = []
        self._done = 0

    def push(self, tokens: Sequence[int]) -> str:
        self._tokens.extend(tokens)
        return self._emit(last=False)

    def finish(self) -> str:
        return self._emit(last=True)

    def _emit(self, *, last: bool) -> str:
        end = len(self._tokens)
        if end == self._done:
            return ""
        context = self._decode(self._tokens[: self._done]) if self._done else ""
        whole = self._decode(self._tokens)
        if not last and whole.endswith(REPLACEMENT):
            end, whole = self._last_character(whole)
        if end == self._done:
            return ""
        # What was given out becomes the context of what follows.
        self._tokens, self._done = self._tokens[self._done :], end - self._done
        return whole[len(context) :]

    def _last_character(self, whole: str) -> tuple[int, str]:
        """Where the last complete character ends, and the text up to there."""
        end = len(self._tokens)
        for cut in range(end - 1, max(self._done, end - MAX_CHARACTER_TOKENS) - 1, -1):
            text = self._decode(self._tokens[:cut])
            if not text.endswith(REPLACEMENT) or cut == self._done:
                return cut, text
        if end - self._done <= MAX_PENDING_TOKENS:
            return self._done, ""
        return end, whole


_CONSONANTS = "bdfghklmnprstvwz"
_VOWELS = "aeiou"
_SYLLABLES = [c + v for c in _CONSONANTS for v in _VOWELS]
_SYLLABLE_NUMBER = {syllable: number for number, syllable in enumerate(_SYLLABLES)}
_BASE = len(_SYLLABLES)
# Begin, end and padding, then one token a byte, then one token a made-up word.
BEGIN, END, PADDING = 0, 1, 2
FIRST_BYTE = 3
FIRST_WORD = FIRST_BYTE + 256
# Words that are made beforehand: 10 MB of them, in a fifth of a second.
MAX_WORDS = 1 << 17
_WORD = re.compile(r" (?:[bdfghklmnprstvwz][aeiou])+")


class SyllableTokenizer:
    """For the Simulated engine without a tokenizer file: every id above the bytes is a pronounceable word (" ra kobu"),
    every text has ids, and decoding gives back what was encoded."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        return self._vocabulary_size

    def encode(self, text: str) -> list[int]:
        ids = [BEGIN]
        end = 0
        for match in _WORD.finditer(text):
            word = _word_id(match.group()[1:])
            if word >= self._vocabulary_size:
                continue
            ids.extend(FIRST_BYTE + byte for byte in text[end : match.start()].encode())
            ids.append(word)
            end = match.end()
        ids.extend(FIRST_BYTE + byte for byte in text[end:].encode())
        return ids

    def decoder(self) -> TextDecoder:
        return _BytesDecoder(_words(min(self._vocabulary_size, MAX_WORDS)))


class _BytesDecoder:
    """Every token is bytes whatever stands before it, so the standard library's decoder does it all."""

    __slots__ = ("_inside", "_utf8", "_words")

    def __init__(self, words: Sequence[bytes]) -> None:
        self._words = words
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # A character has begun.
        self._inside = False

    def push(self, tokens: Sequence[int]) -> str:
        words = self._words
        try:
            data = b"".join([words[token] for token in tokens])
        except IndexError:
            data = b"".join(map(_token_bytes, tokens))
        if not self._inside and data.isascii():
            # Nearly always, and a quarter of what the incremental decoder takes.
            return data.decode("ascii")
        text = self._utf8.decode(data)
        self._inside = bool(self._utf8.getstate()[0])
        return text

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@cache
def _words(tokens: int) -> tuple[bytes, ...]:
    """A rehearsal decodes tens of thousands of tokens a second out of these; a cache by use would touch ten times the memory."""
    return tuple(map(_token_bytes, range(tokens)))


def _token_bytes(token: int) -> bytes:
    if token < FIRST_BYTE:
        return b""
    if token < FIRST_WORD:
        return bytes((token - FIRST_BYTE,))
    # Bijective base 80: every number has exactly one word, and every word one number.
    number, syllables = token - FIRST_WORD + 1, []
    while number > 0:
        number, digit = divmod(number - 1, _BASE)
        syllables.append(_SYLLABLES[digit])
    return (" " + "".join(reversed(syllables))).encode()


def _word_id(word: str) -> int:
    number = 0
    for i in range(0, len(word), 2):
        number = number * _BASE + _SYLLABLE_NUMBER[word[i : i + 2]] + 1
    return number - 1 + FIRST_WORD
