"""The forward pass against transformers: logits of the tiny checkpoint and of random models of other V2 shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from moefleet_runtime.engine.base import StartFailed
from moefleet_testing.torch_engine import CHECKPOINT, Forced, load_model
from safetensors.torch import load_file, save_file
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

# Two correct implementations in float32 differ by rounding: 1.4e-5 was seen at a logit spread of 3.5.
WITHIN = 1e-4
TEXT = [0, *torch.randint(3, 2048, (119,), generator=torch.Generator().manual_seed(5)).tolist()]


def oracle_logits(model: Any, text: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([text])).logits[0]
    return logits.float()


@pytest.fixture(scope="module")
def oracle() -> Any:
    return DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "pieces",
    [
        [120],
        [48, 1, 1, 1, 37, 1, 31],
        [7, 16, 16, 1, 80],
        [1] * 40,
    ],
    ids=["whole", "chunks and single tokens", "chunks across blocks", "single tokens only"],
)
def test_the_tiny_checkpoint_gives_the_oracles_logits(oracle: Any, pieces: list[int]) -> None:
    text = TEXT[: sum(pieces)]
    ours = Forced(load_model(CHECKPOINT)).logits([text], [pieces])[0]
    theirs = oracle_logits(oracle, text)
    ends = torch.tensor(pieces).cumsum(0) - 1
    assert theirs.std() > 1
    assert (ours - theirs[ends]).abs().max() < WITHIN


def test_requests_in_one_pass_do_not_see_each_other(oracle: Any) -> None:
    """Chunks and single tokens of texts of very different lengths, packed into the same passes."""
    texts = [TEXT, TEXT[50:70], TEXT[10:40], TEXT[90:]]
    pieces = [[100, 1, 19], [1, 19], [10, 10, 10], [28, 1, 1]]
    together = Forced(load_model(CHECKPOINT)).logits(texts, pieces)
    for text, lengths, ours in zip(texts, pieces, together, strict=True):
        ends = torch.tensor(lengths).cumsum(0) - 1
        assert (ours - oracle_logits(oracle, text)[ends]).abs().max() < WITHIN


def test_long_and_short_contexts_decode_in_one_pass(oracle: Any) -> None:
    """Contexts so far apart that they are read in several groups."""
    long = (TEXT * 9)[:1000]
    ours = Forced(load_model(CHECKPOINT, positions=1024), blocks=200).logits(
        [long, TEXT[:20], TEXT[:90], long[:600]], [[999, 1], [19, 1], [89, 1], [599, 1]]
    )
    for text, logits in zip([long, TEXT[:20], TEXT[:90], long[:600]], ours, strict=True):
        assert (logits[-1] - oracle_logits(oracle, text)[-1]).abs().max() < WITHIN


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Lite: no q_lora, greedy top-k, no scaling": {
        "q_lora_rank": None,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
    },
    "V2: q_lora, group-limited, YaRN x40 with equal mscales": {
        "routed_scaling_factor": 16.0,
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "YaRN with different mscales": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707}},
    "YaRN without mscales": {"rope_parameters": YARN},
    "another epsilon": {"rms_norm_eps": 1e-3},
    "odd sizes, value wider than key": {
        "hidden_size": 120,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "qk_nope_head_dim": 24,
        "v_head_dim": 40,
        "kv_lora_rank": 36,
        "n_routed_experts": 12,
        "n_group": 3,
        "num_experts_per_tok": 5,
    },
    "two dense layers, tied head": {"first_k_dense_replace": 2, "tie_word_embeddings": True},
    "every layer routed, one expert a token": {"first_k_dense_replace": 0, "num_experts_per_tok": 1},
}


def random_checkpoint(folder: Path, v3: bool = False, **changes: Any) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "eos_token_id": 1,
    }
    torch.manual_seed(7)
    if v3:
        del shape["topk_method"]
        model: Any = DeepseekV3ForCausalLM(DeepseekV3Config(**{**shape, **changes})).float().eval()
    else:
        model = DeepseekV2ForCausalLM(DeepseekV2Config(**{**shape, **changes})).float().eval()
    # Norms and the router begin as ones and zeros: a wrong one would not be seen.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("gate.weight"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_random_models_of_other_shapes_give_the_oracles_logits(tmp_path: Path, name: str) -> None:
    theirs_model = random_checkpoint(tmp_path, **SHAPES[name])
    text = [t % 300 for t in TEXT[:100]]
    pieces = [48, *[1] * 12, 30, 10]
    ours = Forced(load_model(tmp_path)).logits([text], [pieces])[0]
    theirs = oracle_logits(theirs_model, text)[torch.tensor(pieces).cumsum(0) - 1]
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < WITHIN * max(1.0, float(theirs.std()))


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {"norm_topk_prob": False, "routed_scaling_factor": 1.0, "q_lora_rank": None},
        {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ],
    ids=["normalised and scaled", "neither", "YaRN"],
)
def test_v3s_router_gives_the_oracles_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs_model = random_checkpoint(tmp_path, v3=True, **changes)
    text = [t % 300 for t in TEXT[:100]]
    pieces = [48, *[1] * 12, 30, 10]
    ours = Forced(load_model(tmp_path)).logits([text], [pieces])[0]
    theirs = oracle_logits(theirs_model, text)[torch.tensor(pieces).cumsum(0) - 1]
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < WITHIN * max(1.0, float(theirs.std()))


def test_layers_that_predict_further_tokens_are_left_alone(tmp_path: Path) -> None:
    """V3 publishes one behind the last layer; it is no part of the answer."""
    theirs_model = random_checkpoint(tmp_path, v3=True, num_nextn_predict_layers=0)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "model.layers.3.eh_proj.weight": torch.ones(64, 128)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(StartFailed, match=r"layers\.3\.eh_proj"):
        load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    text = [t % 300 for t in TEXT[:40]]
    ours = Forced(load_model(tmp_path)).logits([text], [[40]])[0]
    assert (ours[0] - oracle_logits(theirs_model, text)[-1]).abs().max() < WITHIN * 3


def test_normalised_router_weights_follow_the_published_rule(tmp_path: Path) -> None:
    """transformers ignores norm_topk_prob, so its scaled weights are the oracle only where ours must differ."""
    from moefleet_runtime.engine.torch.config import RouterConfig
    from moefleet_runtime.engine.torch.experts import choose

    x, router = torch.randn(5, 16), torch.randn(8, 16)
    plain = RouterConfig(8, 3, groups=None, kept_groups=None, normalise=False, scaling=2.0)
    normal = RouterConfig(8, 3, groups=None, kept_groups=None, normalise=True, scaling=2.0)
    scaled, chosen = choose(x, router, plain)
    shares, same = choose(x, router, normal)
    assert torch.equal(chosen, same)
    # Normalised or scaled, not both.
    torch.testing.assert_close(shares.sum(-1), torch.ones(5))
    torch.testing.assert_close(shares, scaled / scaled.sum(-1, keepdim=True))


def test_bfloat16_runs_and_stays_near(oracle: Any) -> None:
    """What a GPU computes in; here only that every operation takes the type."""
    ours = Forced(load_model(CHECKPOINT, dtype=torch.bfloat16)).logits([TEXT], [[100, 1, 19]])[0]
    theirs = oracle_logits(oracle, TEXT)[torch.tensor([99, 100, 119])]
    assert torch.corrcoef(torch.stack((ours.flatten(), theirs.flatten())))[0, 1] > 0.99
