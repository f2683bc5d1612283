"""One request as keywords of SamplingParams. The engine writes into the object, so each request gets a fresh one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from moefleet_runtime.engine.base import EngineRequest

_UNSIGNED: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer. The LLM API knows one end id; further ones are stop tokens to it."""

    end_id: int
    token_ids: tuple[int, ...]
    ignore_eos: bool

    @property
    def all(self) -> frozenset[int]:
        ends = () if self.ignore_eos else (self.end_id,)
        return frozenset((*ends, *self.token_ids))


def stops_of(request: EngineRequest, eos_token_ids: tuple[int, ...]) -> Stops:
    end_id, *others = eos_token_ids
    further = set(request.stop_token_ids) if request.ignore_eos else request.stop_token_ids.union(others)
    return Stops(end_id, tuple(sorted(further)), request.ignore_eos)


def sampling_keywords(request: EngineRequest, stops: Stops, *, max_tokens: int) -> dict[str, Any]:
    """`max_tokens` is never left out: the API's default is 32, and the scheduler reserves room by it."""
    keywords: dict[str, Any] = {
        "end_id": stops.end_id,
        "pad_id": stops.end_id,
        "max_tokens": max_tokens,
        "stop_token_ids": list(stops.token_ids) or None,
        # A stop token is delivered: without this it is cut off the cumulative ids after it was streamed.
        "include_stop_str_in_output": True,
        "ignore_eos": stops.ignore_eos,
        "detokenize": False,
        "n": 1,
    }
    if request.temperature > 0:
        # Greedy is when none of these is given.
        keywords |= {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}
    if request.seed is not None:
        # Signed or unsigned, as the clients of either service send it; unsigned there.
        keywords["seed"] = request.seed % _UNSIGNED
    return keywords
