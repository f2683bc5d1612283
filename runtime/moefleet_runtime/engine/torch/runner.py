"""One step on the device: pack, forward, sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from moefleet_runtime.engine.base import TokenLogprob
from moefleet_runtime.engine.torch.attention import gathered
from moefleet_runtime.engine.torch.cache import LatentCache
from moefleet_runtime.engine.torch.fixed import FixedDecode
from moefleet_runtime.engine.torch.model import Model
from moefleet_runtime.engine.torch.packing import pack
from moefleet_runtime.engine.torch.requests import Generation, Row
from moefleet_runtime.engine.torch.sampling import Choice, chance_of, logprobs_of, sample
from moefleet_runtime.engine.torch.shaping import shaping_of


class Made(NamedTuple):
    """A token and the request that it continues."""

    generation: Generation
    token: int
    logprob: TokenLogprob | None = None


class Runner(Protocol):
    def run(self, rows: Sequence[Row]) -> list[Made]:
        """Computes the rows and makes the next token of those that sample. Whatever it raises fails these rows."""
        ...


class ModelRunner:
    """`decode`: single tokens in recorded passes of fixed shapes, where a GPU would wait for Python otherwise."""

    def __init__(
        self, model: Model, cache: LatentCache, device: torch.device, decode: FixedDecode | None = None
    ) -> None:
        self._model, self._cache, self._device, self._decode = model, cache, device, decode
        self._by_length = model.read is not gathered

    def run(self, rows: Sequence[Row]) -> list[Made]:
        with torch.inference_mode():
            batch = pack(rows, self._cache.block_tokens, self._device, by_length=self._by_length)
            logits = self._decode.logits(batch) if self._decode is not None else None
            if logits is None:
                logits = self._model.forward(batch, self._cache)
            made = [row.generation for row in batch.rows if row.samples]
            tokens = sample(logits, [_choice(g) for g in made])
            logprobs = logprobs_of(logits, tokens, [g.request.logprobs for g in made])
        if not made and self._device.type == "cuda":
            # Nothing was copied back, so nothing has waited: without this the step would seem to take no time, and an
            # error in it would surface in the next.
            torch.cuda.synchronize(self._device)
        return [
            Made(g, token, logprobs.get(i)) for i, (g, token) in enumerate(zip(made, tokens, strict=True))
        ]


def _choice(g: Generation) -> Choice:
    r = g.request
    chance = chance_of(g.seed, g.made) if r.temperature > 0 else 0.0
    return Choice(r.temperature, r.top_k, r.top_p, chance, r.min_p, shaping_of(g))
