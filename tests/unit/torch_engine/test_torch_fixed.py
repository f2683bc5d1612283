"""Decode passes of fixed shapes: the same answers as passes made for each batch. On a GPU they are CUDA graphs; here they are
called again with the same tensors, so that what is copied, padded and left over from the step before is the real thing."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.engine.torch.attention import Pass, gathered
from moefleet_runtime.engine.torch.cache import LatentCache, make_cache
from moefleet_runtime.engine.torch.fixed import FixedDecode, sizes
from moefleet_runtime.engine.torch.model import Model
from moefleet_runtime.engine.torch.packing import Batch, DecodeGroup
from moefleet_runtime.engine.torch.runner import ModelRunner
from moefleet_runtime.tokenizer import load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT, RunningEngine, load_model, request, settings

CPU = torch.device("cpu")
TEXTS = (
    "Emma was",
    "It is a truth universally acknowledged, that a single man",
    "The evening passed",
    "Mr. Darcy",
    "She had",
)
# So that rows end at different steps, and a step has fewer rows than the one before.
LENGTHS = (40, 7, 23, 12, 31)


def by_length(queries: torch.Tensor, group: DecodeGroup, this: Pass, cache: torch.Tensor) -> torch.Tensor:
    """What the kernel reads, with torch's operations: nothing behind a row's length."""
    assert group.mask is None
    width = group.tables.shape[1] * this.block_tokens
    seen = torch.arange(width)[None] < group.lengths[:, None]
    mask = torch.where(seen, 0.0, -torch.inf)[:, None]
    return gathered(queries, replace(group, mask=mask), this, cache)


class Watching(FixedDecode):
    """Counts which batches were played."""

    played = refused = 0

    def logits(self, batch: Batch) -> torch.Tensor | None:
        found = super().logits(batch)
        self.played += found is not None
        self.refused += found is None
        return found


def model_and_cache(blocks: int) -> tuple[Model, LatentCache]:
    model = load_model(CHECKPOINT)
    cache = make_cache(model.config, blocks=blocks, block_tokens=16, device=CPU, dtype=torch.float32)
    return Model(model.config, model._weights, model._rope, by_length), cache


def test_answers_are_those_of_passes_made_for_each_batch() -> None:
    tokenizer = load_tokenizer(CHECKPOINT, 2048)
    wanted = [
        request(f"r{i}", tokenizer.encode(t), n, ignore_eos=True, temperature=1.0 if i == 2 else 0.0, seed=i)
        for i, (t, n) in enumerate(zip(TEXTS, LENGTHS, strict=True))
    ]
    with RunningEngine(settings(blocks=64)) as engine:
        expected = engine.answers(*wanted)
    model, cache = model_and_cache(64)
    decode = Watching(model, cache, CPU, most_rows=4, table_blocks=8, record=lambda run: run)
    with RunningEngine(
        settings(blocks=64), runner=lambda _: ModelRunner(model, cache, CPU, decode)
    ) as engine:
        assert engine.answers(*wanted) == expected
    # Prompts, and steps of more rows than were prepared for, went the other way.
    assert decode.played > max(LENGTHS) / 2
    assert decode.refused > 0


@given(st.integers(1, 600))
def test_padding_is_at_most_an_eighth_beyond_eight_rows(most: int) -> None:
    prepared = sizes(most)
    assert list(prepared) == sorted(set(prepared))
    assert prepared[-1] == most
    for rows in range(1, most + 1):
        size = next(s for s in prepared if s >= rows)
        assert size - rows <= max(1 if rows < 4 else 3, size // 8)


def test_few_rows_have_few_graphs() -> None:
    assert sizes(1) == (1,)
    assert sizes(3) == (1, 2, 3)
    assert sizes(8) == (1, 2, 4, 8)
    assert len(sizes(256)) < 50
