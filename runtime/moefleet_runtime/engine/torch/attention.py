"""Multi-head latent attention over the paged cache, in the two forms that are equal on paper.

One token: absorbed. The query goes into the latent space once, the scores are taken against the latents themselves, and
no key or value of any head is ever made. A chunk of a prompt: expanded. Keys and values of the context are made once
for all tokens of the chunk, which is cheaper as soon as there are many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from moefleet_runtime.engine.torch.config import ModelConfig
from moefleet_runtime.engine.torch.packing import Batch, Chunk, DecodeGroup
from moefleet_runtime.engine.torch.rope import rotate
from moefleet_runtime.engine.torch.weights import AttentionWeights

Tensor = torch.Tensor

# The norms of the two latents use this whatever rms_norm_eps says, as the published code does.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Pass:
    """What all layers of one pass share."""

    config: ModelConfig
    batch: Batch
    block_tokens: int
    # Of the batch's positions, [tokens, rope_dim / 2].
    turns: Tensor
    scale: float
    # How single tokens read the cache.
    read: Reader


def attend(x: Tensor, weights: AttentionWeights, this: Pass, cache: Tensor) -> Tensor:
    """`x` is normed; writes the tokens' latents into the layer's `cache` and reads all that they see."""
    c, batch = this.config, this.batch
    q_size = weights.down.shape[0] - c.latent_width
    down = F.linear(x, weights.down)
    q, latent = down[:, :q_size], down[:, q_size:]
    if weights.q_up is not None:
        assert weights.q_norm is not None, "a query up-projection has a norm"
        q = F.linear(F.rms_norm(q, (q_size,), weights.q_norm, LATENT_NORM_EPS), weights.q_up)
    q = q.view(-1, c.heads, c.nope_dim + c.rope_dim)
    q_plain = q[..., : c.nope_dim]
    q_turned = rotate(q[..., c.nope_dim :], this.turns[:, None])
    compressed = F.rms_norm(latent[:, : c.kv_lora_rank], (c.kv_lora_rank,), weights.kv_norm, LATENT_NORM_EPS)
    key_turned = rotate(latent[:, c.kv_lora_rank :], this.turns)
    cache.index_copy_(0, batch.slots, torch.cat((compressed, key_turned), -1))
    outputs = []
    if batch.groups:
        singles = sum(group.count for group in batch.groups)
        # Per head: [singles, nope] x [nope, rank].
        absorbed = torch.bmm(q_plain[:singles].transpose(0, 1), weights.key_up).transpose(0, 1)
        queries = torch.cat((absorbed, q_turned[:singles]), -1)
        read = [
            this.read(queries[group.first : group.first + group.count], group, this, cache)
            for group in batch.groups
        ]
        mixed = read[0] if len(read) == 1 else torch.cat(read)
        outputs.append(torch.bmm(mixed.transpose(0, 1), weights.value_up).transpose(0, 1).flatten(1))
    for chunk in batch.chunks:
        mine = slice(chunk.first, chunk.first + chunk.count)
        queries = torch.cat((q_plain[mine], q_turned[mine]), -1)
        outputs.append(_expanded(queries, chunk, weights, this, cache))
    return F.linear(outputs[0] if len(outputs) == 1 else torch.cat(outputs), weights.out)


# Absorbed queries of a group, [count, heads, latent width], to what they mix of the latents, [count, heads, kv_lora_rank].
Reader = Callable[[Tensor, DecodeGroup, Pass, Tensor], Tensor]


def gathered(queries: Tensor, group: DecodeGroup, this: Pass, cache: Tensor) -> Tensor:
    """With the operations of torch, on any device: the contexts are copied side by side first."""
    c = this.config
    assert group.mask is not None, "the batch is packed for a kernel that reads by length"
    # Whole blocks by index_select: 252 us for 256 rows, where cache[tables] took 858.
    by_block = cache.view(-1, this.block_tokens * c.latent_width)
    latents = by_block.index_select(0, group.tables.view(-1)).view(group.count, -1, c.latent_width)
    scores = torch.bmm(queries, latents.transpose(1, 2)).float() * this.scale + group.mask
    return torch.bmm(scores.softmax(-1).to(latents.dtype), latents[..., : c.kv_lora_rank])


def _expanded(queries: Tensor, chunk: Chunk, weights: AttentionWeights, this: Pass, cache: Tensor) -> Tensor:
    c = this.config
    latents = cache.index_select(0, chunk.context)
    up = F.linear(latents[:, : c.kv_lora_rank], weights.kv_up)
    up = up.view(-1, c.heads, c.nope_dim + c.value_dim)
    key_turned = latents[:, None, c.kv_lora_rank :].expand(-1, c.heads, -1)
    keys = torch.cat((up[..., : c.nope_dim], key_turned), -1)
    out = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        up[..., c.nope_dim :].transpose(0, 1)[None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=this.scale,
    )
    return out[0].transpose(0, 1).flatten(1)
