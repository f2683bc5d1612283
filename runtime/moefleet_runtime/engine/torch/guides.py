"""Guided decoding: which tokens a JSON schema or a regular expression allows next, by llguidance.

The vocabulary is read once a start into a trie; each request gets a matcher of its own, made outside of the step. A mask
costs some 50 us a row and step. Hostile grammars run into the library's limits (fuel for the lexer, items for the
parser) and end with an error, not with memory or time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from moefleet_runtime.engine.base import Guide, RequestInvalid

# Of what the library says about a grammar: it quotes the grammar itself.
MAX_ERROR_CHARACTERS: Final = 300
# Of one schema whose parts are put together. llguidance 1.9 bounds everything but the intersection of patterns: 20 of them
# take 29 s and 2.3 GB, whatever its limits say, and each further one twice as much; 8 take a millisecond.
MAX_JOINED_PATTERNS: Final = 8
# Keys that put no constraint on what a $ref beside them names.
_BESIDE_A_REF: Final = frozenset(
    [
        "$ref",
        "$defs",
        "$schema",
        "$id",
        "$comment",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
    ]
)
# One spelling of white space: with any allowed, a weak model ends in blanks without end.
_JSON: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GuideBroken(RuntimeError):  # noqa: N818 - what happened
    """The matcher gave up in the middle of an answer: the grammar is too complex for the limits."""


class Matcher:
    """Follows one answer. Used by one thread at a time."""

    def __init__(self, inner: Any, vocabulary_size: int) -> None:
        """Raises GuideBroken."""
        self._inner = inner
        self._size = vocabulary_size
        # One bool a token id, never all False: where the text is complete, eos is allowed. Made when the answer grows and
        # not when the next step asks, so that a grammar which gives up fails its own request and not the step.
        self.allowed = self._allowed()

    def take(self, token: int) -> bool:
        """Goes on by a token that was allowed; True when nothing may follow. Raises GuideBroken."""
        self._inner.consume_token(token)
        self._check()
        if self._inner.is_stopped():
            return True
        self.allowed = self._allowed()
        return False

    def _allowed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little", count=self._size).view(np.bool_)

    def _check(self) -> None:
        if self._inner.is_error():
            raise GuideBroken(f"guide: {_said(self._inner.get_error())}")


class Guides:
    """Makes matchers; any thread."""

    def __init__(self, tokenizer: Path, *, vocabulary_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """Raises ValueError for a tokenizer file that the library cannot read."""
        import llguidance

        self._library: Any = llguidance
        self._size = vocabulary_size
        try:
            self._tokenizer = llguidance.LLTokenizer(
                str(tokenizer), n_vocab=vocabulary_size, eos_token=list(eos_token_ids)
            )
        except Exception as error:
            raise ValueError(f"{tokenizer}: {error}") from error
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def matcher(self, guide: Guide) -> Matcher:
        """Raises RequestInvalid when it is no schema or no expression, or one that the library does not know."""
        known = self._library.LLMatcher
        try:
            match guide.form:
                case "json_schema":
                    _check_patterns(guide.text)
                    grammar = known.grammar_from_json_schema(guide.text, overrides=_JSON)
                case "json_object":
                    grammar = known.grammar_from_json_schema('{"type": "object"}', overrides=_JSON)
                case "regex":
                    grammar = known.grammar_from_regex(guide.text)
                case _:
                    assert_never(guide.form)
        except ValueError as error:
            raise RequestInvalid(f"guide: {_said(str(error))}", "guide") from error
        inner = known(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if inner.is_error():
            raise RequestInvalid(f"guide: {_said(inner.get_error())}", "guide")
        try:
            return Matcher(inner, self._size)
        except GuideBroken as error:
            raise RequestInvalid(str(error), "guide") from error


def _check_patterns(schema: str) -> None:
    """Raises RequestInvalid for a schema that may join more patterns than MAX_JOINED_PATTERNS into one."""
    try:
        parts = list(_objects(json.loads(schema)))
    except RecursionError as error:
        raise RequestInvalid("guide: the schema is nested too deeply", "guide") from error
    patterns = sum(isinstance(part.get(key), str) for part in parts for key in ("pattern", "format"))
    if patterns > MAX_JOINED_PATTERNS and any(_joins(part) for part in parts):
        raise RequestInvalid(
            f"guide: a schema that joins parts (allOf, or $ref, anyOf or oneOf beside other constraints) may have "
            f"{MAX_JOINED_PATTERNS} patterns and formats, found {patterns}",
            "guide",
        )


def _joins(part: dict[str, Any]) -> bool:
    """Whether a string must satisfy this object and another one as well."""
    if "allOf" in part or ("$ref" in part and part.keys() - _BESIDE_A_REF):
        return True
    return ("anyOf" in part or "oneOf" in part) and ("pattern" in part or "format" in part)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as part:
                yield part
                waiting.extend(part.values())
            case list() as parts:
                waiting.extend(parts)


def _said(text: str) -> str:
    return " ".join(text.split())[:MAX_ERROR_CHARACTERS]
