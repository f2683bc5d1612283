"""DeepSeek-V2's expert layer: choose by softmax over all experts, multiply in groups, add up.

The group score of V2 is the best expert of the group (V3's is not). `grouped_mm` was as fast as or faster than a loop
over experts and a product over all of them on the CPU too, so there is one path, and nothing in it waits for the device.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moefleet_runtime.engine.torch.config import RouterConfig
from moefleet_runtime.engine.torch.weights import ExpertWeights

Tensor = torch.Tensor


def choose(x: Tensor, router: Tensor, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Weights and indices of each token's experts, [tokens, experts_per_token] both."""
    scores = F.linear(x.float(), router).softmax(-1)
    if config.groups is not None and config.kept_groups is not None:
        by_group = scores.view(len(scores), config.groups, -1)
        best = by_group.amax(-1).topk(config.kept_groups, -1, sorted=False).indices
        keep = torch.zeros(by_group.shape[:2], device=x.device).scatter_(1, best, 1.0)
        scores = (by_group * keep[..., None]).flatten(1)
    weights, indices = scores.topk(config.experts_per_token, -1, sorted=False)
    if config.normalise and config.experts_per_token > 1:
        # V2 normalises or scales, never both.
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), indices
    return weights * config.scaling, indices


def routed(x: Tensor, weights: ExpertWeights, config: RouterConfig) -> Tensor:
    share, indices = choose(x, weights.router, config)
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
