"""The V3 class as far as a subclass with a gate of its own leans on it (read in a version near 1.2.1, not in it: notes 2)."""

from __future__ import annotations

from typing import Any

from .modeling_utils import register_auto_model


@register_auto_model("DeepseekV32ForCausalLM")
@register_auto_model("DeepseekV3ForCausalLM")
class DeepseekV3ForCausalLM:
    def __init__(self, model_config: Any) -> None:
        config = model_config.pretrained_config
        self.model_config = model_config
        self.gates = []
        for layer in range(config.num_hidden_layers):
            if layer >= config.first_k_dense_replace and layer % config.moe_layer_freq == 0:
                self.gates.append(self._gate(config, model_config.moe_backend))

    def _gate(self, config: Any, moe_backend: str) -> Any:
        if not hasattr(config, "gate_cls"):
            # Its own needs a bias that V2 checkpoints do not have.
            return None
        return config.gate_cls(
            config.hidden_size,
            config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            routed_scaling_factor=config.routed_scaling_factor,
            dtype=None,
            fuse_routing_kernel=True,
            apply_routing=False,
            moe_backend=moe_backend,
        )
