"""What a request must be for this engine, and what it becomes. The server has checked most of it; an engine trusts nobody."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence

from moefleet_runtime.engine.base import EngineInfo, EngineRequest, RequestInvalid
from moefleet_runtime.engine.torch.guides import GuideBroken, Guides, Matcher
from moefleet_runtime.engine.torch.requests import Generation

# Signed or unsigned, as the clients of either service send it.
MIN_SEED, MAX_SEED = -(1 << 63), (1 << 64) - 1


def checked(request: EngineRequest, info: EngineInfo, guides: Guides | None) -> Generation:
    """Raises RequestInvalid."""
    name = f"request {request.request_id}"
    length = len(request.prompt)
    if not length:
        raise RequestInvalid(f"{name}: the prompt is empty")
    if length >= info.context_length:
        raise RequestInvalid(
            f"{name}: the prompt has {length} tokens, which leaves no room in a context of {info.context_length}"
        )
    if request.max_tokens < 1:
        raise RequestInvalid(f"{name}: max_tokens: wanted at least 1, found {request.max_tokens}")
    # min and max run in C: the 128 K ids of a long prompt take a millisecond.
    if len(request.generated) >= request.max_tokens:
        raise RequestInvalid(
            f"{name}: generated: wanted fewer tokens than max_tokens ({request.max_tokens}), found {len(request.generated)}",
            "generated",
        )
    tokens = [*request.prompt, *request.generated]
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= info.vocabulary_size:
        raise RequestInvalid(
            f"{name}: token ids: wanted 0 to {info.vocabulary_size - 1}, found {low if low < 0 else high}"
        )
    _check_sampling(request, name, info.vocabulary_size)
    limit = min(length + request.max_tokens, info.context_length)
    if limit > info.kv_max_tokens:
        raise RequestInvalid(
            f"{name}: prompt and answer may reach {limit} tokens, the cache holds {info.kv_max_tokens}"
        )
    matcher = None
    if request.guide is not None:
        if guides is None:
            raise RequestInvalid(f"{name}: guide: this model has no tokenizer.json to guide by", "guide")
        matcher = guides.matcher(request.guide)
        _follow(matcher, request.generated, name)
    ends = () if request.ignore_eos else info.eos_token_ids
    return Generation(
        request=request,
        seed=secrets.randbits(64) if request.seed is None else request.seed,
        stop_tokens=request.stop_token_ids.union(ends),
        length_limit=limit,
        tokens=tokens,
        matcher=matcher,
        counts=Counter(request.generated),
        prompt_tokens=frozenset(request.prompt) if request.repetition_penalty != 1 else frozenset(),
    )


def _follow(matcher: Matcher, generated: Sequence[int], name: str) -> None:
    try:
        over = False
        for token in generated:
            over = matcher.take(token)
            if over:
                break
    except GuideBroken as error:
        raise RequestInvalid(
            f"{name}: generated: the guide does not allow it: {error}", "generated"
        ) from error
    if over:
        raise RequestInvalid(f"{name}: generated: the guide lets nothing follow it", "generated")


def _check_sampling(r: EngineRequest, name: str, vocabulary: int) -> None:
    # Written so that NaN is refused.
    rows = (
        ("temperature", r.temperature, 0 <= r.temperature < math.inf, "0 or more"),
        ("top_p", r.top_p, 0 < r.top_p <= 1, "above 0 and at most 1"),
        ("top_k", r.top_k, r.top_k >= 0, "0 or more"),
        ("seed", r.seed, r.seed is None or MIN_SEED <= r.seed <= MAX_SEED, "64 bits"),
        ("min_p", r.min_p, 0 <= r.min_p <= 1, "0 to 1"),
        (
            "repetition_penalty",
            r.repetition_penalty,
            0 < r.repetition_penalty < math.inf,
            "above 0 and finite",
        ),
        ("presence_penalty", r.presence_penalty, math.isfinite(r.presence_penalty), "a finite number"),
        ("frequency_penalty", r.frequency_penalty, math.isfinite(r.frequency_penalty), "a finite number"),
        (
            "logit_bias",
            r.logit_bias,
            all(0 <= t < vocabulary and math.isfinite(b) for t, b in r.logit_bias),
            f"token ids 0 to {vocabulary - 1} and finite numbers",
        ),
        ("min_tokens", r.min_tokens, 0 <= r.min_tokens <= r.max_tokens, f"0 to max_tokens ({r.max_tokens})"),
        ("logprobs", r.logprobs, r.logprobs is None or 0 <= r.logprobs <= vocabulary, f"0 to {vocabulary}"),
    )
    for field, found, good, wanted in rows:
        if not good:
            raise RequestInvalid(f"{name}: {field}: wanted {wanted}, found {found}", field)
