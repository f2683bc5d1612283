"""What the checkpoint's config.json says to this engine: architecture, precision, and the sizes that memory is made of.

TensorRT-LLM reads the same file and believes it; what it would run wrong or not at all is refused here, before anything loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from moefleet_trtllm.api import VERSION, architectures

from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.checkpoint_config import read_json, unsupported

# Served by a model class of ours, registered before the engine is made: see `deepseek_v2`.
PLUGINS: Final[Mapping[str, str]] = {
    "DeepseekV2ForCausalLM": "moefleet_runtime.engine.tensorrt_llm.deepseek_v2_model",
}
FP8_BLOCK: Final = 128

Precision = Literal["BF16", "FP8"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Counts are of parameters; sizes of layers as config.json names them."""

    where: str
    architecture: str
    precision: Precision
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int
    hidden_size: int
    layers: int
    moe_layers: int
    heads: int
    # 0: queries are projected directly (V2-Lite).
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    dense_size: int
    experts: int
    expert_size: int
    shared_experts: int
    tied_head: bool

    @property
    def routed_parameters(self) -> int:
        return self.moe_layers * self.experts * 3 * self.hidden_size * self.expert_size

    @property
    def shared_parameters(self) -> int:
        return self.moe_layers * self.shared_experts * 3 * self.hidden_size * self.expert_size

    @property
    def dense_parameters(self) -> int:
        return (self.layers - self.moe_layers) * 3 * self.hidden_size * self.dense_size

    @property
    def latent_parameters(self) -> int:
        """The projections down to the latents: every tensor-parallel rank holds them whole."""
        return self.layers * self.hidden_size * (self.q_lora_rank + self.kv_lora_rank + self.rope_dim)

    @property
    def head_parameters(self) -> int:
        """Attention but for the latents: shared out by heads under tensor parallelism."""
        queries = self.heads * (self.nope_dim + self.rope_dim) * (self.q_lora_rank or self.hidden_size)
        keys_values = self.heads * (self.nope_dim + self.value_dim) * self.kv_lora_rank
        output = self.heads * self.value_dim * self.hidden_size
        return self.layers * (queries + keys_values + output)

    @property
    def gate_parameters(self) -> int:
        return self.moe_layers * self.experts * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return (1 if self.tied_head else 2) * self.vocabulary_size * self.hidden_size

    @property
    def parameters(self) -> int:
        return (
            self.routed_parameters
            + self.shared_parameters
            + self.dense_parameters
            + self.latent_parameters
            + self.head_parameters
            + self.gate_parameters
            + self.embedding_parameters
        )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises StartFailed: ModelSourceMissing, CheckpointUnreadable or CheckpointUnsupported."""
    data = read_json(folder / "config.json")
    eos = data.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id", eos)
    if (folder / "hf_quant_config.json").is_file():
        raise unsupported(
            f"{folder / 'hf_quant_config.json'}",
            "quantisation told by config.json (quant_method fp8)",
            "this file",
        )
    return parse_checkpoint(data, where=str(folder / "config.json"), eos=eos)


def parse_checkpoint(data: Mapping[str, Any], *, where: str, eos: object = None) -> Checkpoint:
    architecture = check_architecture(data, where)

    def count(name: str, *, least: int = 1, default: int | None = None) -> int:
        value = data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise unsupported(f"{where}: {name}", f"a whole number of at least {least}", value)
        return value

    layers, every = count("num_hidden_layers"), count("moe_layer_freq", default=1)
    first_moe = count("first_k_dense_replace", least=0, default=0)
    vocabulary_size = count("vocab_size")
    return Checkpoint(
        where=where,
        architecture=architecture,
        precision=_precision(data, where),
        vocabulary_size=vocabulary_size,
        eos_token_ids=_eos(eos if eos is not None else data.get("eos_token_id"), vocabulary_size, where),
        max_positions=count("max_position_embeddings"),
        hidden_size=count("hidden_size"),
        layers=layers,
        moe_layers=sum(i >= first_moe and i % every == 0 for i in range(layers)),
        heads=count("num_attention_heads"),
        q_lora_rank=0 if data.get("q_lora_rank") is None else count("q_lora_rank"),
        kv_lora_rank=count("kv_lora_rank"),
        nope_dim=count("qk_nope_head_dim"),
        rope_dim=count("qk_rope_head_dim"),
        value_dim=count("v_head_dim"),
        dense_size=count("intermediate_size"),
        experts=count("n_routed_experts"),
        expert_size=count("moe_intermediate_size"),
        shared_experts=count("n_shared_experts", least=0, default=0),
        tied_head=bool(data.get("tie_word_embeddings", False)),
    )


def check_architecture(data: Mapping[str, Any], where: str) -> str:
    """The one architecture of a checkpoint, when this version serves it. Wrong routing would be fluent nonsense."""
    found = data.get("architectures")
    served = (*architectures(), *PLUGINS)
    if not isinstance(found, list) or len(found) != 1 or found[0] not in served:
        raise StartFailed(
            "CheckpointUnsupported",
            f"{where}: architectures: TensorRT-LLM {VERSION} with this adapter serves {', '.join(served)}"
            f" ({', '.join(PLUGINS)} by a model class of moefleet); found {found!r}",
        )
    if found[0] == "DeepseekV2ForCausalLM":
        _check_v2_gate(data, where)
    return str(found[0])


def _check_v2_gate(data: Mapping[str, Any], where: str) -> None:
    only: Mapping[str, tuple[object, ...]] = {
        "scoring_func": ("softmax", None),
        "topk_method": ("greedy", "group_limited_greedy", None),
    }
    for name, accepted in only.items():
        if data.get(name) not in accepted:
            raise unsupported(
                f"{where}: {name}", " or ".join(repr(a) for a in accepted if a is not None), data[name]
            )


def _precision(data: Mapping[str, Any], where: str) -> Precision:
    quantisation = data.get("quantization_config")
    if not quantisation:
        return "BF16"
    if not isinstance(quantisation, Mapping) or quantisation.get("quant_method") != "fp8":
        raise unsupported(
            f"{where}: quantization_config", "none, or quant_method fp8 in blocks", quantisation
        )
    block = quantisation.get("weight_block_size", [FP8_BLOCK, FP8_BLOCK])
    if block != [FP8_BLOCK, FP8_BLOCK]:
        raise unsupported(f"{where}: weight_block_size", f"[{FP8_BLOCK}, {FP8_BLOCK}]", block)
    return "FP8"


def _eos(value: object, vocabulary_size: int, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not ids or any(
        isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < vocabulary_size for t in ids
    ):
        # Without a tokenizer the LLM API wants an end_id of every request.
        raise unsupported(f"{where}: eos_token_id", f"token ids below {vocabulary_size}", value)
    return tuple(ids)
