"""DeepSeek-V2's gate in plain torch, for a PyTorch backend that knows only V3's.

V3 scores by sigmoid, adds a learned bias, ranks groups by their two best experts and normalises. V2 scores by softmax over all
experts, ranks groups by their best one, and scales the chosen scores without normalising them, or normalises and does not
scale. A V2 checkpoint under V3's gate answers in fluent nonsense (or fails over the bias that it does not have).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class GateRule:
    experts_per_token: int
    # Group-limited greedy: the best `kept_groups` of `groups`; 1 and 1 is greedy over all experts.
    groups: int
    kept_groups: int
    normalise: bool
    scaling: float


def rule_of(config: Any) -> GateRule:
    """From the attributes of a checkpoint's configuration; what is absent is as the published model code has it."""
    limited = getattr(config, "topk_method", "greedy") == "group_limited_greedy"
    return GateRule(
        experts_per_token=int(config.num_experts_per_tok),
        groups=int(config.n_group) if limited else 1,
        kept_groups=int(config.topk_group) if limited else 1,
        normalise=bool(getattr(config, "norm_topk_prob", False)),
        scaling=float(getattr(config, "routed_scaling_factor", 1.0)),
    )


def route(logits: Tensor, rule: GateRule) -> tuple[Tensor, Tensor]:
    """Experts (int32) and their weights (float32), [tokens, experts_per_token] both, of logits [tokens, experts].

    Static shapes and no wait for the device: it is captured in CUDA graphs."""
    tokens, experts = logits.shape
    scores = logits.float().softmax(-1)
    if rule.kept_groups < rule.groups:
        by_group = scores.view(tokens, rule.groups, experts // rule.groups)
        kept = by_group.amax(-1).topk(rule.kept_groups, -1, sorted=False).indices
        out = torch.ones(tokens, rule.groups, dtype=torch.bool, device=logits.device).scatter_(1, kept, False)
        scores = by_group.masked_fill(out[..., None], 0.0).view(tokens, experts)
    weights, chosen = scores.topk(rule.experts_per_token, -1, sorted=False)
    if rule.normalise and rule.experts_per_token > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    else:
        weights = weights * rule.scaling
    return chosen.to(torch.int32), weights
