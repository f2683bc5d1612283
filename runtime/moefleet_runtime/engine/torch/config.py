"""What config.json of a checkpoint says, checked: a model that we would run wrong is refused, not tried.

DeepSeek-V2 and, since only the router differs, the format of V3. The published spellings of DeepSeek-V2 (`rope_theta`, `rope_scaling.type`) and those of transformers 5
(`rope_parameters.rope_type`) are both read. `head_dim` is never trusted: transformers writes the rope width there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.checkpoint_config import read_json, unsupported

# What no model of this family comes near. Beyond it a config is a mistake or an attack, and sizes multiply.
MAX_LAYERS: Final = 1_000
MAX_COUNT: Final = 1 << 24
MAX_NUMBER: Final = 1e12

# V2: softmax over all experts, a group is as good as its best one; normalised or scaled, never both.
# V3: sigmoid of each, a bias that counts for the choice alone, a group is as good as its two best; normalised and scaled.
Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class YarnConfig:
    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    # 1 and 0 where the checkpoint does not say, as the published model code has it.
    mscale: float
    mscale_all_dim: float
    # transformers' explicit factor on cos and sin; None derives it from the mscales.
    attention_factor: float | None


@dataclass(frozen=True, slots=True)
class RouterConfig:
    experts: int
    experts_per_token: int
    # Group-limited greedy: the best `kept_groups` of `groups`; None is greedy over all experts.
    groups: int | None
    kept_groups: int | None
    normalise: bool
    scaling: float
    scoring: Scoring = "softmax"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vocabulary_size: int
    hidden_size: int
    layers: int
    heads: int
    # None: queries are projected directly (V2-Lite).
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    dense_size: int
    expert_size: int
    # Width of the shared experts together; 0 without any.
    shared_size: int
    # Which layers route to experts.
    moe_layers: frozenset[int]
    router: RouterConfig | None
    norm_eps: float
    max_positions: int
    rope_theta: float
    yarn: YarnConfig | None
    tied_head: bool
    eos_token_ids: tuple[int, ...]
    # Rows and columns of a block that shares a scale, in a block-scaled FP8 checkpoint; None: plain numbers.
    fp8_block: tuple[int, int] | None = None
    # Layers behind the last one that predict further tokens (V3's MTP): in the files, not in this engine.
    prediction_layers: int = 0

    @property
    def latent_width(self) -> int:
        """Numbers that the cache keeps per token and layer."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def matrix_numbers(self) -> int:
        """Numbers in the matrices that the files must hold, whatever small vectors come on top."""
        hidden = self.hidden_size
        q_size = self.heads * (self.nope_dim + self.rope_dim)
        queries = hidden * q_size if self.q_lora_rank is None else self.q_lora_rank * (hidden + q_size)
        values = self.heads * (self.nope_dim + self.value_dim) * self.kv_lora_rank
        attention = queries + hidden * self.latent_width + values + self.heads * self.value_dim * hidden
        experts = self.router.experts if self.router else 0
        routed = 3 * hidden * (experts * self.expert_size + self.shared_size) + experts * hidden
        dense = 3 * hidden * self.dense_size
        moe = len(self.moe_layers)
        embeddings = self.vocabulary_size * hidden * (1 if self.tied_head else 2)
        return embeddings + self.layers * attention + moe * routed + (self.layers - moe) * dense


def read_model_config(folder: Path) -> ModelConfig:
    if not folder.is_dir():
        raise StartFailed("ModelSourceMissing", f"{folder}: no such folder")
    path = folder / "config.json"
    data = read_json(path)
    eos = data.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id", eos)
    return parse_model_config(data, where=str(path), eos=eos)


