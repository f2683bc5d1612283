"""Lengths that are not known at arrival: prompt tokens of a text, cached tokens, output tokens. Learnt from usage.

Answers that end say what answers were: when a class turns to longer ones, the short ones end first, and the mean of those that
ended falls behind for as long as a long answer takes. Time that a class keeps replicas busy, over the answers that end in it, is
right from the first minute on and right in the long run whatever the lengths are distributed like (tokens made over answers
ended; with exponential lengths it is the maximum likelihood under censoring). It is read as a correction of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Before anything was learnt: 4 bytes of text a token (English and code), none cached, and an answer of
# min(max_tokens, 256) tokens.
PRIOR_TOKENS_PER_BYTE = 0.25
PRIOR_OUTPUT_TOKENS = 256
# The prior counts as so many observed requests, and the past as at most MEMORY of them: a change of the mix is
# followed within a few hundred requests of its class.
PRIOR_WEIGHT = 4.0
MEMORY = 200.0
# The correction counts from here on: below it is chance (200 answers know their mean to a tenth) and a pace that moves with the load.
LEAST_CORRECTION = 1.25
# ... and up to here: beyond, answers are not longer, something stands.
MOST_CORRECTION = 4.0
# A class whose answers are so long is one that reasons: a few of them say little of the tail that makes the work, so that until
# there are so many not the mean but this quantile of them is expected.
REASONING_TOKENS = 1000
REASONING_LEAST = 200
REASONING_QUANTILE = 0.75
# Classes are powers of two of prompt and max_tokens: 32 x 33 at most, far less in practice.
BUCKET_MAX = 31


def bucket(tokens: int) -> int:
    """Floor of log2; 0 and 1 token share bucket 0."""
    return min(BUCKET_MAX, max(0, int(tokens).bit_length() - 1))


@dataclass(slots=True)
class Mean:
    """A mean that forgets: new values weigh at least 1/MEMORY."""

    value: float
    weight: float = PRIOR_WEIGHT

    def add(self, value: float) -> None:
        self.weight = min(self.weight + 1.0, MEMORY)
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class _Class:
    """Answers of one class of requests."""

    tokens: Mean
    # Seconds from pick to end, of those that ended.
    lasted_s: Mean = field(default_factory=lambda: Mean(0.0, 0.0))
    # The first ones, sorted out when there are enough.
    first: list[float] = field(default_factory=list)
    # Running now; their time since the class began and the answers ended, both fading with each that ends.
    running: int = 0
    busy_s: float = 0.0
    ended: float = 0.0
    at_s: float = 0.0

    def advance(self, now: float) -> None:
        self.busy_s += self.running * max(now - self.at_s, 0.0)
        self.at_s = now

    def expected_tokens(self) -> float:
        guess = self.tokens.value
        count = len(self.first)
        if 0 < count < REASONING_LEAST and guess >= REASONING_TOKENS:
            guess = max(guess, sorted(self.first)[math.ceil(REASONING_QUANTILE * count) - 1])
        return guess * self.correction()

    def correction(self) -> float:
        """Expected over finished length, from the time that all of the class keep replicas busy; 1 while that says nothing."""
        if self.ended <= 0 or self.lasted_s.value <= 0:
            return 1.0
        found = self.busy_s / self.ended / self.lasted_s.value
        return min(found, MOST_CORRECTION) if found >= LEAST_CORRECTION else 1.0


class Lengths:
    """One fleet's estimates."""

    def __init__(self) -> None:
        self._tokens_per_byte = Mean(PRIOR_TOKENS_PER_BYTE)
        self._cached_share = Mean(0.0)
        self._output: dict[tuple[int, int], _Class] = {}

    def prompt_tokens(self, text_bytes: int) -> int:
        return max(1, round(text_bytes * self._tokens_per_byte.value))

    def cached_tokens(self, prompt_tokens: int) -> int:
        return int(prompt_tokens * self._cached_share.value)

    def output_tokens(self, prompt_tokens: int, max_tokens: int | None, now: float = 0.0) -> int:
        """`now` in seconds of the same clock as `began` and `learn`."""
        known = self._output.get(_output_class(prompt_tokens, max_tokens))
        guess: float = PRIOR_OUTPUT_TOKENS
        if known is not None:
            known.advance(max(now, known.at_s))
            guess = known.expected_tokens()
        if max_tokens is not None:
            guess = min(guess, max_tokens)
        return max(1, round(guess))

    def began(self, prompt_tokens: int, max_tokens: int | None, now: float) -> None:
        """A replica was picked: from now on the answer runs."""
        known = self._class(prompt_tokens, max_tokens)
        known.advance(now)
        known.running += 1

    def left(self, prompt_tokens: int, max_tokens: int | None, now: float | None = None) -> None:
        """It runs no more, however it ended; None: nobody saw when."""
        known = self._class(prompt_tokens, max_tokens)
        if now is not None:
            known.advance(now)
        known.running = max(0, known.running - 1)

    def learn(
        self,
        *,
        text_bytes: int | None,
        estimated_prompt_tokens: int,
        max_tokens: int | None,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        lasted_s: float = 0.0,
    ) -> None:
        """One finished request, after it `left`. `text_bytes` is None for token ids, whose number was known; `lasted_s`: from
        its pick to its end."""
        if text_bytes and prompt_tokens > 0:
            self._tokens_per_byte.add(prompt_tokens / text_bytes)
        if prompt_tokens > 0:
            self._cached_share.add(min(1.0, cached_tokens / prompt_tokens))
        known = self._class(estimated_prompt_tokens, max_tokens)
        known.tokens.add(float(output_tokens))
        if len(known.first) < REASONING_LEAST:
            known.first.append(float(output_tokens))
        if lasted_s > 0:
            known.lasted_s.add(lasted_s)
            kept = 1.0 - 1.0 / MEMORY
            known.busy_s, known.ended = known.busy_s * kept, known.ended * kept + 1.0

    def _class(self, prompt_tokens: int, max_tokens: int | None) -> _Class:
        key = _output_class(prompt_tokens, max_tokens)
        known = self._output.get(key)
        if known is None:
            prior = PRIOR_OUTPUT_TOKENS if max_tokens is None else min(max_tokens, PRIOR_OUTPUT_TOKENS)
            known = self._output[key] = _Class(Mean(float(prior)))
        return known


def _output_class(prompt_tokens: int, max_tokens: int | None) -> tuple[int, int]:
    return bucket(prompt_tokens), -1 if max_tokens is None else bucket(max_tokens)
