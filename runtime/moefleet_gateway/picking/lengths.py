"""Lengths that are not known at arrival: prompt tokens of a text, cached tokens, output tokens. Learnt from usage."""

from __future__ import annotations

from dataclasses import dataclass

# Before anything was learnt: 4 bytes of text a token (English and code), none cached, and an answer of
# min(max_tokens, 256) tokens.
PRIOR_TOKENS_PER_BYTE = 0.25
PRIOR_OUTPUT_TOKENS = 256
# The prior counts as so many observed requests, and the past as at most MEMORY of them: a change of the mix is
# followed within a few hundred requests of its class.
PRIOR_WEIGHT = 4.0
MEMORY = 200.0
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


class Lengths:
    """One fleet's estimates."""

    def __init__(self) -> None:
        self._tokens_per_byte = Mean(PRIOR_TOKENS_PER_BYTE)
        self._cached_share = Mean(0.0)
        self._output: dict[tuple[int, int], Mean] = {}

    def prompt_tokens(self, text_bytes: int) -> int:
        return max(1, round(text_bytes * self._tokens_per_byte.value))

    def cached_tokens(self, prompt_tokens: int) -> int:
        return int(prompt_tokens * self._cached_share.value)

    def output_tokens(self, prompt_tokens: int, max_tokens: int | None) -> int:
        mean = self._output.get(_output_class(prompt_tokens, max_tokens))
        guess = mean.value if mean is not None else PRIOR_OUTPUT_TOKENS
        if max_tokens is not None:
            guess = min(guess, max_tokens)
        return max(1, round(guess))

    def learn(
        self,
        *,
        text_bytes: int | None,
        estimated_prompt_tokens: int,
        max_tokens: int | None,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
    ) -> None:
        """One finished request. `text_bytes` is None for token ids, whose number was known."""
        if text_bytes and prompt_tokens > 0:
            self._tokens_per_byte.add(prompt_tokens / text_bytes)
        if prompt_tokens > 0:
            self._cached_share.add(min(1.0, cached_tokens / prompt_tokens))
        key = _output_class(estimated_prompt_tokens, max_tokens)
        mean = self._output.get(key)
        if mean is None:
            prior = PRIOR_OUTPUT_TOKENS if max_tokens is None else min(max_tokens, PRIOR_OUTPUT_TOKENS)
            mean = self._output[key] = Mean(float(prior))
        mean.add(float(output_tokens))


def _output_class(prompt_tokens: int, max_tokens: int | None) -> tuple[int, int]:
    return bucket(prompt_tokens), -1 if max_tokens is None else bucket(max_tokens)