def parse_model_config(data: Mapping[str, Any], *, where: str, eos: object = None) -> ModelConfig:
    fields = _Fields(data, where)
    _refuse_what_runs_wrong(data, where)
    layers = fields.count("num_hidden_layers", most=MAX_LAYERS)
    v3 = data.get("model_type") == "deepseek_v3"
    moe_layers: frozenset[int] = frozenset()
    if data.get("n_routed_experts"):
        first_moe = fields.count("first_k_dense_replace", least=0)
        every = fields.count("moe_layer_freq", default=1)
        moe_layers = frozenset(i for i in range(first_moe, layers) if i % every == 0)
    rope_dim = fields.count("qk_rope_head_dim")
    if rope_dim % 2:
        raise unsupported(f"{where}: qk_rope_head_dim", "an even number", rope_dim)
    expert_size = fields.count("moe_intermediate_size") if moe_layers else 0
    vocabulary_size = fields.count("vocab_size")
    theta, yarn = _rope(data, where)
    return ModelConfig(
        vocabulary_size=vocabulary_size,
        hidden_size=fields.count("hidden_size"),
        layers=layers,
        heads=fields.count("num_attention_heads"),
        q_lora_rank=fields.count_or_null("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"),
        nope_dim=fields.count("qk_nope_head_dim"),
        rope_dim=rope_dim,
        value_dim=fields.count("v_head_dim"),
        dense_size=fields.count("intermediate_size"),
        expert_size=expert_size,
        shared_size=expert_size * fields.count_or_none("n_shared_experts"),
        moe_layers=moe_layers,
        router=_router(data, fields, where, v3=v3) if moe_layers else None,
        norm_eps=fields.number("rms_norm_eps", default=1e-6, above=0.0),
        max_positions=fields.count("max_position_embeddings"),
        rope_theta=theta,
        yarn=yarn,
        tied_head=bool(data.get("tie_word_embeddings", False)),
        eos_token_ids=_eos(eos if eos is not None else data.get("eos_token_id"), vocabulary_size, where),
        fp8_block=_fp8_block(data, where),
        prediction_layers=fields.count_or_none("num_nextn_predict_layers", most=MAX_LAYERS) if v3 else 0,
    )


