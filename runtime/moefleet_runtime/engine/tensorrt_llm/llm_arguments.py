"""From the checked settings to the keywords of `tensorrt_llm.LLM`, and everything that can be wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moefleet_trtllm.api import llm_fields, snapshot
from moefleet_trtllm.value_types import models_of

from moefleet_runtime.engine.arguments import TensorRTLLMArguments
from moefleet_runtime.engine.base import EngineSettings, StartFailed
from moefleet_runtime.engine.tensorrt_llm.checkpoint import FP8_BLOCK, PLUGINS, Checkpoint, Precision
from moefleet_runtime.engine.tensorrt_llm.memory import (
    GB,
    RESERVE_BYTES,
    Layout,
    MemoryPlan,
    plan_memory,
    refusal,
)
from moefleet_runtime.engine.tensorrt_llm.presets import Preset, choose

GIB: Final = 1 << 30
# Newest records that the engine keeps between two reads; we read several times a second.
MAX_STATS: Final = 1000


@dataclass(frozen=True, slots=True)
class LlmArguments:
    """Names as in the LLM API. `extra`: what `engine.args` adds, checked by name already; it wins over the preset."""

    model: str
    tensor_parallel_size: int
    moe_expert_parallel_size: int
    enable_attention_dp: bool
    # Of one rank under attention data parallelism.
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    # "fp8" or "auto".
    kv_dtype: str
    kv_memory_fraction: float
    kv_reuse: bool
    stream_interval: int
    cuda_graphs: Mapping[str, Any]
    moe_backend: str
    extra: Mapping[str, Any]

    def keywords(self) -> dict[str, Any]:
        """As JSON would say them: configuration classes are dicts still."""
        made: dict[str, Any] = {
            "model": self.model,
            "skip_tokenizer_init": True,
            "tensor_parallel_size": self.tensor_parallel_size,
            "moe_expert_parallel_size": self.moe_expert_parallel_size,
            "gpus_per_node": self.tensor_parallel_size,
            "enable_attention_dp": self.enable_attention_dp,
            "max_batch_size": self.max_batch_size,
            "max_num_tokens": self.max_num_tokens,
            "max_seq_len": self.max_seq_len,
            "enable_chunked_prefill": True,
            "enable_iter_perf_stats": True,
            "max_stats_len": MAX_STATS,
            "stream_interval": self.stream_interval,
            "kv_cache_config": {
                "dtype": self.kv_dtype,
                "free_gpu_memory_fraction": self.kv_memory_fraction,
                "enable_block_reuse": self.kv_reuse,
            },
            "cuda_graph_config": dict(self.cuda_graphs),
            "moe_config": {"backend": self.moe_backend},
        }
        return _merged(made, self.extra)


def _merged(made: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in extra.items():
        # Graphs are one decision: half of ours and half of theirs would contradict each other.
        whole = name == "cuda_graph_config"
        if isinstance(value, Mapping) and isinstance(made.get(name), dict) and not whole:
            made[name] = _merged(dict(made[name]), value)
        else:
            made[name] = value
    return made


def construct(keywords: Mapping[str, Any], llmapi: Any) -> dict[str, Any]:
    """Dicts become the configuration classes of the installed `tensorrt_llm.llmapi`, which check them once more."""
    models = snapshot()["models"]
    out: dict[str, Any] = {}
    for name, value in keywords.items():
        classes = models_of(llm_fields()[name].type, models)
        if isinstance(value, Mapping) and len(classes) == 1 and hasattr(llmapi, classes[0]):
            out[name] = getattr(llmapi, classes[0])(**value)
        else:
            out[name] = value
    return out


def arguments_for(settings: EngineSettings, checkpoint: Checkpoint) -> LlmArguments:
    """Raises StartFailed(EngineArgumentInvalid or CheckpointUnsupported)."""
    arguments = _ours(settings)
    preset = _preset(settings, arguments)
    _check_precision(settings, checkpoint)
    _check_parallelism(settings, checkpoint)
    if settings.context_length > checkpoint.max_positions:
        raise _invalid(
            f"model.contextLength: {checkpoint.where} serves at most {checkpoint.max_positions} tokens,"
            f" found {settings.context_length}"
        )
    extra = arguments.llm
    moe_backend = (extra.get("moe_config") or {}).get("backend", "CUTLASS")
    if checkpoint.architecture in PLUGINS and moe_backend != "CUTLASS":
        raise _invalid(
            f"engine.args.moe_config.backend: {checkpoint.architecture} is routed by moefleet's own gate, which only CUTLASS"
            f" asks; found {moe_backend} (others route inside of their kernels, by another rule)"
        )
    return LlmArguments(
        model=str(settings.model_path),
        tensor_parallel_size=settings.tensor_parallel,
        moe_expert_parallel_size=settings.expert_parallel,
        enable_attention_dp=settings.attention_data_parallel,
        max_batch_size=settings.max_batch_size or preset.max_batch_size,
        max_num_tokens=settings.max_batch_tokens or preset.max_num_tokens,
        max_seq_len=settings.context_length,
        kv_dtype="fp8" if kv_precision(settings, checkpoint) == "FP8" else "auto",
        kv_memory_fraction=settings.kv_memory_fraction,
        kv_reuse=settings.kv_reuse,
        stream_interval=preset.stream_interval,
        cuda_graphs=preset.cuda_graphs,
        moe_backend=moe_backend,
        extra=extra,
    )


def memory_for(settings: EngineSettings, checkpoint: Checkpoint, *, device_bytes: int) -> MemoryPlan:
    """Raises StartFailed(OutOfMemory) in numbers, with what would fit instead."""
    arguments = _ours(settings)
    given = arguments.memory_reserve_gib
    plan = plan_memory(
        checkpoint,
        Layout(
            precision=checkpoint.precision,
            kv_precision=kv_precision(settings, checkpoint),
            tensor_parallel=settings.tensor_parallel,
            expert_parallel=settings.expert_parallel,
            attention_data_parallel=settings.attention_data_parallel,
        ),
        device_bytes=device_bytes,
        context_length=settings.context_length,
        memory_fraction=settings.kv_memory_fraction,
        reserve_bytes=RESERVE_BYTES if given is None else int(given * GIB),
    )
    if why := refusal(checkpoint, plan, memory_fraction=settings.kv_memory_fraction):
        raise StartFailed(
            "OutOfMemory",
            f"{checkpoint.where} ({checkpoint.parameters / GB:.1f} billion parameters) does not fit: {why}",
        )
    return plan


def kv_precision(settings: EngineSettings, checkpoint: Checkpoint) -> Precision:
    """Auto: as the weights, which is what the guides of the engine do."""
    match settings.kv_precision:
        case "FP8":
            return "FP8"
        case "BF16":
            return "BF16"
        case "Auto":
            return checkpoint.precision
        case other:
            raise _invalid(f"engine.kvCache.precision: wanted Auto, FP8 or BF16, found {other}")


def _ours(settings: EngineSettings) -> TensorRTLLMArguments:
    arguments = settings.arguments
    if not isinstance(arguments, TensorRTLLMArguments):
        raise _invalid(f"engine.args: wanted TensorRTLLM's, found {type(arguments).__name__}")
    return arguments


def _preset(settings: EngineSettings, arguments: TensorRTLLMArguments) -> Preset:
    try:
        return choose(arguments.preset, attention_data=settings.attention_data_parallel)
    except ValueError as error:
        raise _invalid(f"engine.args.preset: {error}") from None


def _check_precision(settings: EngineSettings, checkpoint: Checkpoint) -> None:
    if settings.precision in ("Auto", checkpoint.precision):
        return
    hint = (
        "; convert it first: moefleet convert SRC DST --to fp8-block"
        if (settings.precision, checkpoint.precision) == ("FP8", "BF16")
        else ""
    )
    raise StartFailed(
        "CheckpointUnsupported",
        f"engine.precision {settings.precision}: quantisation comes from the checkpoint, and {checkpoint.where} is"
        f" {checkpoint.precision}{hint}",
    )


def _check_parallelism(settings: EngineSettings, checkpoint: Checkpoint) -> None:
    tensor, expert = settings.tensor_parallel, settings.expert_parallel
    if tensor % expert:
        raise _invalid(f"engine.parallelism.expert: wanted a divisor of tensor ({tensor}), found {expert}")
    if checkpoint.experts % expert:
        raise _invalid(
            f"engine.parallelism.expert: {checkpoint.experts} experts are not shared out evenly over {expert} ranks"
        )
    if not settings.attention_data_parallel and checkpoint.heads % tensor:
        raise _invalid(
            f"engine.parallelism.tensor: {checkpoint.heads} heads are not shared out evenly over {tensor} ranks"
        )
    inside = tensor // expert
    width = checkpoint.expert_size / inside
    if checkpoint.precision == "FP8" and width % FP8_BLOCK:
        raise _invalid(
            f"engine.parallelism: {inside} ranks would share each expert of width {checkpoint.expert_size}, {width:g} each,"
            f" and FP8 scales are for blocks of {FP8_BLOCK}; use expert {tensor} with tensor {tensor}"
        )


def _invalid(message: str) -> StartFailed:
    return StartFailed("EngineArgumentInvalid", message)
