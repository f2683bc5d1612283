"""The expert layer of DeepSeek-V2 (and V3): choose, multiply in groups, add up.

The group score of V2 is the best expert of the group (V3's is not). `grouped_mm` was as fast as or faster than a loop
over experts and a product over all of them on the CPU too, so there is one path, and nothing in it waits for the device.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moefleet_runtime.engine.torch.config import RouterConfig
from moefleet_runtime.engine.torch.weights import ExpertWeights

Tensor = torch.Tensor


def choose(
    x: Tensor, router: Tensor, config: RouterConfig, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and indices of each token's experts, [tokens, experts_per_token] both. `bias`: V3's, [experts]."""
    logits = F.linear(x.float(), router)
    if config.scoring == "sigmoid":
        return _choose_v3(logits.sigmoid(), config, bias)
    scores = logits.softmax(-1)
    if config.groups is not None and config.kept_groups is not None:
        by_group = scores.view(len(scores), config.groups, -1)
        keep = _kept(by_group.amax(-1), config.kept_groups)
        scores = (by_group * keep[..., None]).flatten(1)
    weights, indices = scores.topk(config.experts_per_token, -1, sorted=False)
    if config.normalise and config.experts_per_token > 1:
        # V2 normalises or scales, never both.
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), indices
    return weights * config.scaling, indices


def _choose_v3(scores: Tensor, config: RouterConfig, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): chosen by score and bias, weighed by the score alone."""
    chosen_by = scores if bias is None else scores + bias
    if config.groups is not None and config.kept_groups is not None:
        by_group = chosen_by.view(len(scores), config.groups, -1)
        keep = _kept(by_group.topk(2, -1).values.sum(-1), config.kept_groups)
        # A score with its bias may be negative: what is out must lie below all that is in.
        chosen_by = by_group.masked_fill(keep[..., None] == 0, -torch.inf).flatten(1)
    indices = chosen_by.topk(config.experts_per_token, -1, sorted=False).indices
    weights = scores.gather(1, indices)
    if config.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * config.scaling, indices


def _kept(groups: Tensor, count: int) -> Tensor:
    """1 for the best `count` groups of each token, else 0; [tokens, groups]."""
    best = groups.topk(count, -1, sorted=False).indices
    return torch.zeros(groups.shape, device=groups.device).scatter_(1, best, 1.0)


def routed(x: Tensor, weights: ExpertWeights, config: RouterConfig) -> Tensor:
    share, indices = choose(x, weights.router, config, weights.bias)
    # Every choice of every token, expert by expert; not by bincount, which waits for a GPU.
    expert, order = indices.flatten().sort(stable=True)
    ends = torch.searchsorted(
        expert, torch.arange(config.experts, device=x.device), right=True, out_int32=True
    )
    mine = x.index_select(0, order // config.experts_per_token)
    gate, up = F.grouped_mm(mine, weights.gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    sorted_y = F.grouped_mm(F.silu(gate) * up, weights.down.transpose(1, 2), offs=ends)
    # Back in the order of the tokens and added up by a product: index_add_ on a GPU adds in any order, and the same
    # request would not always get the same token.
    y = torch.empty_like(sorted_y).index_copy_(0, order, sorted_y)
    y = y.view(len(x), config.experts_per_token, -1)
    return torch.bmm(share[:, None].to(y.dtype), y)[:, 0]
