"""DeepSeek-V2 on the PyTorch backend: the gate is the published one, and the class is there before the engine is made."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.tensorrt_llm.contract.__main__ import settings_for
from moefleet_runtime.engine.tensorrt_llm.contract.suite import check_engine
from moefleet_runtime.engine.tensorrt_llm.deepseek_v2 import GateRule, route, rule_of
from moefleet_runtime.engine.torch.config import RouterConfig
from moefleet_runtime.engine.torch.experts import choose
from moefleet_trtllm_fake import SMALL, installed, write_checkpoint
from moefleet_trtllm_fake.published import DEEPSEEK_V2
from torch.nn import functional as F
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

V2: dict[str, Any] = {
    **SMALL,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "topk_method": "group_limited_greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 16.0,
}


def dense(chosen: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """Weight of every expert: two routers may list the same choice in another order."""
    return torch.zeros(len(chosen), experts).scatter_(1, chosen.long(), weights.float())


def inputs(seed: int, tokens: int, hidden: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator)
    return x, torch.randn(experts, hidden, generator=generator) / hidden**0.5


RULES = {
    "DeepSeek-V2": (160, GateRule(6, 8, 3, normalise=False, scaling=16.0)),
    "DeepSeek-V2-Lite": (64, GateRule(6, 1, 1, normalise=False, scaling=1.0)),
    "tiny": (16, GateRule(4, 4, 2, normalise=False, scaling=4.0)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_the_gate_equals_the_torch_engines_and_transformers(name: str, seed: int) -> None:
    experts, rule = RULES[name]
    x, router = inputs(seed, 64, 96, experts)
    chosen, weights = route(F.linear(x, router), rule)
    assert (chosen.dtype, weights.dtype) == (torch.int32, torch.float32)
    ours = dense(chosen, weights, experts)

    limited = rule.groups > 1
    ours_too = RouterConfig(
        experts,
        rule.experts_per_token,
        groups=rule.groups if limited else None,
        kept_groups=rule.kept_groups if limited else None,
        normalise=rule.normalise,
        scaling=rule.scaling,
    )
    their_weights, their_chosen = choose(x, router, ours_too)
    torch.testing.assert_close(ours, dense(their_chosen, their_weights, experts), rtol=0, atol=1e-6)

    config = DeepseekV2Config(
        hidden_size=96,
        n_routed_experts=experts,
        num_experts_per_tok=rule.experts_per_token,
        n_group=rule.groups,
        topk_group=rule.kept_groups,
        topk_method="group_limited_greedy" if limited else "greedy",
        routed_scaling_factor=rule.scaling,
        norm_topk_prob=False,
    )
    oracle = DeepseekV2TopkRouter(config)
    with torch.no_grad():
        oracle.weight.copy_(router)
        _, oracle_weights, oracle_chosen = oracle(x)
    torch.testing.assert_close(ours, dense(oracle_chosen, oracle_weights, experts), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    groups=st.sampled_from([1, 2, 4, 8]),
    kept=st.integers(1, 8),
    normalise=st.booleans(),
)
def test_only_experts_of_the_best_groups_are_chosen_and_none_twice(
    seed: int, groups: int, kept: int, normalise: bool
) -> None:
    kept = min(kept, groups)
    rule = GateRule(2, groups, kept, normalise=normalise, scaling=3.0)
    logits = torch.randn(9, 16, generator=torch.Generator().manual_seed(seed))
    chosen, weights = route(logits, rule)
    best = logits.view(9, groups, -1).amax(-1).topk(kept, -1).indices
    for row in range(9):
        experts = chosen[row].tolist()
        assert len(set(experts)) == 2
        assert {e // (16 // groups) for e in experts} <= set(best[row].tolist())
    if normalise:
        torch.testing.assert_close(weights.sum(-1), torch.ones(9))
    else:
        torch.testing.assert_close(weights, logits.softmax(-1).gather(1, chosen.long()) * 3.0)


def test_the_rule_is_read_from_the_published_configuration() -> None:
    assert rule_of(SimpleNamespace(**DEEPSEEK_V2)) == RULES["DeepSeek-V2"][1]
    greedy = {
        **DEEPSEEK_V2,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }
    assert rule_of(SimpleNamespace(**greedy)) == RULES["DeepSeek-V2-Lite"][1]


def test_v3s_rule_would_choose_others() -> None:
    """Why a V2 checkpoint must not run under the class that happens to load it."""
    _, rule = RULES["tiny"]
    x, router = inputs(1, 64, 96, 16)
    ours, _ = route(F.linear(x, router), rule)
    groups = F.linear(x, router).sigmoid().view(64, 4, 4)
    best = groups.topk(2, -1).values.sum(-1).topk(2, -1).indices
    keep = torch.zeros(64, 4).scatter_(1, best, 1.0)
    theirs = (groups * keep[..., None]).flatten(1).topk(4, -1).indices
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in zip(ours, theirs, strict=True))


def test_the_class_is_registered_before_the_engine_is_made_and_builds_our_gates(tmp_path: Path) -> None:
    made = settings_for(
        write_checkpoint(tmp_path, **V2), tensor=2, attention_data=False, args={"gpuMemoryGib": 80}
    )
    with installed():
        from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING

        assert "DeepseekV2ForCausalLM" not in MODEL_CLASS_MAPPING
        assert [o for o in check_engine(made, patience_s=5) if o.broken] == []
        assert MODEL_CLASS_MAPPING["DeepseekV2ForCausalLM"].__module__.startswith("moefleet_runtime.")
        gates = build(V2).gates
        assert [type(gate).__name__ for gate in gates] == ["DeepseekV2Gate"] * 2
        weight = torch.randn(16, 64)
        gates[0].load_weights([{"weight": weight}])
        x = torch.randn(5, 64)
        logits = gates[0](x)
        torch.testing.assert_close(logits, x @ weight.T)
        chosen, _ = gates[0].routing_method.apply(logits)
        assert torch.equal(chosen, route(logits, GateRule(4, 4, 2, normalise=False, scaling=16.0))[0])
        assert gates[0].routing_method.experts_per_token == 4


def build(config: dict[str, Any]) -> Any:
    from moefleet_runtime.engine.tensorrt_llm.deepseek_v2_model import DeepseekV2ForCausalLM

    pretrained = SimpleNamespace(**config)
    return DeepseekV2ForCausalLM(SimpleNamespace(pretrained_config=pretrained, moe_backend="CUTLASS"))


def test_a_configuration_without_groups_is_filled_in() -> None:
    lite = {k: v for k, v in V2.items() if k not in ("n_group", "topk_group", "moe_layer_freq")}
    with installed():
        gates = build({**lite, "topk_method": "greedy"}).gates
        assert gates[0].routing_method.experts_per_token == 4


def test_a_backend_that_ignores_our_gate_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed():
        from tensorrt_llm._torch.models.modeling_deepseekv3 import DeepseekV3ForCausalLM

        monkeypatch.setattr(DeepseekV3ForCausalLM, "_gate", lambda *_: object())
        with pytest.raises(RuntimeError, match="does not take gate_cls"):
            build(V2)


@pytest.mark.parametrize("architecture", ["DeepseekV4ForCausalLM", "LlamaForCausalLM"])
def test_an_architecture_that_is_not_on_the_list_never_reaches_the_engine(
    tmp_path: Path, architecture: str
) -> None:
    made = settings_for(
        write_checkpoint(tmp_path, architectures=[architecture]), tensor=2, attention_data=False, args={}
    )
    with installed():
        from moefleet_runtime.engine.registry import make_engine

        with pytest.raises(
            StartFailed, match="serves DeepseekV3ForCausalLM, DeepseekV32ForCausalLM"
        ) as failed:
            make_engine("TensorRTLLM", made)
    assert failed.value.reason == "CheckpointUnsupported"


def test_the_tiny_checkpoint_of_the_torch_engine_is_accepted() -> None:
    folder = Path(__file__).resolve().parents[2] / "support/models/tiny-deepseek-v2"
    made = settings_for(
        folder, tensor=2, attention_data=True, args={"gpuMemoryGib": 8, "memoryReserveGib": 1}
    )
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["DeepseekV2ForCausalLM"]
    with installed():
        outcomes = check_engine(replace(made, context_length=2048), patience_s=5)
        assert [o for o in outcomes if o.broken] == []
