"""The runtime's configuration: JSON of the pod (or a file, or the command line), checked to the last name.

An unknown field is an error that names the nearest known one: a typing error in `maxBatchSize` that is ignored costs
a fleet its throughput and nobody sees why.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from moefleet_runtime.ending import FatalError
from moefleet_runtime.engine.arguments import (
    EngineArguments,
    SimulatedArguments,
    TensorRTLLMArguments,
    TorchArguments,
)

# Far above every real configuration; a bigger one is a mistake (a checkpoint given as --config).
MAX_CONFIG_BYTES = 1 << 20

EngineType = Literal["TensorRTLLM", "Torch", "Simulated"]

_ARGUMENTS: Mapping[str, type[EngineArguments]] = {
    "Simulated": SimulatedArguments,
    "Torch": TorchArguments,
    "TensorRTLLM": TensorRTLLMArguments,
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class ModelConfig(_Model):
    name: str = Field(min_length=1, max_length=253)
    source: str = Field(default="", max_length=2048)
    context_length: int = Field(default=131072, ge=2, le=1 << 24)
    # Folder that fetched weights are kept in, shared by all who mount it. Only for sources that are fetched.
    cache: str = Field(default="", max_length=1024)


class Parallelism(_Model):
    tensor: int = Field(default=1, ge=1, le=64)
    expert: int = Field(default=1, ge=1, le=64)
    attention_data: bool = False


class EngineLimits(_Model):
    # Absent: the engine's own (the calibration's, for Simulated).
    max_batch_size: int | None = Field(default=None, ge=1, le=1 << 20)
    max_batch_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    # Absent: the model's context length.
    max_sequence_length: int | None = Field(default=None, ge=2, le=1 << 24)


class KVCache(_Model):
    precision: str = Field(default="Auto", max_length=16)
    memory_fraction: float = Field(default=0.8, gt=0, le=1)
    reuse: bool = True


class EngineConfig(_Model):
    type: EngineType
    parallelism: Parallelism = Field(default_factory=Parallelism)
    precision: str = Field(default="Auto", max_length=16)
    limits: EngineLimits = Field(default_factory=EngineLimits)
    kv_cache: KVCache = Field(default_factory=KVCache)
    # Checked against the engine's own arguments by `arguments` below.
    args: dict[str, Any] = Field(default_factory=dict)

    @property
    def arguments(self) -> EngineArguments:
        return _ARGUMENTS[self.type].model_validate(self.args)


class ControlConfig(_Model):
    listen: str = Field(default="[::]:8501", max_length=256)
    # Hex SHA-256 of the fleet's token; empty: no check.
    token_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class LimitsConfig(_Model):
    # Requests that may wait in the engine; more are refused with `full`.
    queued_requests: int = Field(default=1000, ge=0, le=1_000_000)
    # The longest that one stream may last, from admission.
    stream_duration_s: float = Field(default=900.0, gt=0, le=7 * 86400, alias="streamDurationS")
    # Work in hand and no step finished for so long: the engine hangs. Above the longest step at the slowest `speed`.
    # A start without any progress (a byte fetched, read or mapped, a phase that ended) for so long has failed; 0: by the engine.
    start_stall_s: float = Field(default=0.0, ge=0.0, le=86400, alias="startStallS")
    stall_s: float = Field(default=60.0, ge=0.2, le=3600, alias="stallS")


class RuntimeConfig(_Model):
    # `namespace/name` of the MoEFleet; empty by hand.
    fleet: str = Field(default="", max_length=512, pattern=r"^([^/]+/[^/]+)?$")
    model: ModelConfig
    engine: EngineConfig
    listen: str = Field(default="[::]:8500", max_length=256)
    control: ControlConfig = Field(default_factory=ControlConfig)
    # Empty: no metrics server.
    metrics_listen: str = Field(default="[::]:9090", max_length=256)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    drain_timeout_s: float = Field(default=900.0, ge=0, le=7 * 86400, alias="drainTimeoutS")

    @model_validator(mode="after")
    def _drain_covers_streams(self) -> RuntimeConfig:
        # Refused by the CRD as well; by hand it would cut streams that the fleet promised to finish.
        if self.drain_timeout_s < self.limits.stream_duration_s:
            raise ValueError(
                f"drainTimeoutS {self.drain_timeout_s:g} is shorter than limits.streamDurationS"
                f" {self.limits.stream_duration_s:g}: draining would cut streams that are allowed to run"
            )
        return self

    @property
    def context_length(self) -> int:
        longest = self.engine.limits.max_sequence_length
        return min(self.model.context_length, longest) if longest else self.model.context_length

    @property
    def model_names(self) -> tuple[str, ...]:
        """What a request may call this model: its name, or with the fleet's namespace in front."""
        namespace = self.fleet.partition("/")[0]
        return (self.model.name, f"{namespace}/{self.model.name}") if namespace else (self.model.name,)


def parse_config(text: str, origin: str) -> RuntimeConfig:
    """`origin` is the file or variable that the text comes from, for the message. Raises FatalError."""
    if len(text) > MAX_CONFIG_BYTES:
        raise FatalError(
            "ConfigurationInvalid", f"{origin}: {len(text)} bytes, at most {MAX_CONFIG_BYTES} are read"
        )
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise FatalError("ConfigurationInvalid", f"{origin}: not JSON: {error}") from error
    return check_config(data, origin)


def check_config(data: object, origin: str) -> RuntimeConfig:
    """Raises FatalError with every field that is wrong, not only the first."""
    try:
        config = RuntimeConfig.model_validate(data)
    except ValidationError as error:
        raise FatalError("ConfigurationInvalid", _explain(error, RuntimeConfig, origin, ())) from error
    try:
        _ = config.engine.arguments
    except ValidationError as error:
        kind = _ARGUMENTS[config.engine.type]
        text = _explain(error, kind, origin, ("engine", "args"))
        raise FatalError("EngineArgumentInvalid", text) from error
    return config


def _explain(error: ValidationError, root: type[BaseModel], origin: str, prefix: tuple[str, ...]) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        location = tuple(fault["loc"])
        where = ".".join(str(part) for part in (*prefix, *location)) or "configuration"
        if fault["type"] == "extra_forbidden":
            known = _known_names(root, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known here: {', '.join(known) or 'nothing: this engine takes no arguments'}"
            )
            lines.append(f"{where}: unknown; {hint}")
        elif fault["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            found = fault.get("input")
            shown = "" if isinstance(found, dict | list | BaseModel) else f" (found {found!r:.80})"
            lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}{shown}")
    return f"{origin}: " + "; ".join(lines)


def _known_names(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names that are allowed at `path`, by walking the models; unions of models do not occur on the way."""
    for part in path:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
