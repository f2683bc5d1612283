"""From the rows of a step to the tensors of a pass: one packed row of tokens, no padding between requests.

Single tokens come first, shortest context first, in groups: a group's block tables are padded to its longest context,
so one request of 4,000 tokens does not make thirty short ones read 4,000 each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moefleet_runtime.engine.torch.blocks import PADDING_BLOCK
from moefleet_runtime.engine.torch.requests import Row

Tensor = torch.Tensor

# Contexts up to this many blocks share a group whatever their length: a group costs six kernels a layer, which is more
# than reading a few hundred tokens of padding.
SMALL_GROUP_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    first: int
    count: int
    # [count, blocks]
    tables: Tensor
    # Tokens of each context, [count].
    lengths: Tensor
    # Added to the scores: 0 or -inf, [count, 1, blocks * block_tokens]; None for a kernel that reads by length.
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Chunk:
    first: int
    count: int
    # Cache slots of the whole context, the chunk's own tokens included.
    context: Tensor
    # Which of the context each token sees; None where that is everything before it (a prompt from its beginning).
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor
    positions: Tensor
    # Where in the cache each token's latent goes.
    slots: Tensor
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]
    # Of the packed tokens, those whose logits are wanted.
    last: Tensor
    # Rows in packed order; those that sample are in the order of `last`.
    rows: tuple[Row, ...]


def pack(rows: Sequence[Row], block_tokens: int, device: torch.device, *, by_length: bool = False) -> Batch:
    """`by_length`: for a kernel to which padding costs nothing, so that all single tokens are one group."""
    singles = sorted((r for r in rows if r.count == 1), key=lambda r: r.start)
    chunks = [r for r in rows if r.count > 1]
    ordered = (*singles, *chunks)

    def put(values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    ids: list[int] = []
    positions = [np.array([r.start for r in singles], dtype=np.int64)]
    # A single token's slot is in the last block that it needs.
    blocks = np.array([r.generation.blocks[r.start // block_tokens] for r in singles], dtype=np.int64)
    slots = [blocks * block_tokens + positions[0] % block_tokens]
    packed_chunks = []
    for row in ordered:
        ids += row.generation.tokens[row.start : row.start + row.count]
    at = len(singles)
    for row in chunks:
        end = row.start + row.count
        everything = np.arange(end, dtype=np.int64)
        own = everything[row.start :]
        table = np.array(row.generation.blocks, dtype=np.int64)
        context = table[everything // block_tokens] * block_tokens + everything % block_tokens
        mask = None if row.start == 0 else put(everything[None] <= own[:, None])
        packed_chunks.append(Chunk(at, row.count, put(context), mask))
        positions.append(own)
        slots.append(context[row.start :])
        at += row.count
    ends = np.cumsum([r.count for r in ordered]) - 1
    return Batch(
        ids=put(np.array(ids, dtype=np.int64)),
        positions=put(np.concatenate(positions)),
        slots=put(np.concatenate(slots)),
        groups=tuple(
            _group(singles, first, count, block_tokens, put, masked=not by_length)
            for first, count in _cuts(singles, block_tokens, together=by_length)
        ),
        chunks=tuple(packed_chunks),
        last=put(np.array([end for r, end in zip(ordered, ends, strict=True) if r.samples], dtype=np.int64)),
        rows=ordered,
    )


def _cuts(singles: Sequence[Row], block_tokens: int, *, together: bool = False) -> list[tuple[int, int]]:
    """Runs of rows whose contexts differ by less than a factor of two; `together`: one run."""
    if together:
        return [(0, len(singles))] if singles else []
    cuts: list[tuple[int, int]] = []
    first = 0
    most = 0
    for i, row in enumerate(singles):
        needed = row.start // block_tokens + 1
        if i == 0:
            most = max(2 * needed, SMALL_GROUP_BLOCKS)
        elif needed > most:
            cuts.append((first, i - first))
            first, most = i, 2 * needed
    if singles:
        cuts.append((first, len(singles) - first))
    return cuts


def _group(
    singles: Sequence[Row], first: int, count: int, block_tokens: int, put: Any, *, masked: bool
) -> DecodeGroup:
    rows = singles[first : first + count]
    widest = rows[-1].start // block_tokens + 1
    tables = np.full((count, widest), PADDING_BLOCK, dtype=np.int64)
    for i, row in enumerate(rows):
        needed = row.start // block_tokens + 1
        tables[i, :needed] = row.generation.blocks[:needed]
    lengths = np.array([row.start + 1 for row in rows])
    mask = None
    if masked:
        visible = np.arange(widest * block_tokens)[None] < lengths[:, None]
        mask = put(np.where(visible, np.float32(0), np.float32(-np.inf)))[:, None]
    return DecodeGroup(first, count, put(tables), put(lengths), mask)
