"""Tokens of an answer as text, ended where a stop text would begin.

Text that may yet turn out to be the beginning of a stop text waits, and with it the tokens that hold it: what was sent
cannot be taken back. How the answer was cut into tokens and messages changes nothing of where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from moefleet_runtime.engine.base import TextDecoder, TokenLogprob

# An answer that goes on here is read in pieces of so many tokens, as it was given out.
RESUMED_TOKENS: Final = 32


class StopFinder:
    """Characters in, characters out up to the stop text whose last character comes first (of two, the longer)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """What may be given out now, and the stop text that was found; after one, nothing more may be pushed."""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, stop = min(found)
            self._held = ""
            return text[:at], stop
        held = next(
            (
                n
                for n in range(min(self._longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-n:]) for stop in self._stops)
            ),
            0,
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class Said(NamedTuple):
    """No dataclass: one is made for every message."""

    tokens: list[int]
    # One for each of the tokens, or none.
    logprobs: list[TokenLogprob]
    text: str
    # The stop text that ended the answer here.
    stop: str | None = None


class AnswerText:
    """`min_tokens`: stop texts in so many first tokens do not count."""

    def __init__(self, decoder: TextDecoder, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._decoder = decoder
        self._finder = StopFinder(stops) if stops else None
        self._min_tokens = min_tokens
        # Characters decoded and given out so far.
        self._decoded = self._given = 0
        # Tokens not given out, each with the end of its text; without one: it waits for the rest of a character.
        self._waiting: list[tuple[int, TokenLogprob | None, int | None]] = []
        # Tokens taken in: what the answer has used, the stop text's own tokens included.
        self.used = 0
        # After `resume`: text that is still to be given out, or how many characters were given out before.
        self._owed = ""
        self._skip = 0

    def resume(self, tokens: Sequence[int], characters: int) -> str | None:
        """Goes on where another replica stopped, which gave out all of `tokens` and so many characters of text. What it held
        back is held back here, what it owes comes with the next push. The stop text in them, if the answer was over."""
        text, stop = "", None
        step = RESUMED_TOKENS if self._finder is None else 1
        for at in range(0, len(tokens), step):
            said = self.push(tokens[at : at + step])
            text, stop = text + said.text, said.stop
            if stop is not None:
                break
        self._waiting.clear()
        self._owed, self._skip = text[characters:], max(0, characters - len(text))
        return stop

    def push(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] = (), *, last: bool = False
    ) -> Said:
        """`last`: no more will come, so nothing is held back."""
        if self._finder is None:
            self.used += len(tokens)
            text = self._decoder.push(tokens)
            text = text + self._decoder.finish() if last else text
            return Said(list(tokens), list(logprobs), self._unsaid(text), None)
        parts: list[str] = []
        for i, token in enumerate(tokens):
            self.used += 1
            self._waiting.append((token, logprobs[i] if logprobs else None, None))
            part, stop = self._find(self._decoder.push((token,)))
            parts.append(part)
            if stop is not None:
                return self._said(parts, stop)
        if last:
            part, stop = self._find(self._decoder.finish())
            parts.append(part)
            if stop is None:
                parts.append(self._finder.finish())
                self._given = self._decoded
                self._waiting = [(token, logprob, self._decoded) for token, logprob, _ in self._waiting]
            return self._said(parts, stop)
        return self._said(parts, None)

    def _find(self, text: str) -> tuple[str, str | None]:
        assert self._finder is not None
        if not text:
            return "", None
        self._decoded += len(text)
        self._waiting = [
            (token, logprob, self._decoded if end is None else end) for token, logprob, end in self._waiting
        ]
        if self.used <= self._min_tokens:
            self._given = self._decoded
            return text, None
        part, stop = self._finder.push(text)
        self._given += len(part)
        return part, stop

    def _said(self, parts: list[str], stop: str | None) -> Said:
        ready = 0
        for _, _, end in self._waiting:
            if end is None or end > self._given:
                break
            ready += 1
        out, self._waiting = self._waiting[:ready], self._waiting[ready:]
        text = self._unsaid("".join(parts))
        return Said([t for t, _, _ in out], [p for _, p, _ in out if p is not None], text, stop)

    def _unsaid(self, text: str) -> str:
        if not self._owed and not self._skip:
            return text
        text, self._owed = self._owed + text, ""
        cut = min(self._skip, len(text))
        self._skip -= cut
        return text[cut:]
