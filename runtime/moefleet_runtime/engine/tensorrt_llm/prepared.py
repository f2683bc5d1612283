"""What is known of an engine before it is made."""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_runtime.engine.base import EngineSettings
from moefleet_runtime.engine.tensorrt_llm.checkpoint import Checkpoint
from moefleet_runtime.engine.tensorrt_llm.devices import Device
from moefleet_runtime.engine.tensorrt_llm.llm_arguments import LlmArguments
from moefleet_runtime.engine.tensorrt_llm.memory import MemoryPlan


@dataclass(frozen=True, slots=True)
class Prepared:
    settings: EngineSettings
    checkpoint: Checkpoint
    arguments: LlmArguments
    plan: MemoryPlan
    devices: tuple[Device, ...]

    @property
    def ranks(self) -> int:
        """Schedulers that work apart, each with a KV cache of its own."""
        return self.settings.tensor_parallel if self.settings.attention_data_parallel else 1
