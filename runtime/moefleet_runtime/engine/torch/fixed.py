"""Decode passes of fixed shapes, recorded once and played again: a CUDA graph for each number of rows.

A pass of single tokens is some 45 kernels a layer. Started one by one from Python they take longer than they run while there are
few rows; recorded, they start as one. What differs between steps (ids, positions, slots, tables, lengths) is copied into tensors
that stay where they are; rows that are too many read and write the padding block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from moefleet_runtime.engine.torch.blocks import PADDING_BLOCK
from moefleet_runtime.engine.torch.cache import LatentCache
from moefleet_runtime.engine.torch.model import Model
from moefleet_runtime.engine.torch.packing import Batch, DecodeGroup

Tensor = torch.Tensor
Pass = Callable[[], Tensor]
# Makes of a pass one that can be played again and again.
Record = Callable[[Pass], Pass]

# Passes before recording: kernels are chosen and compiled, and workspaces made.
WARM_PASSES: Final = 3


def as_graph(run: Pass) -> Pass:
    """By CUDA graph. Its memory stays with it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_PASSES):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def play() -> Tensor:
        graph.replay()
        return out

    return play


def sizes(most_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then in steps of an eighth of the power of two below: from 8 rows on, at most an eighth is padding."""
    out = [n for n in (1, 2, 4) if n < most_rows]
    size = 8
    while size < most_rows:
        out.append(size)
        size += (1 << size.bit_length()) // 16
    return (*out, most_rows)


@dataclass(frozen=True, slots=True)
class _Fixed:
    batch: Batch
    play: Pass


class FixedDecode:
    """`table_blocks`: blocks of the longest context. Takes memory and seconds when it is made, for each of `sizes`."""

    def __init__(
        self,
        model: Model,
        cache: LatentCache,
        device: torch.device,
        *,
        most_rows: int,
        table_blocks: int,
        record: Record = as_graph,
    ) -> None:
        self._padding_slot = PADDING_BLOCK * cache.block_tokens
        with torch.inference_mode():
            # The largest first: what it takes, the smaller ones find.
            self._passes = {
                rows: self._fixed(
                    _empty(rows, table_blocks, self._padding_slot, device), model, cache, record
                )
                for rows in reversed(sizes(most_rows))
            }
        self._sizes = sizes(most_rows)

    def logits(self, batch: Batch) -> Tensor | None:
        """Of the tokens in `batch.last`, float32; None: it is no batch of single tokens, or too large. Valid until the next call."""
        rows = len(batch.ids)
        if batch.chunks or rows > self._sizes[-1] or not rows:
            return None
        (group,) = batch.groups
        fixed = self._passes[next(size for size in self._sizes if size >= rows)]
        into = fixed.batch
        (table,) = into.groups
        for place, given, padding in (
            (into.ids, batch.ids, 0),
            (into.positions, batch.positions, 0),
            (into.slots, batch.slots, self._padding_slot),
            (table.lengths, group.lengths, 1),
        ):
            place[:rows].copy_(given)
            place[rows:].fill_(padding)
        # Behind its length nobody reads a row.
        table.tables[:rows, : group.tables.shape[1]].copy_(group.tables)
        table.tables[rows:, :1].fill_(PADDING_BLOCK)
        return fixed.play()[batch.last]

    @staticmethod
    def _fixed(batch: Batch, model: Model, cache: LatentCache, record: Record) -> _Fixed:
        return _Fixed(batch, record(lambda: model.forward(batch, cache)))


def _empty(rows: int, blocks: int, padding_slot: int, device: torch.device) -> Batch:
    """All padding: of one token each."""

    def filled(*shape: int, value: int = 0) -> Tensor:
        return torch.full(shape, value, device=device, dtype=torch.int64)

    tables, lengths = filled(rows, blocks, value=PADDING_BLOCK), filled(rows, value=1)
    return Batch(
        ids=filled(rows),
        positions=filled(rows),
        slots=filled(rows, value=padding_slot),
        groups=(DecodeGroup(0, rows, tables, lengths, None),),
        chunks=(),
        last=torch.arange(rows, device=device),
        rows=(),
    )
