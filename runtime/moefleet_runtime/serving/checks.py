"""What a request must be before the engine hears of it. Pure: limits and a request in, violations out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from moefleet_runtime.serving.problems import Violation

# The longest request id: it is a key in maps and goes into logs.
MAX_REQUEST_ID_CHARACTERS: Final = 256
MAX_CACHE_SALT_CHARACTERS: Final = 256
# A namespace, a slash and a model's name; longer ones are quoted up to here.
MAX_MODEL_CHARACTERS: Final = 63 + 1 + 253
MAX_STOP_TOKEN_IDS: Final = 128
# What "absent" means for max_tokens, at most (inference.proto).
DEFAULT_MAX_TOKENS: Final = 4096
MAX_TEMPERATURE: Final = 100.0
# No tokenizer packs more than this into one token (a few have runs of 128 spaces): a text beyond context_length times
# this is too long whatever its tokens are, and is refused before a tokenizer spends seconds on it.
MAX_TOKEN_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class ModelLimits:
    context_length: int
    vocabulary_size: int
    kv_max_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    # EngineInfo.supports
    supports: frozenset[str] = frozenset()

    @property
    def longest(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.context_length, self.kv_max_tokens)


def check_prompt(limits: ModelLimits, prompt: Sequence[int], field: str) -> list[Violation]:
    if not prompt:
        return [Violation(field, "is empty; wanted at least one token")]
    if len(prompt) >= limits.longest:
        return [
            Violation(
                field,
                f"has {len(prompt)} tokens; the model takes at most {limits.longest - 1} and one to generate",
            )
        ]
    if max(prompt) >= limits.vocabulary_size:
        at, wrong = next((i, t) for i, t in enumerate(prompt) if t >= limits.vocabulary_size)
        return [
            Violation(
                f"{field}[{at}]", f"is {wrong}; token ids of this model are 0 to {limits.vocabulary_size - 1}"
            )
        ]
    return []


def check_text(limits: ModelLimits, text: str, field: str) -> list[Violation]:
    if not text:
        return [Violation(field, "is empty")]
    most = limits.longest * MAX_TOKEN_BYTES
    if len(text) > most:
        return [Violation(field, f"has {len(text)} characters; no text of more than {most} fits the context")]
    return []


def max_tokens_for(
    limits: ModelLimits, prompt_tokens: int, wanted: int | None, field: str
) -> tuple[int, list[Violation]]:
    left = limits.longest - prompt_tokens
    if wanted is None:
        return min(left, DEFAULT_MAX_TOKENS), []
    if wanted < 1:
        return 0, [Violation(field, f"is {wanted}; wanted at least 1")]
    if wanted > left:
        return 0, [
            Violation(
                field,
                f"is {wanted}; the prompt of {prompt_tokens} tokens leaves {left} of {limits.longest}",
            )
        ]
    return wanted, []


def check_sampling(
    temperature: float, top_k: int, top_p: float, *, prefix: str, seed: int | None = None
) -> list[Violation]:
    out = []
    if not (math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        out.append(Violation(f"{prefix}.temperature", f"is {temperature:g}; wanted 0 to {MAX_TEMPERATURE:g}"))
    if top_k < 0:
        out.append(Violation(f"{prefix}.top_k", f"is {top_k}; wanted 0 (all) or more"))
    if not (math.isfinite(top_p) and 0 < top_p <= 1):
        out.append(Violation(f"{prefix}.top_p", f"is {top_p:g}; wanted more than 0, at most 1"))
    return out


def check_stops(limits: ModelLimits, ids: Iterable[int], field: str) -> list[Violation]:
    ids = list(ids)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        return [Violation(field, f"has {len(ids)} ids; at most {MAX_STOP_TOKEN_IDS}")]
    return [
        Violation(f"{field}[{i}]", f"is {t}; token ids of this model are 0 to {limits.vocabulary_size - 1}")
        for i, t in enumerate(ids)
        if t >= limits.vocabulary_size
    ]


def check_names(request_id: str, cache_salt: str = "") -> list[Violation]:
    out = []
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        out.append(
            Violation("request_id", f"has {len(request_id)} characters; at most {MAX_REQUEST_ID_CHARACTERS}")
        )
    if len(cache_salt) > MAX_CACHE_SALT_CHARACTERS:
        out.append(
            Violation("cache_salt", f"has {len(cache_salt)} characters; at most {MAX_CACHE_SALT_CHARACTERS}")
        )
    return out
