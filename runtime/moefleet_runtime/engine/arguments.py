"""`engine.args` of each engine: the names that exist, checked before the engine (and torch) is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moefleet_perf import EIGHT_H800
from moefleet_trtllm.api import check_llm_arguments
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class SimulatedFaults(_Arguments):
    """Faults to rehearse. Counts are over all tokens of the process; 0 or empty: never."""

    # start() fails with this message, permanently.
    fail_start: str = Field(default="", max_length=500)
    # Steps stop for ever (work in hand, no token) after so many tokens.
    hang_after_tokens: int = Field(default=0, ge=0)
    # The host process ends at once, as if killed.
    die_after_tokens: int = Field(default=0, ge=0)
    # Every n-th step fails.
    step_error_every: int = Field(default=0, ge=0)


class SimulatedArguments(_Arguments):
    # Name of a calibration of moefleet_perf, or the calibration itself.
    calibration: str | dict[str, Any] = EIGHT_H800
    # 1.0: as calibrated; 0.02: 50 times slower.
    speed: float = Field(default=1.0, gt=0, le=1000)
    # How long start() takes, in real seconds whatever `speed` is.
    start_seconds: float = Field(default=0.0, ge=0, le=86400)
    # Answers end by themselves after so many tokens on average (geometric); 0: only at max_tokens.
    mean_output_tokens: int = Field(default=0, ge=0)
    # Absent: of the checkpoint's config.json when there is one, else DeepSeek-V2's 102400.
    vocabulary_size: int | None = Field(default=None, ge=300, le=1 << 24)
    faults: SimulatedFaults = Field(default_factory=SimulatedFaults)


class TorchArguments(_Arguments):
    # Blocks of the KV pool; 0: from the memory that is free, times kvCache.memoryFraction.
    blocks: int = Field(default=0, ge=0, le=1 << 24)
    block_tokens: int = Field(default=16, ge=1, le=256)
    # Compute threads; 0: as many as the pod's CPU limit.
    threads: int = Field(default=0, ge=0, le=512)
    # On a GPU: record decode passes when starting. Off starts sooner and answers few streams slower.
    cuda_graphs: bool = True


class TensorRTLLMArguments(_Arguments):
    """Ours in camelCase, as everywhere; any other name is an argument of the LLM API, spelt as there (`stream_interval`), and
    checked by name and type against the snapshot of the version that we drive."""

    model_config = ConfigDict(extra="allow", frozen=True)

    # Batch sizes, graphs and streaming where nothing else says; see `tensorrt_llm.presets`.
    preset: Literal["Auto", "Throughput", "Latency", "FastStart"] = "Auto"
    # Of one GPU. Absent: as the driver says.
    gpu_memory_gib: float | None = Field(default=None, gt=0, le=4096)
    # Of one GPU, for all that is neither weights nor KV cache. Absent: an assumption, see `tensorrt_llm.memory`.
    memory_reserve_gib: float | None = Field(default=None, ge=0, le=4096)
    # Folder for the autotuner's results, on a volume that outlives the pod to be of use. Absent: the cache folder of the user.
    autotuner_cache: str = Field(default="", max_length=1024)

    @property
    def llm(self) -> Mapping[str, Any]:
        return self.model_extra or {}

    @model_validator(mode="after")
    def _check_names(self) -> TensorRTLLMArguments:
        own = tuple(to_camel(name) for name in type(self).model_fields)
        if problems := check_llm_arguments(self.llm, own):
            raise ValueError("; ".join(problem.text for problem in problems))
        return self


EngineArguments = SimulatedArguments | TorchArguments | TensorRTLLMArguments
