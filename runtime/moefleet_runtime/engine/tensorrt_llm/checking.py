"""What a request must be before it is handed to the engine, whose own checks come late and say less."""

from __future__ import annotations

from typing import Final

from moefleet_runtime.engine.base import EngineInfo, EngineRequest, RequestInvalid

# Signed or unsigned, as the clients of either service send it.
MIN_SEED: Final = -(1 << 63)
MAX_SEED: Final = (1 << 64) - 1


def check_request(request: EngineRequest, info: EngineInfo, *, rank_tokens: int) -> int:
    """Tokens that the answer may get: max_tokens, or less where the context ends, less those it has. Raises RequestInvalid.

    `rank_tokens`: what the KV cache of one rank holds, which is where a request lives."""
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
    ids = request.prompt + request.generated
    low, high = min(ids), max(ids)
    if low < 0 or high >= info.vocabulary_size:
        raise RequestInvalid(
            f"{name}: token ids: wanted 0 to {info.vocabulary_size - 1}, found {low if low < 0 else high}"
        )
    if not 0 <= request.temperature < float("inf"):
        raise RequestInvalid(f"{name}: temperature: wanted 0 or more, found {request.temperature}")
    if not 0 < request.top_p <= 1:
        raise RequestInvalid(f"{name}: top_p: wanted above 0 and at most 1, found {request.top_p}")
    if request.top_k < 0:
        raise RequestInvalid(f"{name}: top_k: wanted 0 or more, found {request.top_k}")
    if request.seed is not None and not MIN_SEED <= request.seed <= MAX_SEED:
        raise RequestInvalid(f"{name}: seed: wanted 64 bits, found {request.seed}")
    longest = min(length + request.max_tokens, info.context_length)
    if longest > rank_tokens:
        raise RequestInvalid(
            f"{name}: prompt and answer may reach {longest} tokens, the cache of one rank holds {rank_tokens}"
        )
    left = longest - length - len(request.generated)
    if request.generated and left < 1:
        raise RequestInvalid(
            f"{name}: generated: has {len(request.generated)} tokens, which leaves none of {longest - length} to make",
            "generated",
        )
    return left
