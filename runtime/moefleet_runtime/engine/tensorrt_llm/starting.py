"""From settings to an engine: everything that can be said before `tensorrt_llm` is imported, which takes half a minute."""

from __future__ import annotations

import importlib.util

from moefleet_trtllm.api import VERSION

from moefleet_runtime.engine.arguments import TensorRTLLMArguments
from moefleet_runtime.engine.base import Engine, EngineSettings, StartFailed
from moefleet_runtime.engine.tensorrt_llm.checkpoint import read_checkpoint
from moefleet_runtime.engine.tensorrt_llm.devices import Device, check_devices, read_devices
from moefleet_runtime.engine.tensorrt_llm.engine import TensorRTLLMEngine
from moefleet_runtime.engine.tensorrt_llm.llm_arguments import GIB, arguments_for, memory_for
from moefleet_runtime.engine.tensorrt_llm.prepared import Prepared


def make(settings: EngineSettings) -> Engine:
    if importlib.util.find_spec("tensorrt_llm") is None:
        raise StartFailed(
            "EngineUnavailable",
            f"engine TensorRTLLM for model {settings.model_name!r} needs tensorrt_llm {VERSION}; the image has no"
            " tensorrt_llm. Use the image for TensorRT-LLM, or choose engine.type Torch or Simulated.",
        )
    return TensorRTLLMEngine(prepare(settings))


def prepare(settings: EngineSettings, devices: tuple[Device, ...] | None = None) -> Prepared:
    """`devices`: for tests; else as the driver says. Raises StartFailed."""
    if settings.model_path is None:
        raise StartFailed(
            "ModelSourceMissing", "model.source: the TensorRT-LLM engine needs the folder of a checkpoint"
        )
    checkpoint = read_checkpoint(settings.model_path)
    arguments = arguments_for(settings, checkpoint)
    found = read_devices() if devices is None else devices
    plan = memory_for(settings, checkpoint, device_bytes=_device_bytes(settings, found))
    check_devices(
        found, wanted=settings.tensor_parallel, needed_bytes=plan.weights_bytes + plan.reserve_bytes
    )
    return Prepared(settings, checkpoint, arguments, plan, found)


def _device_bytes(settings: EngineSettings, devices: tuple[Device, ...]) -> int:
    arguments = settings.arguments
    given = arguments.gpu_memory_gib if isinstance(arguments, TensorRTLLMArguments) else None
    if given is not None:
        return int(given * GIB)
    if not devices:
        raise StartFailed(
            "EngineUnavailable",
            "no GPU is in this container (there is no nvidia-smi); engine.args.gpuMemoryGib says the size of one where it"
            " cannot be asked",
        )
    return min(device.total_bytes for device in devices)