class _Fields:
    """Typed reads with messages that name the file and the field."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data, self._where = data, where

    def count(self, name: str, *, least: int = 1, most: int = MAX_COUNT, default: int | None = None) -> int:
        value = self._data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise unsupported(f"{self._where}: {name}", f"a whole number from {least} to {most}", value)
        return value

    def count_or_none(self, name: str, *, most: int = MAX_COUNT) -> int:
        """0 where it is absent or null."""
        return 0 if self._data.get(name) is None else self.count(name, least=0, most=most)

    def count_or_null(self, name: str) -> int | None:
        # Absent is not null: the architecture's default is a number, so guessing would misread the weights.
        if name not in self._data:
            raise unsupported(f"{self._where}: {name}", "a whole number or null", "no such field")
        return None if self._data[name] is None else self.count(name)

    def number(self, name: str, *, default: float | None = None, above: float = -math.inf) -> float:
        return number(self._data.get(name, default), f"{self._where}: {name}", above=above)


def number(value: object, where: str, *, above: float = -math.inf) -> float:
    wanted = "a number" if above == -math.inf else f"a number above {above:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unsupported(where, wanted, value)
    # Python's JSON has NaN, infinity and whole numbers of any length.
    if not -MAX_NUMBER < value < MAX_NUMBER or not value > above:
        raise unsupported(where, wanted, value)
    return float(value)


def _refuse_what_runs_wrong(data: Mapping[str, Any], where: str) -> None:
    architectures = data.get("architectures") or []
    v3 = (data.get("model_type"), architectures) in (
        ("deepseek_v3", []),
        ("deepseek_v3", ["DeepseekV3ForCausalLM"]),
    )
    if not v3 and (
        data.get("model_type") != "deepseek_v2" or architectures not in ([], ["DeepseekV2ForCausalLM"])
    ):
        raise unsupported(
            f"{where}: model_type and architectures",
            "'deepseek_v2' and ['DeepseekV2ForCausalLM'], or 'deepseek_v3' and ['DeepseekV3ForCausalLM']",
            (data.get("model_type"), architectures),
        )
    only: dict[str, tuple[object, ...]] = {
        "scoring_func": ("sigmoid",) if v3 else ("softmax",),
        "topk_method": ("noaux_tc",) if v3 else ("greedy", "group_limited_greedy"),
        "rope_interleave": (True,),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    }
    for name, accepted in only.items():
        value = data.get(name)
        if value is not None and value not in accepted:
            raise unsupported(f"{where}: {name}", " or ".join(map(repr, accepted)), value)


def _fp8_block(data: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """As DeepSeek-V3 publishes it and `moefleet convert` writes it; other quantisations would be read wrong."""
    found = data.get("quantization_config")
    if not found:
        return None
    block = found.get("weight_block_size", []) if isinstance(found, dict) else []
    fits = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if not fits or found.get("quant_method") != "fp8" or found.get("fmt", "e4m3") != "e4m3":
        raise unsupported(
            f"{where}: quantization_config",
            "none, or quant_method 'fp8', fmt 'e4m3' and weight_block_size [rows, columns]",
            found,
        )
    return block[0], block[1]


def _router(data: Mapping[str, Any], fields: _Fields, where: str, *, v3: bool) -> RouterConfig:
    experts, chosen = fields.count("n_routed_experts"), fields.count("num_experts_per_tok")
    groups = kept = None
    if v3 or data.get("topk_method") == "group_limited_greedy":
        groups, kept = fields.count("n_group"), fields.count("topk_group")
        if experts % groups or kept > groups:
            raise unsupported(
                f"{where}: n_group and topk_group",
                f"groups that divide {experts} experts evenly, and at most as many kept",
                (groups, kept),
            )
        if v3 and experts // groups < 2:
            raise unsupported(f"{where}: n_group", f"groups of at least 2 of {experts} experts", groups)
    candidates = experts if groups is None or kept is None else experts // groups * kept
    if chosen > candidates:
        raise unsupported(f"{where}: num_experts_per_tok", f"at most {candidates}", chosen)
    return RouterConfig(
        experts=experts,
        experts_per_token=chosen,
        groups=groups,
        kept_groups=kept,
        normalise=bool(data.get("norm_topk_prob", v3)),
        scaling=fields.number("routed_scaling_factor", default=2.5 if v3 else 1.0),
        scoring="sigmoid" if v3 else "softmax",
    )


def _rope(data: Mapping[str, Any], where: str) -> tuple[float, YarnConfig | None]:
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise unsupported(f"{where}: rope_parameters", "an object", rope)
    theta = number(rope.get("rope_theta", data.get("rope_theta", 10000.0)), f"{where}: rope_theta", above=1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise unsupported(f"{where}: rope type", "'default' or 'yarn'", kind)
    if rope.get("truncate", True) is not True:
        raise unsupported(f"{where}: rope truncate", "True", rope["truncate"])

    def get(name: str, default: float | None = None, above: float = -math.inf) -> float:
        value = rope.get(name)
        return number(default if value is None else value, f"{where}: rope {name}", above=above)

    factor = get("factor")
    if factor < 1:
        raise unsupported(f"{where}: rope factor", "at least 1", factor)
    explicit = rope.get("attention_factor")
    return theta, YarnConfig(
        factor=factor,
        original_positions=int(get("original_max_position_embeddings", above=0.0)),
        beta_fast=get("beta_fast", 32, above=0.0),
        beta_slow=get("beta_slow", 1, above=0.0),
        mscale=get("mscale", 1),
        mscale_all_dim=get("mscale_all_dim", 0),
        attention_factor=None if explicit is None else number(explicit, f"{where}: rope attention_factor"),
    )


def _eos(value: object, vocabulary_size: int, where: str) -> tuple[int, ...]:
    given = [] if value is None else value if isinstance(value, list) else [value]
    ids: list[int] = []
    for token in given:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary_size:
            raise unsupported(f"{where}: eos_token_id", f"token ids below {vocabulary_size}", value)
        ids.append(token)
    return tuple(ids)
