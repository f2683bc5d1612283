"""The forward pass of DeepSeek-V2 over a packed batch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from moefleet_runtime.engine.torch.attention import Pass, Reader, attend, gathered
from moefleet_runtime.engine.torch.cache import LatentCache
from moefleet_runtime.engine.torch.config import ModelConfig
from moefleet_runtime.engine.torch.experts import routed
from moefleet_runtime.engine.torch.packing import Batch
from moefleet_runtime.engine.torch.rope import rope_table, softmax_scale
from moefleet_runtime.engine.torch.weights import LayerWeights, MlpWeights, Weights, load_weights

Tensor = torch.Tensor


class Model:
    def __init__(self, config: ModelConfig, weights: Weights, rope: Tensor, read: Reader = gathered) -> None:
        self.config = config
        self.read = read
        self._weights = weights
        self._rope = rope
        self._scale = softmax_scale(config)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ModelConfig,
        *,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        read: Reader = gathered,
    ) -> Model:
        """`positions`: the longest context that will be served."""
        weights = load_weights(folder, config, device=device, dtype=dtype)
        return cls(config, weights, rope_table(config, positions, device), read)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: LatentCache) -> Tensor:
        """float32 logits of the tokens in `batch.last`; fills the cache at `batch.slots`."""
        c, weights = self.config, self._weights
        this = Pass(
            config=c,
            batch=batch,
            block_tokens=cache.block_tokens,
            turns=self._rope[batch.positions],
            scale=self._scale,
            read=self.read,
        )
        x = weights.embedding[batch.ids]
        for layer, layer_cache in zip(weights.layers, cache.layers, strict=True):
            x = x + attend(self._norm(x, layer.attention_norm), layer.attention, this, layer_cache)
            x = x + self._feed_forward(self._norm(x, layer.mlp_norm), layer)
        return F.linear(self._norm(x[batch.last], weights.norm), weights.head).float()

    def _feed_forward(self, x: Tensor, layer: LayerWeights) -> Tensor:
        dense = None if layer.mlp is None else _mlp(x, layer.mlp)
        if layer.experts is None:
            assert dense is not None, "a layer without experts has an MLP"
            return dense
        assert self.config.router is not None, "a layer with experts has a router"
        chosen = routed(x, layer.experts, self.config.router)
        return chosen if dense is None else chosen + dense

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.norm_eps)


def _mlp(x: Tensor, weights: MlpWeights) -> Tensor:
    gate, up = F.linear(x, weights.gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, weights.down)
