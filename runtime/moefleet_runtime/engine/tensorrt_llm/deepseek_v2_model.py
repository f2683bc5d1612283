"""`DeepseekV2ForCausalLM` for the PyTorch backend of TensorRT-LLM 1.2.1: the V3 class with V2's gate.

Out of tree: `register()` enters the class into the registry of the process that makes the engine, which hands it to the workers
by reference (they import this module). The V3 class asks the model's configuration for `gate_cls`; that was read in versions
near 1.2.1, `contract` checks it on an installed one, and the class here refuses to be built without its gates in place.
NOT run on a GPU by this project: proven are the gate's arithmetic and this class against a fake of the V3 class.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from tensorrt_llm._torch.models.modeling_deepseekv3 import DeepseekV3ForCausalLM
from tensorrt_llm._torch.models.modeling_utils import register_auto_model
from tensorrt_llm._torch.modules.fused_moe.routing import BaseMoeRoutingMethod
from torch import nn
from torch.nn import functional as F

from moefleet_runtime.engine.tensorrt_llm.deepseek_v2 import GateRule, route, rule_of

ARCHITECTURE = "DeepseekV2ForCausalLM"


class DeepseekV2Routing(BaseMoeRoutingMethod):  # type: ignore[misc]
    """What the fused expert layer asks for the experts of its tokens."""

    def __init__(self, rule: GateRule) -> None:
        super().__init__()
        self.top_k = rule.experts_per_token
        self._rule = rule

    def apply(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return route(router_logits, self._rule)


class DeepseekV2Gate(nn.Module):
    """Takes the arguments of V3's gate; the rule comes from the model's own configuration."""

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        rule: GateRule,
        dtype: torch.dtype | None = None,
        moe_backend: str = "CUTLASS",
        **_of_v3: Any,
    ) -> None:
        super().__init__()
        if moe_backend != "CUTLASS":
            raise ValueError(
                f"DeepSeek-V2's gate is asked by the MoE backend CUTLASS only, found {moe_backend}"
            )
        # No bias beside it: V2 has none.
        self.weight = nn.Parameter(torch.empty((num_experts, hidden_size), dtype=dtype), requires_grad=False)
        self._method = DeepseekV2Routing(rule)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # In float32, as the published model has it: bfloat16 changes which experts win.
        return F.linear(hidden_states.float(), self.weight.float())

    def load_weights(self, weights: list[dict[str, Any]]) -> None:
        if len(weights) != 1:
            raise ValueError(f"the gate has one set of weights, found {len(weights)}")
        self.weight.copy_(weights[0]["weight"][:])

    @property
    def routing_method(self) -> DeepseekV2Routing:
        return self._method


class DeepseekV2ForCausalLM(DeepseekV3ForCausalLM):  # type: ignore[misc]
    def __init__(self, model_config: Any) -> None:
        config = model_config.pretrained_config
        rule = rule_of(config)
        config.gate_cls = functools.partial(DeepseekV2Gate, rule=rule)
        # The V3 class reads these whatever the method is; V2-Lite and transformers' own configuration leave them out.
        for name, value in (("n_group", 1), ("topk_group", 1), ("moe_layer_freq", 1)):
            if getattr(config, name, None) is None:
                setattr(config, name, value)
        super().__init__(model_config)
        gates = [gate for gate in _gates(self) if not isinstance(gate, DeepseekV2Gate)]
        if gates or not _gates(self):
            found = sorted({type(gate).__name__ for gate in gates}) or "none"
            raise RuntimeError(f"{ARCHITECTURE}: this tensorrt_llm does not take gate_cls: gates are {found}")


def _gates(model: Any) -> list[Any]:
    """Of the built layers; of the fake, which builds nothing else, its own list."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        return list(model.gates)
    return [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]


def register() -> None:
    """Before the LLM is made."""
    register_auto_model(ARCHITECTURE)(DeepseekV2ForCausalLM)
