"""A checkpoint's tensors in the layout that the forward pass wants.

Each tensor is copied once, from the mapped file into its preallocated place: experts one by one into one stack a
layer, so that at no moment more than the weights and one tensor are in memory. What the file holds must be exactly
what the config promises; a tensor that would be left out (a bias, a second head) means another model, and is refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from moefleet_weights.failing import WeightsError
from moefleet_weights.fp8 import SCALE_SUFFIX, dequantise, scale_shape
from moefleet_weights.tensors import INDEX_NAME, checkpoint_files
from safetensors import SafetensorError, safe_open

from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch.config import ModelConfig

Tensor = torch.Tensor

_FP8 = "F8_E4M3"
_READABLE = ("BF16", "F16", "F32", "F64")
# Names that old exporters add and that hold nothing the config does not say.
_DERIVED = "rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    # Down-projections of queries (or the whole query projection) and of keys and values: one product for both.
    down: Tensor
    q_norm: Tensor | None
    q_up: Tensor | None
    kv_norm: Tensor
    # [heads * (nope + value), kv_lora_rank], and the two views of it that absorbed decode multiplies with.
    kv_up: Tensor
    key_up: Tensor
    value_up: Tensor
    out: Tensor


@dataclass(frozen=True, slots=True)
class MlpWeights:
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    # Always float32: expert choice is decided by differences that bfloat16 does not keep.
    router: Tensor
    gate_up: Tensor
    down: Tensor
    # V3: counts for the choice of experts, not for their shares; float32, [experts].
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Tensor
    attention: AttentionWeights
    mlp_norm: Tensor
    # The dense MLP of a dense layer, or the shared experts of a routed one.
    mlp: MlpWeights | None
    experts: ExpertWeights | None


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor


def load_weights(folder: Path, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> Weights:
    with Checkpoint(folder, config.fp8_block) as checkpoint:
        checkpoint.check_can_hold(config.matrix_numbers)
        for extra in range(config.prediction_layers):
            checkpoint.ignore_under(f"model.layers.{config.layers + extra}.")
        reader = _Reader(checkpoint, config, device, dtype)
        embedding = reader.matrix("model.embed_tokens.weight", config.vocabulary_size, config.hidden_size)
        layers = tuple(reader.layer(i) for i in range(config.layers))
        norm = reader.vector("model.norm.weight", config.hidden_size)
        if config.tied_head:
            head = embedding
            checkpoint.ignore("lm_head.weight")
        else:
            head = reader.factor("lm_head.weight", config.vocabulary_size, config.hidden_size)
        checkpoint.check_all_used()
    return Weights(embedding, layers, norm, head)


class Checkpoint:
    """The safetensors files of a folder, open while loading, with every tensor accounted for."""

    def __init__(self, folder: Path, fp8_block: tuple[int, int] | None = None) -> None:
        self._folder, self._fp8_block = folder, fp8_block
        self._files = ExitStack()
        self._file_of: dict[str, Any] = {}
        self._used: set[str] = set()

    def __enter__(self) -> Checkpoint:
        try:
            for path in self._paths():
                self._open(path)
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file_of.clear()
        self._files.close()

    def copy(self, name: str, into: Tensor) -> None:
        """Into a place of the wanted shape, type and device; block-scaled FP8 becomes plain numbers on the way."""
        block = self._fp8_block
        part = self._part(name, list(into.shape), (*_READABLE, _FP8) if block else _READABLE)
        if block and part.get_dtype() == _FP8:
            if into.dim() != 2:
                raise StartFailed(
                    "CheckpointUnsupported",
                    f"{self._folder}: tensor {name}: wanted a matrix for {_FP8}, found shape {list(into.shape)}",
                )
            scales = name + SCALE_SUFFIX
            self._part(scales, list(scale_shape(into.shape[0], into.shape[1], block)), ("F32",))
            dequantise(
                self._file_of[name].get_tensor(name), self._file_of[scales].get_tensor(scales), into, block
            )
            self._used.add(scales)
        else:
            tensor = self._file_of[name].get_tensor(name)
            if into.dim() == 2 and into.stride(0) == 1:
                # Turned in its own type first: torch is slow at turning and converting in one.
                into.t().copy_(tensor.t().contiguous())
            else:
                into.copy_(tensor)
        self._used.add(name)

    def _part(self, name: str, wanted: list[int], kinds: tuple[str, ...]) -> Any:
        """The slice of that name, of the wanted shape and one of the kinds."""
        file = self._file_of.get(name)
        if file is None:
            raise StartFailed(
                "CheckpointUnsupported",
                f"{self._folder}: tensor {name}: wanted shape {wanted}, found no such tensor",
            )
        part = file.get_slice(name)
        shape, kind = list(part.get_shape()), part.get_dtype()
        if shape != wanted:
            raise StartFailed(
                "CheckpointUnsupported",
                f"{self._folder}: tensor {name}: wanted shape {wanted}, found {shape}",
            )
        if kind not in kinds:
            raise StartFailed(
                "CheckpointUnsupported",
                f"{self._folder}: tensor {name}: wanted type {' or '.join(kinds)}, found {kind}",
            )
        return part

    def ignore(self, name: str) -> None:
        self._used.add(name)

    def ignore_under(self, prefix: str) -> None:
        self._used.update(name for name in self._file_of if name.startswith(prefix))

    def check_can_hold(self, numbers: int) -> None:
        """Before memory is asked for as a config says that is wrong by orders of magnitude."""
        file_bytes = sum(path.stat().st_size for path in self._paths())
        if numbers > file_bytes:
            raise StartFailed(
                "CheckpointUnsupported",
                f"{self._folder}: config.json describes a model of {numbers:.4g} numbers, found files of {file_bytes} bytes",
            )

    def check_all_used(self) -> None:
        unused = [n for n in sorted(self._file_of) if n not in self._used and not n.endswith(_DERIVED)]
        if unused:
            raise StartFailed(
                "CheckpointUnsupported",
                f"{self._folder}: {len(unused)} tensors are no part of the model that config.json describes, "
                f"the first: {', '.join(unused[:3])}",
            )

    def _paths(self) -> tuple[Path, ...]:
        try:
            return checkpoint_files(self._folder)
        except WeightsError as error:
            raise StartFailed(error.reason, error.message) from error

    def _open(self, path: Path) -> None:
        try:
            file = self._files.enter_context(safe_open(str(path), "pt"))
        except FileNotFoundError:
            raise StartFailed(
                "CheckpointUnreadable", f"{path}: no such file, but {INDEX_NAME} names it"
            ) from None
        except (OSError, SafetensorError) as error:
            raise StartFailed("CheckpointUnreadable", f"{path}: {error}") from error
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name in self._file_of:
                raise StartFailed("CheckpointUnreadable", f"{path}: tensor {name} is in another file too")
            self._file_of[name] = file


class _Reader:
    """Allocates each place and fills it; knows the published names."""

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._checkpoint, self._config, self._device, self._dtype = checkpoint, config, device, dtype

    def vector(self, name: str, length: int) -> Tensor:
        return self._filled(name, self._empty(length))

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self._filled(name, self._empty(rows, columns))

    def factor(self, name: str, rows: int, columns: int) -> Tensor:
        """A matrix that tokens are multiplied with, [out, in] as published."""
        return self._filled(name, self._to_multiply(rows, columns))

    def layer(self, index: int) -> LayerWeights:
        config, prefix = self._config, f"model.layers.{index}."
        experts = mlp = None
        if index in config.moe_layers:
            experts = self._experts(prefix + "mlp.")
            if config.shared_size:
                mlp = self._mlp(prefix + "mlp.shared_experts.", config.shared_size)
        else:
            mlp = self._mlp(prefix + "mlp.", config.dense_size)
        return LayerWeights(
            attention_norm=self.vector(prefix + "input_layernorm.weight", config.hidden_size),
            attention=self._attention(prefix + "self_attn."),
            mlp_norm=self.vector(prefix + "post_attention_layernorm.weight", config.hidden_size),
            mlp=mlp,
            experts=experts,
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        c = self._config
        q_size = c.heads * (c.nope_dim + c.rope_dim)
        q_down = c.q_lora_rank or q_size
        down = self._to_multiply(q_down + c.latent_width, c.hidden_size)
        q_name = "q_proj" if c.q_lora_rank is None else "q_a_proj"
        self._filled(f"{prefix}{q_name}.weight", down[:q_down])
        self._filled(prefix + "kv_a_proj_with_mqa.weight", down[q_down:])
        q_norm = q_up = None
        if c.q_lora_rank is not None:
            q_norm = self.vector(prefix + "q_a_layernorm.weight", c.q_lora_rank)
            q_up = self.factor(prefix + "q_b_proj.weight", q_size, c.q_lora_rank)
        kv_up = self.matrix(prefix + "kv_b_proj.weight", c.heads * (c.nope_dim + c.value_dim), c.kv_lora_rank)
        by_head = kv_up.view(c.heads, c.nope_dim + c.value_dim, c.kv_lora_rank)
        return AttentionWeights(
            down=down,
            q_norm=q_norm,
            q_up=q_up,
            kv_norm=self.vector(prefix + "kv_a_layernorm.weight", c.kv_lora_rank),
            kv_up=kv_up,
            key_up=by_head[:, : c.nope_dim],
            value_up=by_head[:, c.nope_dim :].transpose(1, 2),
            out=self.factor(prefix + "o_proj.weight", c.hidden_size, c.heads * c.value_dim),
        )

    def _mlp(self, prefix: str, size: int) -> MlpWeights:
        gate_up = self._to_multiply(2 * size, self._config.hidden_size)
        self._filled(prefix + "gate_proj.weight", gate_up[:size])
        self._filled(prefix + "up_proj.weight", gate_up[size:])
        return MlpWeights(gate_up, self.factor(prefix + "down_proj.weight", self._config.hidden_size, size))

    def _experts(self, prefix: str) -> ExpertWeights:
        c = self._config
        assert c.router is not None, "a config with routed layers has a router"
        count, size = c.router.experts, c.expert_size
        router = torch.empty(count, c.hidden_size, device=self._device, dtype=torch.float32)
        self._filled(prefix + "gate.weight", router)
        gate_up = self._to_multiply(count, 2 * size, c.hidden_size)
        down = self._to_multiply(count, c.hidden_size, size)
        for expert in range(count):
            name = f"{prefix}experts.{expert}."
            self._filled(name + "gate_proj.weight", gate_up[expert, :size])
            self._filled(name + "up_proj.weight", gate_up[expert, size:])
            self._filled(name + "down_proj.weight", down[expert])
        bias = None
        if c.router.scoring == "sigmoid":
            bias = self._filled(
                prefix + "gate.e_score_correction_bias",
                torch.empty(count, device=self._device, dtype=torch.float32),
            )
        return ExpertWeights(router, gate_up, down, bias)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, device=self._device, dtype=self._dtype)

    def _to_multiply(self, *shape: int) -> Tensor:
        """[..., out, in]. On a CPU what one input feeds lies together, so that F.linear multiplies as rows by columns: in float32 that takes
        0.5 to 0.8 of the time for 4 to 32 tokens, and the same for one and for hundreds. In bfloat16 it gains nothing."""
        if self._device.type == "cpu" and self._dtype == torch.float32:
            *stack, rows, columns = shape
            return self._empty(*stack, columns, rows).transpose(-1, -2)
        return self._empty(*shape)

    def _filled(self, name: str, into: Tensor) -> Tensor:
        self._checkpoint.copy(name, into)
        return into
