"""The LLM API of TensorRT-LLM 1.2.1 as data: which arguments exist, of which type, in which model.

`api-1.2.1.json` is a snapshot of facts (names, types, defaults, rules; no code) read in the source and the documentation of
NVIDIA/TensorRT-LLM at the commit it names (Apache-2.0); its `provenance` says how sure each part is. The constructor of the
real one is as strict (an unknown keyword is a ValueError), but says so only minutes into a start, and without a hint.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from moefleet_trtllm.value_types import complaint, models_of

VERSION: Final = "1.2.1"
_FILE: Final = f"api-{VERSION}.json"

# What the fleet's spec says already: a second place for it would be a second truth.
FROM_SPEC: Final[Mapping[str, str]] = {
    "model": "model.source",
    "tensor_parallel_size": "engine.parallelism.tensor",
    "moe_expert_parallel_size": "engine.parallelism.expert",
    "moe_tensor_parallel_size": "engine.parallelism (tensor divided by expert)",
    "enable_attention_dp": "engine.parallelism.attentionData",
    "max_batch_size": "engine.limits.maxBatchSize",
    "max_num_tokens": "engine.limits.maxBatchTokens",
    "max_seq_len": "engine.limits.maxSequenceLength",
    "max_input_len": "engine.limits.maxSequenceLength",
    "kv_cache_config.dtype": "engine.kvCache.precision",
    "kv_cache_config.free_gpu_memory_fraction": "engine.kvCache.memoryFraction",
    "kv_cache_config.enable_block_reuse": "engine.kvCache.reuse",
}
# What the adapter needs to be as it is.
FIXED: Final[Mapping[str, str]] = {
    "enable_chunked_prefill": "it is always on: without it a prompt above max_num_tokens is refused",
    "enable_iter_perf_stats": "it is always on: the autoscaler needs the statistics",
    "skip_tokenizer_init": "it is always on: tokens and text meet in the server process",
    "tokenizer": "the engine gets token ids only; the server reads the checkpoint's own tokenizer",
    "backend": "only the PyTorch backend is driven",
    "orchestrator_type": "only MPI is driven",
    "pipeline_parallel_size": "one replica is one node; only tensor and expert parallelism are driven",
    "context_parallel_size": "one replica is one node; only tensor and expert parallelism are driven",
    "gpus_per_node": "a replica is one node: it equals engine.parallelism.tensor",
    "max_beam_width": "answers are streamed token by token, which beams are not",
    "num_postprocess_workers": "there is no text in the engine",
    "reasoning_parser": "there is no text in the engine",
    "kv_cache_config.host_cache_size": "the host cache is under suspicion of mixing up prompts in this version",
    "load_format": "a replica that serves must have weights",
    "enable_sleep": "a prototype that nothing here wakes",
}
# Names that people know from elsewhere.
_KNOWN_ELSEWHERE: Final[Mapping[str, str]] = {
    "quant_config": "the constructor refuses it; quantisation comes from the checkpoint (see `moefleet convert`)",
    "quantization": "quantisation comes from the checkpoint (see `moefleet convert`)",
    "build_config": "it belongs to the engine-building backend; the PyTorch backend builds nothing",
    "model_kwargs": "this version does not have it",
    "kv_cache_free_gpu_memory_fraction": "the name on the command line of trtllm-serve; here it is engine.kvCache.memoryFraction",
    "tp_size": "it is engine.parallelism.tensor",
    "ep_size": "it is engine.parallelism.expert",
}


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    # As the source writes it, such as "Optional[int]".
    type: str
    note: str = ""


@functools.cache
def snapshot() -> Mapping[str, Any]:
    """The whole file."""
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


@functools.cache
def fields_of(model: str) -> Mapping[str, Field]:
    """Fields of a configuration class, inherited ones included. KeyError for a class the snapshot has no fields of."""
    facts = snapshot()["models"][model]
    fields: dict[str, Field] = {}
    for base in facts.get("bases", ()):
        if base in snapshot()["models"]:
            fields.update(fields_of(base))
    for fact in facts.get("fields", ()):
        fields[fact["name"]] = Field(fact["name"], fact["type"], fact.get("note", ""))
    return fields


def llm_fields() -> Mapping[str, Field]:
    """What `LLM(...)` of the PyTorch backend takes as keywords."""
    return fields_of("TorchLlmArgs")


def architectures() -> tuple[str, ...]:
    """DeepSeek classes that the PyTorch backend of this version registers by itself."""
    return tuple(snapshot()["architectures"]["pytorch_backend_deepseek"])


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with one argument."""

    text: str
    # The API has no argument of this name.
    unknown: bool = False


def check_llm_arguments(arguments: Mapping[str, Any], own: tuple[str, ...] = ()) -> list[Complaint]:
    """Everything that is wrong with `engine.args`; empty: nothing. `own`: names that are ours, for hints."""
    return [
        problem for name, value in arguments.items() for problem in _check("", name, value, llm_fields(), own)
    ]


def _check(
    prefix: str, name: str, value: Any, fields: Mapping[str, Field], own: tuple[str, ...]
) -> list[Complaint]:
    path = f"{prefix}{name}"
    if path in FROM_SPEC:
        return [Complaint(f"{path}: comes from {FROM_SPEC[path]}; remove it here")]
    if path in FIXED:
        return [Complaint(f"{path}: cannot be set: {FIXED[path]}")]
    field = fields.get(name)
    if field is None:
        return [Complaint(_unknown(path, name, prefix, (*fields, *own)), unknown=True)]
    models = models_of(field.type, snapshot()["models"])
    if isinstance(value, Mapping) and len(models) == 1:
        inner = fields_of(models[0])
        return [p for key, each in value.items() for p in _check(f"{path}.", str(key), each, inner, ())]
    wrong = complaint(field.type, value, snapshot()["models"], snapshot()["enums"])
    return [Complaint(f"{path}: {wrong}")] if wrong else []


def _unknown(path: str, name: str, prefix: str, known: tuple[str, ...]) -> str:
    if not prefix and name in _KNOWN_ELSEWHERE:
        return f"{path}: unknown to the LLM API of {VERSION}: {_KNOWN_ELSEWHERE[name]}"
    settable = [each for each in known if f"{prefix}{each}" not in FIXED]
    # maxBatchSize is max_batch_size to a person, and so it is to the comparison.
    plain = {each.replace("_", "").lower(): each for each in settable}
    near = difflib.get_close_matches(name.replace("_", "").lower(), plain, n=1, cutoff=0.5)
    if not near:
        hint = f"known here: {', '.join(sorted(settable))}"
    else:
        guess = plain[near[0]]
        elsewhere = FROM_SPEC.get(f"{prefix}{guess}")
        hint = f"{guess!r} comes from {elsewhere}" if elsewhere else f"did you mean {guess!r}?"
    return f"{path}: unknown to the LLM API of {VERSION}; {hint}"
