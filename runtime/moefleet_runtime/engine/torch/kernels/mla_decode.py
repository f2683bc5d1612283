"""Absorbed MLA attention of single tokens over the paged latent cache, without gathering it first.

Gather, multiply, multiply again moves each latent about three times; here it is read once, used for the score and for the value.
One program takes one request, a tile of heads and one piece of the context (Flash-Decoding: split the context, so that few requests
fill the device too), keeps a running softmax (Milakov and Gimelshein, arXiv 1805.02867), and a second pass joins the pieces by
their log-sum-exps. All heads share the latents, so a tile of 16 heads makes each product a matrix product.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

from moefleet_runtime.engine.torch.attention import Pass
from moefleet_runtime.engine.torch.packing import DecodeGroup

Tensor = torch.Tensor

# Tokens of the context that one program reads. 2,048 tokens are four programs a request: 32 requests fill a GPU of 132 SMs.
SPLIT_TOKENS: Final = 512
# Tokens in one product; with 512 latent numbers in bfloat16 a tile is 32 KiB of shared memory.
TILE_TOKENS: Final = 32
# The least that a matrix product on tensor cores takes.
TILE_HEADS: Final = 16


@triton.jit  # type: ignore[untyped-decorator]
def _pieces(  # noqa: PLR0917 - a kernel has no other way to be told
    queries: Any, cache: Any, tables: Any, lengths: Any, mixed: Any, sums: Any,
    scale: Any, heads: Any, table_width: Any, splits: Any,
    RANK: tl.constexpr, RANK_TILE: tl.constexpr, ROPE: tl.constexpr, ROPE_TILE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, SPLIT: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
) -> None:  # fmt: skip
    """mixed: [rows, heads, splits, RANK] float32, normalised in itself; sums: [rows, heads, splits], log-sum-exp or -inf."""
    row, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, length)
    width: tl.constexpr = RANK + ROPE
    head = tile * HEADS + tl.arange(0, HEADS)
    d, e = tl.arange(0, RANK_TILE), tl.arange(0, ROPE_TILE)
    is_head, is_rank, is_rope = head < heads, d < RANK, e < ROPE
    mine = queries + (row * heads + head)[:, None] * width
    query = tl.load(mine + d[None, :], mask=is_head[:, None] & is_rank[None, :], other=0.0)
    turned = tl.load(mine + RANK + e[None, :], mask=is_head[:, None] & is_rope[None, :], other=0.0)
    highest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, RANK_TILE], tl.float32)
    for start in range(begin, end, TOKENS):
        token = start + tl.arange(0, TOKENS)
        seen = token < end
        block = tl.load(tables + row * table_width + token // BLOCK_TOKENS, mask=seen, other=0)
        slot = (block * BLOCK_TOKENS + token % BLOCK_TOKENS).to(tl.int64)
        latent = tl.load(
            cache + slot[:, None] * width + d[None, :], mask=seen[:, None] & is_rank[None, :], other=0.0
        )
        key = tl.load(
            cache + slot[:, None] * width + RANK + e[None, :],
            mask=seen[:, None] & is_rope[None, :],
            other=0.0,
        )
        score = tl.dot(query, tl.trans(latent), input_precision="ieee")
        score += tl.dot(turned, tl.trans(key), input_precision="ieee")
        score = tl.where(seen[None, :], score * scale, float("-inf"))
        # Each pass sees at least one token, so this is finite.
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        kept = tl.exp(highest - higher)
        total = total * kept + tl.sum(weight, 1)
        acc = acc * kept[:, None] + tl.dot(weight.to(latent.dtype), latent, input_precision="ieee")
        highest = higher
    there = (row * heads + head) * splits + split
    # A piece behind the end of the context counts for nothing: its sum stays -inf.
    total = tl.where(total == 0.0, 1.0, total)
    tl.store(sums + there, highest + tl.log(total), mask=is_head)
    out = acc / total[:, None]
    tl.store(mixed + there[:, None] * RANK + d[None, :], out, mask=is_head[:, None] & is_rank[None, :])


def mla_decode(
    queries: Tensor,
    cache: Tensor,
    tables: Tensor,
    lengths: Tensor,
    *,
    block_tokens: int,
    kv_lora_rank: int,
    scale: float,
) -> Tensor:
    """Mixed latents, [rows, heads, kv_lora_rank], in the type of the queries.

    `queries`: [rows, heads, kv_lora_rank + rope_dim], absorbed and rotated. `cache`: one layer's, [slots, the same width].
    `tables`: [rows, blocks], the blocks of each row's context in order, padded with anything. `lengths`: [rows], tokens of each
    context, at least 1. Nothing here waits for the device, and shapes alone decide what runs: it can be captured in a graph.
    """
    rows, heads, width = queries.shape
    splits = max(1, -(-tables.shape[1] * block_tokens // SPLIT_TOKENS))
    mixed = torch.empty(rows, heads, splits, kv_lora_rank, device=queries.device, dtype=torch.float32)
    sums = torch.empty(rows, heads, splits, device=queries.device, dtype=torch.float32)
    rope = width - kv_lora_rank
    _pieces[(rows, -(-heads // TILE_HEADS), splits)](
        queries.contiguous(), cache, tables, lengths, mixed, sums,
        scale, heads, tables.shape[1], splits,
        RANK=kv_lora_rank, RANK_TILE=_tile(kv_lora_rank), ROPE=rope, ROPE_TILE=_tile(rope),
        BLOCK_TOKENS=block_tokens, SPLIT=SPLIT_TOKENS, TOKENS=TILE_TOKENS, HEADS=TILE_HEADS,
    )  # fmt: skip
    share = torch.softmax(sums, -1)
    return (mixed * share[..., None]).sum(2).to(queries.dtype)


def by_kernel(queries: Tensor, group: DecodeGroup, this: Pass, cache: Tensor) -> Tensor:
    """The Reader of a GPU."""
    return mla_decode(
        queries,
        cache,
        group.tables,
        group.lengths,
        block_tokens=this.block_tokens,
        kv_lora_rank=this.config.kv_lora_rank,
        scale=this.scale,
    )


def _tile(numbers: int) -> int:
    """The next power of two, and no less than a matrix product takes."""
    return max(16, 1 << (numbers - 1).bit_length())
