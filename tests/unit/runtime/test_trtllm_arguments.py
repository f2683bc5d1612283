"""spec.engine becomes arguments of the LLM API, or a sentence that says what is wrong, before anything loads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.config import check_config
from moefleet_runtime.ending import FatalError
from moefleet_runtime.engine.arguments import TensorRTLLMArguments
from moefleet_runtime.engine.base import EngineSettings, StartFailed
from moefleet_runtime.engine.tensorrt_llm.checkpoint import Checkpoint, parse_checkpoint
from moefleet_runtime.engine.tensorrt_llm.devices import Device, parse_devices
from moefleet_runtime.engine.tensorrt_llm.llm_arguments import arguments_for, memory_for
from moefleet_runtime.engine.tensorrt_llm.memory import Layout, plan_memory
from moefleet_runtime.engine.tensorrt_llm.presets import PRESETS, graph_sizes
from moefleet_runtime.engine.tensorrt_llm.starting import prepare
from moefleet_trtllm.api import FIXED, FROM_SPEC, fields_of, llm_fields, snapshot
from moefleet_trtllm_fake.published import DEEPSEEK_V2, DEEPSEEK_V2_FP8

# 81,559 MiB, as an 80 GB Hopper reports itself.
H800 = Device("NVIDIA H800", 81559 << 20, 81000 << 20)
V2_FP8 = parse_checkpoint(DEEPSEEK_V2_FP8, where="config.json")
V2_BF16 = parse_checkpoint(DEEPSEEK_V2, where="config.json")


def settings(**changed: Any) -> EngineSettings:
    arguments = TensorRTLLMArguments(**changed.pop("args", {}))
    made = EngineSettings(
        model_name="deepseek-v2",
        model_path=Path("/models/deepseek-v2"),
        context_length=131072,
        arguments=arguments,
        max_batch_size=0,
        max_batch_tokens=0,
        tensor_parallel=8,
        expert_parallel=8,
        attention_data_parallel=True,
    )
    return replace(made, **changed)


def config(args: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"name": "m", "source": "file:///m"}, "engine": {"type": "TensorRTLLM", "args": args}}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"strem_interval": 1}, "engine.args: strem_interval: unknown.*did you mean 'stream_interval'"),
        ({"cudaGraphConfig": {}}, "did you mean 'cuda_graph_config'"),
        ({"prest": "Latency"}, "did you mean 'preset'"),
        ({"xyzzy": 1}, "known here: .*stream_interval"),
        ({"quant_config": {}}, "quantisation comes from the checkpoint"),
        ({"model_kwargs": {}}, "this version does not have it"),
        ({"tensorParallelSize": 4}, "comes from engine.parallelism.tensor"),
        ({"max_batch_size": 4}, "max_batch_size: comes from engine.limits.maxBatchSize"),
        ({"kv_cache_config": {"dtype": "fp8"}}, "comes from engine.kvCache.precision"),
        ({"kv_cache_config": {"host_cache_size": 1}}, "host_cache_size: cannot be set"),
        ({"kv_cache_config": {"enable_partial": True}}, "did you mean 'enable_partial_reuse'"),
        ({"enable_chunked_prefill": False}, "enable_chunked_prefill: cannot be set: it is always on"),
        ({"stream_interval": "2"}, "stream_interval: wanted int, found '2'"),
        ({"stream_interval": True}, "wanted int, found True"),
        ({"moe_config": {"backend": "FAST"}}, "moe_config.backend: wanted one of 'CUTLASS'"),
        ({"cuda_graph_config": {"batch_sizes": [1, "a"]}}, "wanted a list of int or null"),
        ({"speculative_config": {}}, "which JSON cannot hold"),
        ({"scheduler_config": {"capacity_scheduler_policy": "MAX"}}, "one of MAX_UTILIZATION"),
        ({"preset": "Fast"}, "engine.args.preset: Input should be"),
        ({"a_typo": 1, "stream_interval": "x"}, "a_typo: unknown.*stream_interval: wanted int"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_meant(args: dict[str, Any], says: str) -> None:
    with pytest.raises(FatalError, match=says) as failed:
        check_config(config(args), "pod")
    assert failed.value.failure.reason == "EngineArgumentInvalid"


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"preset": "FastStart", "autotunerCache": "/cache"},
        {"stream_interval": 1, "cuda_graph_config": None},
        {"moe_config": {"max_num_tokens": 4096}, "scheduler_config": {"context_chunking_policy": None}},
        {"kv_cache_config": {"event_buffer_max_size": 1024, "tokens_per_block": 64}},
        {"attention_dp_config": {"enable_balance": True}, "guided_decoding_backend": "xgrammar"},
    ],
)
def test_arguments_of_the_api_pass(args: dict[str, Any]) -> None:
    assert check_config(config(args), "pod").engine.arguments


@given(
    st.dictionaries(
        st.text(max_size=20), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)
    )
)
def test_any_arguments_give_a_configuration_or_a_sentence(args: dict[str, Any]) -> None:
    try:
        check_config(config(args), "pod")
        said = "pod: nothing"
    except FatalError as error:
        said = error.failure.message
    assert said.startswith("pod: ")


def test_every_name_that_is_fixed_or_comes_from_the_spec_is_one_of_the_api() -> None:
    for path in (*FROM_SPEC, *FIXED):
        name, _, inner = path.partition(".")
        assert name in llm_fields()
        assert not inner or inner in fields_of("KvCacheConfig")


def test_the_snapshot_is_of_the_version_that_is_driven() -> None:
    assert snapshot()["meta"]["version"] == "1.2.1"
    assert "Apache-2.0" in snapshot()["meta"]["licence"]


def test_the_default_of_8_h800_is_fp8_with_attention_dp_and_ep8() -> None:
    made = arguments_for(settings(precision="FP8"), V2_FP8).keywords()
    assert made == {
        "model": "/models/deepseek-v2",
        "skip_tokenizer_init": True,
        "tensor_parallel_size": 8,
        "moe_expert_parallel_size": 8,
        "gpus_per_node": 8,
        "enable_attention_dp": True,
        "max_batch_size": 1024,
        "max_num_tokens": 4096,
        "max_seq_len": 131072,
        "enable_chunked_prefill": True,
        "enable_iter_perf_stats": True,
        "max_stats_len": 1000,
        "stream_interval": 10,
        "kv_cache_config": {
            "dtype": "fp8",
            "free_gpu_memory_fraction": 0.8,
            "enable_block_reuse": True,
        },
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": 128},
        "moe_config": {"backend": "CUTLASS"},
    }


def test_the_fleet_and_its_arguments_win_over_the_preset() -> None:
    args = {"cuda_graph_config": {"batch_sizes": [4]}, "kv_cache_config": {"event_buffer_max_size": 9}}
    made = arguments_for(settings(max_batch_size=16, max_batch_tokens=512, args=args), V2_FP8).keywords()
    assert (made["max_batch_size"], made["max_num_tokens"]) == (16, 512)
    assert made["cuda_graph_config"] == {"batch_sizes": [4]}
    assert made["kv_cache_config"]["event_buffer_max_size"] == 9
    assert made["kv_cache_config"]["dtype"] == "fp8"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("attention", [True, False])
def test_a_preset_is_what_its_own_spec_gives_and_it_fits_8_h800(name: str, attention: bool) -> None:
    preset = PRESETS[name]
    if preset.attention_data not in (None, attention):
        return
    spec = json.loads(
        json.dumps({k: dict(v) if not isinstance(v, str) else v for k, v in preset.spec.items()})
    )
    engine = check_config({"model": {"name": "m"}, "engine": spec}, "preset").engine
    made = settings(
        arguments=engine.arguments,
        precision=engine.precision,
        kv_precision=engine.kv_cache.precision,
        kv_memory_fraction=engine.kv_cache.memory_fraction,
        attention_data_parallel=attention,
    )
    keywords = arguments_for(made, V2_FP8).keywords()
    assert keywords["stream_interval"] == preset.stream_interval
    assert keywords["enable_attention_dp"] is attention
    plan = memory_for(made, V2_FP8, device_bytes=H800.total_bytes)
    assert plan.fits
    if name != "FastStart":
        assert f"{len(preset.graphs)} graphs" in preset.costs


@pytest.mark.parametrize(
    ("graphs", "sizes"),
    [
        ({"enable_padding": True, "max_batch_size": 16}, (1, 2, 4, 8, 16)),
        ({"enable_padding": True}, (1, 2, 4, *range(8, 129, 8))),
        ({"enable_padding": True, "max_batch_size": 512}, (1, 2, 4, *range(8, 129, 8), 256, 512)),
        ({"max_batch_size": 64}, (*range(1, 32), 32, 64)),
        ({"batch_sizes": [8, 1]}, (1, 8)),
    ],
)
def test_graph_sizes_follow_the_rule_of_the_api(graphs: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert graph_sizes(graphs) == sizes


@pytest.mark.parametrize(
    ("changed", "checkpoint", "reason", "says"),
    [
        ({"precision": "FP8"}, V2_BF16, "CheckpointUnsupported", "moefleet convert SRC DST --to fp8-block"),
        ({"precision": "BF16"}, V2_FP8, "CheckpointUnsupported", "is FP8"),
        ({"kv_precision": "INT4"}, V2_FP8, "EngineArgumentInvalid", "Auto, FP8 or BF16"),
        ({"expert_parallel": 1}, V2_FP8, "EngineArgumentInvalid", "192 each.*blocks of 128; use expert 8"),
        ({"expert_parallel": 3}, V2_FP8, "EngineArgumentInvalid", "a divisor of tensor"),
        ({"context_length": 200_000}, V2_FP8, "EngineArgumentInvalid", "at most 163840"),
        ({"args": {"preset": "Latency"}}, V2_FP8, "EngineArgumentInvalid", "attentionData false, found true"),
        ({"args": {"moe_config": {"backend": "TRTLLM"}}}, V2_FP8, "EngineArgumentInvalid", "only CUTLASS"),
    ],
)
def test_what_would_run_wrong_is_refused(
    changed: dict[str, Any], checkpoint: Checkpoint, reason: str, says: str
) -> None:
    with pytest.raises(StartFailed, match=says) as failed:
        arguments_for(settings(**changed), checkpoint)
    assert failed.value.reason == reason


def test_the_parameters_are_those_of_the_published_model() -> None:
    billions = {
        "routed": V2_BF16.routed_parameters,
        "attention": V2_BF16.latent_parameters + V2_BF16.head_parameters,
        "shared": V2_BF16.shared_parameters,
        "embeddings": V2_BF16.embedding_parameters,
        "dense": V2_BF16.dense_parameters,
        "gates": V2_BF16.gate_parameters,
        "all": V2_BF16.parameters,
    }
    assert {name: round(count / 1e9, 2) for name, count in billions.items()} == {
        "routed": 222.72,
        "attention": 8.95,
        "shared": 2.78,
        "embeddings": 1.05,
        "dense": 0.19,
        "gates": 0.05,
        "all": 235.74,
    }


@pytest.mark.parametrize(
    # The table of the notes (85 % of what is left): weights and cache of one GPU, thousands of tokens in the pod.
    ("precision", "attention", "weights_gb", "kv_gb", "thousands"),
    [
        ("BF16", False, 59.0, 16.6, {"BF16": 240, "FP8": 480}),
        ("BF16", True, 81.7, 0, {"BF16": 0, "FP8": 0}),
        ("FP8", False, 29.7, 41.5, {"BF16": 600, "FP8": 1200}),
        ("FP8", True, 42.0, 31.1, {"BF16": 3590, "FP8": 7190}),
    ],
)
def test_memory_is_what_the_arithmetic_by_hand_gave(
    precision: Any, attention: bool, weights_gb: float, kv_gb: float, thousands: dict[Any, int]
) -> None:
    """Latents and gates, which no rank shares out, were left out there: 0.6 GB (FP8) or 1.2 GB more under TP8."""
    for kv, tokens in thousands.items():
        layout = Layout(precision, kv, 8, 8, attention)
        plan = plan_memory(
            V2_BF16, layout, device_bytes=H800.total_bytes, context_length=131072, memory_fraction=0.85
        )
        assert plan.weights_bytes / 1e9 == pytest.approx(weights_gb, rel=0.025)
        assert plan.kv_bytes / 1e9 == pytest.approx(kv_gb, rel=0.07)
        assert plan.pod_tokens / 1e3 == pytest.approx(tokens, rel=0.07)


def test_bf16_with_attention_dp_is_refused_on_8_h800_with_the_numbers_and_what_would_fit() -> None:
    with pytest.raises(StartFailed) as failed:
        memory_for(settings(), V2_BF16, device_bytes=H800.total_bytes)
    assert failed.value.reason == "OutOfMemory"
    message = failed.value.message
    assert "235.7 billion parameters" in message
    assert "weights 81.7 GB + reserve 7.0 GB of 85.5 GB" in message
    assert "3.2 GB are missing" in message
    assert "What would fit: FP8 weights, attention DP + EP8, FP8 KV cache" in message


def test_a_context_that_no_rank_holds_is_refused_with_the_one_that_would_do() -> None:
    tight = settings(kv_memory_fraction=0.05)
    with pytest.raises(StartFailed, match="a request of 131072 tokens") as failed:
        memory_for(tight, V2_FP8, device_bytes=H800.total_bytes)
    plan = memory_for(replace(tight, context_length=1000), V2_FP8, device_bytes=H800.total_bytes)
    assert f"a context length of at most {plan.rank_tokens}" in failed.value.message


@given(
    device_gb=st.integers(1, 400),
    fraction=st.floats(0.01, 1),
    context=st.integers(2, 163840),
    attention=st.booleans(),
)
def test_a_plan_that_fits_holds_one_whole_request_and_a_refusal_says_only_what_fits(
    device_gb: int, fraction: float, context: int, attention: bool
) -> None:
    made = settings(kv_memory_fraction=fraction, context_length=context, attention_data_parallel=attention)
    try:
        plan = memory_for(made, V2_FP8, device_bytes=device_gb * 10**9)
    except StartFailed as failed:
        refused = failed
    else:
        assert plan.rank_tokens >= context
        assert plan.weights_bytes + plan.reserve_bytes + plan.kv_bytes <= device_gb * 10**9
        return
    assert refused.reason == "OutOfMemory"
    assert "would fit" in refused.message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "serves DeepseekV3ForCausalLM.*found .'Qwen3"),
        ({"architectures": ["DeepseekForCausalLM"]}, "DeepseekV2ForCausalLM by a model class of moefleet"),
        ({"architectures": []}, "found \\[\\]"),
        ({"architectures": None}, "found None"),
        ({"topk_method": "noaux_tc"}, "topk_method: wanted 'greedy' or 'group_limited_greedy'"),
        ({"scoring_func": "sigmoid"}, "scoring_func: wanted 'softmax'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method fp8 in blocks"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, "128, 128"),
        ({"hidden_size": "5120"}, "hidden_size: wanted a whole number"),
        ({"eos_token_id": None}, "eos_token_id: wanted token ids below 102400"),
        ({"eos_token_id": [1, 102400]}, "eos_token_id"),
    ],
)
def test_a_checkpoint_that_this_version_cannot_serve_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(StartFailed, match=says) as failed:
        parse_checkpoint({**DEEPSEEK_V2, **changed}, where="config.json")
    assert failed.value.reason == "CheckpointUnsupported"


def test_what_the_driver_says_is_held_against_what_is_needed(tmp_path: Path) -> None:
    devices = parse_devices("NVIDIA H800, 81559, 81000\n" * 8)
    assert devices == (H800,) * 8
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_FP8))
    made = settings(model_path=tmp_path)
    assert prepare(made, devices).plan.device_bytes == H800.total_bytes
    with pytest.raises(StartFailed, match="wanted 8 GPUs, this container has 4"):
        prepare(made, devices[:4])
    busy = (*devices[:7], replace(H800, free_bytes=40 << 30))
    with pytest.raises(StartFailed, match=r"GPU 7 .* another process holds the rest") as failed:
        prepare(made, busy)
    assert not failed.value.permanent
    with pytest.raises(StartFailed, match="gpuMemoryGib says the size"):
        prepare(made, ())
    assert (
        prepare(settings(model_path=tmp_path, args={"gpuMemoryGib": 141}), ()).plan.device_bytes == 141 << 30
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "ModelSourceMissing"), ("{", "CheckpointUnreadable"), ("[]", "CheckpointUnreadable")],
)
def test_a_config_that_is_none_has_a_reason(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(StartFailed) as failed:
        prepare(settings(model_path=tmp_path), (H800,) * 8)
    assert failed.value.reason == reason
