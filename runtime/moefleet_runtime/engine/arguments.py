"""`engine.args` of each engine: the names that exist, checked before the engine (and torch) is imported."""

from __future__ import annotations

from typing import Any

from moefleet_perf import EIGHT_H800
from pydantic import BaseModel, ConfigDict, Field
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


class TensorRTLLMArguments(_Arguments):
    """Any name passes: the engine is not in this image, so none can be checked against its API, and the start says so."""

    model_config = ConfigDict(extra="allow", frozen=True)


EngineArguments = SimulatedArguments | TorchArguments | TensorRTLLMArguments
