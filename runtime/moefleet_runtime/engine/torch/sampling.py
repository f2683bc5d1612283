"""The next token of each row: greedy, or by temperature, min-p, top-k and top-p from one uniform number per token.

The number is a hash of the request's seed and the position in its answer: no generator has a state, so a request gives
the same tokens alone, in any batch, and after it was preempted. It picks from the cumulative probabilities in the order
of token ids (not of probability): a last-bit difference in the logits then moves the choice by as little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from moefleet_runtime.engine.base import TokenLogprob
from moefleet_runtime.engine.torch.shaping import Shaping, shaped

Tensor = torch.Tensor


class LogitsNotFinite(ArithmeticError):  # noqa: N818 - what happened
    """The model gave no usable numbers: weights or cache are damaged."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How one row wants its token."""

    temperature: float
    top_k: int
    top_p: float
    # In [0, 1).
    chance: float
    min_p: float = 0.0
    # What happens to the row's logits first; None: nothing.
    shaping: Shaping | None = None


def chance_of(seed: int, position: int) -> float:
    """Uniform in [0, 1), 53 bits, from the seed and the number of tokens made before."""
    digest = blake2b(seed.to_bytes(16, "little", signed=True) + position.to_bytes(8, "little"), digest_size=8)
    return (int.from_bytes(digest.digest(), "little") >> 11) * 2.0**-53


def sample(logits: Tensor, choices: Sequence[Choice]) -> list[int]:
    """`logits`: float32, [rows, vocabulary]. One device-to-host copy a step, whatever the rows want."""
    if not choices:
        return []
    best = logits.max(-1)
    # NaN and +inf both win a maximum, so the maximum shows them.
    usable = torch.isfinite(best.values).all()
    if any(c.shaping is not None for c in choices):
        logits = shaped(logits, [c.shaping for c in choices])
        best = logits.max(-1)
    picked = best.indices
    random = [i for i, c in enumerate(choices) if c.temperature > 0]
    if random:
        rows = torch.tensor(random, device=logits.device)
        wanted = [choices[i] for i in random]
        picked = picked.index_copy(
            0, rows, _draw(logits.index_select(0, rows), best.values.index_select(0, rows), wanted)
        )
    *tokens, ok = torch.cat((picked, usable[None].to(picked.dtype))).tolist()
    if not ok:
        raise LogitsNotFinite(f"logits of a batch of {len(choices)} rows: wanted finite numbers")
    return [int(t) for t in tokens]


def logprobs_of(
    logits: Tensor, tokens: Sequence[int], wanted: Sequence[int | None]
) -> dict[int, TokenLogprob]:
    """Of the rows that want them, by row: log_softmax of `logits` at the row's token and at its best `wanted`."""
    rows = [i for i, n in enumerate(wanted) if n is not None]
    if not rows:
        return {}
    index = torch.tensor(rows, device=logits.device)
    chosen = torch.tensor([tokens[i] for i in rows], device=logits.device)
    lp = logits.index_select(0, index).log_softmax(-1)
    top = lp.topk(min(max(wanted[i] or 0 for i in rows), lp.shape[-1]), -1)
    of_chosen = lp.gather(1, chosen[:, None])[:, 0].tolist()
    found = zip(rows, of_chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return {
        i: TokenLogprob(value, tuple(zip(ids, values, strict=True))[: wanted[i]])
        for i, value, ids, values in found
    }


def _draw(logits: Tensor, best: Tensor, choices: Sequence[Choice]) -> Tensor:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float64)[:, None]

    # Relative to the best: a tiny temperature then gives zeros beside one 1 and no overflow.
    scaled = (logits.double() - best.double()[:, None]) / column([c.temperature for c in choices])
    p = scaled.softmax(-1)
    if any(c.min_p > 0 for c in choices):
        # Nguyen et al. 2024 (arXiv 2407.01082): a share of the best token's probability, at this temperature. Before top-k
        # and top-p, as vLLM does (transformers has it last, which differs only beside a top-p).
        p = p * (p >= column([c.min_p for c in choices]) * p.amax(-1, keepdim=True))
    p = _filtered(p, choices)
    cumulative = p.cumsum(-1)
    target = cumulative[:, -1:] * column([c.chance for c in choices])
    # The first token whose cumulative probability exceeds the target; one of probability 0 never is.
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return index.clamp_max(p.shape[-1] - 1)


def _filtered(p: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Zeros outside of what top-k and then top-p keep."""
    size = p.shape[-1]
    narrow = [i for i, c in enumerate(choices) if 0 < c.top_k < size]
    wide = [i for i, c in enumerate(choices) if not 0 < c.top_k < size and c.top_p < 1]
    # Sorting a whole row costs much more than its best k: each row pays only for what it asked.
    for rows, depth in ((narrow, max((choices[i].top_k for i in narrow), default=0)), (wide, size)):
        if not rows:
            continue
        index = torch.tensor(rows, device=p.device)
        part = p.index_select(0, index)
        values, order = part.topk(depth, -1) if depth < size else part.sort(dim=-1, descending=True)
        top_k = torch.tensor([choices[i].top_k or size for i in rows], device=p.device)[:, None]
        keep = torch.arange(depth, device=p.device)[None] < top_k
        values = values * keep
        top_p = torch.tensor([choices[i].top_p for i in rows], device=p.device, dtype=p.dtype)[:, None]
        before = values.cumsum(-1) - values
        # Top-p of what top-k left, so relative to its sum. The best token always stays: nothing is before it.
        keep = keep & (before < top_p * values.sum(-1, keepdim=True))
        p = p.index_copy(0, index, torch.zeros_like(part).scatter(1, order, values * keep))
    return p
