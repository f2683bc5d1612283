"""Imports `tensorrt_llm`, registers our model class when the checkpoint needs it, and makes the LLM. In the main thread only."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

from moefleet_trtllm.api import VERSION

from moefleet_runtime.engine.arguments import TensorRTLLMArguments
from moefleet_runtime.engine.base import EngineInfo, StartFailed
from moefleet_runtime.engine.tensorrt_llm.checkpoint import PLUGINS
from moefleet_runtime.engine.tensorrt_llm.environment import clean, keep_autotuner_cache
from moefleet_runtime.engine.tensorrt_llm.faults import start_failure
from moefleet_runtime.engine.tensorrt_llm.llm_arguments import construct
from moefleet_runtime.engine.tensorrt_llm.prepared import Prepared


@dataclass(frozen=True, slots=True)
class Connected:
    """The parts of the API that the adapter touches."""

    llm: Any
    sampling_params: Any
    request_error: type[Exception]
    info: EngineInfo
    # Whether there are KV cache events to read.
    kv_events: bool


def connect(prepared: Prepared) -> Connected:
    """Takes minutes. Raises StartFailed."""
    _prepare_environment(prepared)
    module, llmapi = _import()
    _register(prepared.checkpoint.architecture)
    try:
        keywords = construct(prepared.arguments.keywords(), llmapi)
        llm = module.LLM(**keywords)
    except Exception as error:
        raise start_failure(error) from error
    events = getattr(keywords["kv_cache_config"], "event_buffer_max_size", 0)
    return Connected(
        llm=llm,
        sampling_params=module.SamplingParams,
        request_error=llmapi.RequestError,
        info=_info(prepared),
        kv_events=bool(events) and prepared.settings.kv_reuse,
    )


def _prepare_environment(prepared: Prepared) -> None:
    clean(os.environ)
    arguments = prepared.settings.arguments
    assert isinstance(arguments, TensorRTLLMArguments)
    keep_autotuner_cache(
        os.environ,
        folder=arguments.autotuner_cache,
        device=prepared.devices[0].name if prepared.devices else "",
        layout=prepared.plan.layout,
    )


def _import() -> tuple[Any, Any]:
    try:
        module = importlib.import_module("tensorrt_llm")
        llmapi = importlib.import_module("tensorrt_llm.llmapi")
    except Exception as error:
        # Its import loads drivers and libraries, which fail in ways of their own.
        raise StartFailed(
            "EngineUnavailable", f"tensorrt_llm cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "__version__", "unknown")
    if found != VERSION:
        raise StartFailed(
            "EngineUnavailable",
            f"this release drives tensorrt_llm {VERSION}, the image has {found}: arguments and statistics differ between"
            " versions",
        )
    return module, llmapi


def _register(architecture: str) -> None:
    plugin = PLUGINS.get(architecture)
    if plugin is None:
        return
    try:
        importlib.import_module(plugin).register()
    except Exception as error:
        raise StartFailed(
            "CheckpointUnsupported",
            f"the model class for {architecture} cannot be registered with tensorrt_llm {VERSION}:"
            f" {type(error).__name__}: {error}",
        ) from error


def _info(prepared: Prepared) -> EngineInfo:
    settings, checkpoint, arguments = prepared.settings, prepared.checkpoint, prepared.arguments
    devices = prepared.devices
    return EngineInfo(
        model_name=settings.model_name,
        context_length=settings.context_length,
        vocabulary_size=checkpoint.vocabulary_size,
        eos_token_ids=checkpoint.eos_token_ids,
        kv_max_tokens=prepared.plan.pod_tokens,
        max_batch_size=arguments.max_batch_size * prepared.ranks,
        max_batch_tokens=arguments.max_num_tokens,
        engine_version=f"tensorrt_llm {VERSION}",
        hidden_size=checkpoint.hidden_size,
        layers=checkpoint.layers,
        heads=checkpoint.heads,
        device=f"{settings.tensor_parallel} x {devices[0].name}" if devices else "unknown",
    )
