"""The base of a routing method (read in a version near 1.2.1)."""

from __future__ import annotations

from typing import Any

from torch import nn


class BaseMoeRoutingMethod(nn.Module):
    def apply(self, router_logits: Any) -> Any:
        """Indices (int32) and weights (float32), [tokens, experts_per_token] both."""
        raise NotImplementedError

    def get_experts_per_token(self) -> int:
        return int(self.top_k)

    @property
    def experts_per_token(self) -> int:
        return self.get_experts_per_token()
