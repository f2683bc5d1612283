"""config.json: both spellings are read, and what would run wrong is refused with the field's name."""

import json
from pathlib import Path
from typing import Any

import pytest
from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch.config import ModelConfig, parse_model_config, read_model_config
from moefleet_testing.torch_engine import CHECKPOINT

TINY: dict[str, Any] = json.loads((CHECKPOINT / "config.json").read_text())
REMOVED = object()


def changed(**fields: object) -> dict[str, Any]:
    data = {**TINY, **fields}
    return {name: value for name, value in data.items() if value is not REMOVED}


def parsed(**fields: object) -> ModelConfig:
    return parse_model_config(changed(**fields), where="config.json")


def test_the_tiny_checkpoint_is_read_as_it_is() -> None:
    config = read_model_config(CHECKPOINT)
    assert (config.layers, config.moe_layers) == (6, frozenset({1, 2, 3, 4, 5}))
    assert config.latent_width == 64 + 16
    assert config.router is not None
    assert (config.router.groups, config.router.kept_groups, config.router.scaling) == (4, 2, 4.0)
    assert config.shared_size == 128
    assert config.eos_token_ids == (1,)
    assert config.yarn is not None
    assert (config.yarn.factor, config.yarn.original_positions) == (4.0, 1024)


def test_both_spellings_of_rope_are_one() -> None:
    new = {"rope_theta": 10000.0, "rope_type": "yarn", **TINY["rope_scaling"]}
    del new["type"]
    assert parsed(rope_parameters=new, rope_scaling=REMOVED, rope_theta=REMOVED) == parsed()


def test_missing_mscales_are_one_and_zero() -> None:
    rope = {k: v for k, v in TINY["rope_scaling"].items() if not k.startswith("mscale")}
    yarn = parsed(rope_scaling=rope).yarn
    assert yarn is not None
    assert (yarn.mscale, yarn.mscale_all_dim) == (1, 0)


def test_a_model_without_experts_is_all_dense() -> None:
    config = parsed(n_routed_experts=None)
    assert config.router is None
    assert not config.moe_layers


def test_every_other_layer_routed() -> None:
    # As the published code has it: index modulo frequency, from the first routed layer on.
    assert parsed(moe_layer_freq=2).moe_layers == frozenset({2, 4})


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model_type": "deepseek_v3"}, "model_type"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "architectures"),
        ({"scoring_func": "sigmoid"}, "scoring_func"),
        ({"topk_method": "noaux_tc"}, "topk_method"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"quantization_config": "fp8"}, "quantization_config"),
        (
            {"quantization_config": {"quant_method": "awq", "weight_block_size": [128, 128]}},
            "quantization_config",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}},
            "quantization_config",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
            "quantization_config",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type"),
        ({"rope_scaling": {**TINY["rope_scaling"], "truncate": False}}, "truncate"),
        ({"rope_scaling": {**TINY["rope_scaling"], "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"q_lora_rank": REMOVED}, "q_lora_rank"),
        ({"kv_lora_rank": REMOVED}, "kv_lora_rank"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "192"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim"),
        ({"n_group": 5}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"eos_token_id": 2048}, "eos_token_id"),
        ({"eos_token_id": ["a"]}, "eos_token_id"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)
def test_what_would_run_wrong_is_refused_by_name(fields: dict[str, object], names: str) -> None:
    with pytest.raises(StartFailed, match=names) as caught:
        parsed(**fields)
    assert caught.value.reason == "CheckpointUnsupported"
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModelSourceMissing"),
        ("{", "CheckpointUnreadable"),
        ("[]", "CheckpointUnreadable"),
        ("\x00\xff", "CheckpointUnreadable"),
        ("[" * 100_000, "CheckpointUnreadable"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "CheckpointUnreadable"),
    ],
)
def test_a_file_that_is_no_config_is_an_error_with_its_path(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(StartFailed, match=r"config\.json") as caught:
        read_model_config(tmp_path)
    assert caught.value.reason == reason


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="nowhere") as caught:
        read_model_config(tmp_path / "nowhere")
    assert caught.value.reason == "ModelSourceMissing"


def test_the_generation_config_says_where_answers_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_model_config(tmp_path).eos_token_ids == (1, 2)
