"""One file of a checkpoint from BF16 to block-scaled FP8, a stripe of rows at a time, and what that lost.

A matrix is read, converted and written STRIPE_BYTES at a time, whatever its size; the file appears under its name when all of
it is on the disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch

from moefleet_weights.durable import rename_durably
from moefleet_weights.failing import WeightsError
from moefleet_weights.fp8 import BLOCK, SCALE_SUFFIX, dequantise, quantise, scale_shape
from moefleet_weights.tensors import Header, TensorEntry, header_bytes

# Read at once; its float32 copies and products are some six times as much.
STRIPE_BYTES: Final = 16 << 20
_CONVERTED: Final = re.compile(
    r"model\.layers\.\d+\."
    r"(self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"
    r"|mlp\.((shared_experts|experts\.\d+)\.)?(gate_proj|up_proj|down_proj))\.weight"
)
SOURCE_TYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class MatrixError:
    """What the conversion of one matrix lost."""

    name: str
    rows: int
    columns: int
    # Root of the mean square of the differences, over that of the weights.
    relative_error: float
    largest_error: float
    # Numbers that were not zero and are now.
    zeroed: int


@dataclass(frozen=True, slots=True)
class ShardDone:
    """The journal's entry of a finished shard."""

    file: str
    # Identity of what it was made from.
    source_bytes: int
    source_mtime_ns: int
    bytes: int
    sha256: str
    tensors: tuple[str, ...]
    matrices: tuple[MatrixError, ...]


def is_converted(name: str) -> bool:
    return _CONVERTED.fullmatch(name) is not None


def convert_shard(header: Header, target: Path, progress: Callable[[int], None]) -> ShardDone:
    stat = header.path.stat()
    names = {t.name for t in header.tensors}
    made: list[tuple[str, str, Sequence[int]]] = []
    for tensor in header.tensors:
        if is_converted(tensor.name):
            if tensor.name + SCALE_SUFFIX in names:
                raise WeightsError(
                    "CheckpointUnsupported", f"{header.path}: tensor {tensor.name} has scales already"
                )
            made.append((tensor.name, "F8_E4M3", tensor.shape))
            made.append((tensor.name + SCALE_SUFFIX, "F32", scale_shape(tensor.shape[0], tensor.shape[1])))
        else:
            made.append((tensor.name, tensor.dtype, tensor.shape))
    final = target / header.path.name
    beside = target / (header.path.name + ".partial")
    matrices: list[MatrixError] = []
    with header.path.open("rb") as source, beside.open("wb") as raw:
        out = Hashing(raw)
        out.write(header_bytes(made))
        for tensor in header.tensors:
            source.seek(header.data_begin + tensor.begin)
            if is_converted(tensor.name):
                matrices.append(_convert_matrix(header, tensor, source, out))
            else:
                for chunk in _chunks(header, source, tensor.size, STRIPE_BYTES):
                    out.write(chunk)
            progress(tensor.end)
        raw.flush()
        os.fsync(raw.fileno())
    # Readable by the user of whatever pod mounts it.
    beside.chmod(0o644)
    rename_durably(beside, final)
    return ShardDone(
        file=final.name,
        source_bytes=stat.st_size,
        source_mtime_ns=stat.st_mtime_ns,
        bytes=out.bytes,
        sha256=out.hexdigest(),
        tensors=tuple(name for name, _, _ in made),
        matrices=tuple(matrices),
    )


def _convert_matrix(header: Header, tensor: TensorEntry, source: BinaryIO, out: Hashing) -> MatrixError:
    rows, columns = tensor.shape
    kind = SOURCE_TYPES[tensor.dtype]
    row_bytes = columns * kind.itemsize
    stripe_rows = max(1, STRIPE_BYTES // (row_bytes * BLOCK)) * BLOCK
    scales_of: list[torch.Tensor] = []
    squares = lost = 0.0
    largest, zeroed = 0.0, 0
    for chunk in _chunks(header, source, tensor.size, stripe_rows * row_bytes):
        weight = torch.frombuffer(chunk, dtype=kind).view(-1, columns).to(torch.float32)
        numbers, scales = quantise(weight)
        # The largest of a block is infinite or NaN as soon as one of its numbers is.
        if not torch.isfinite(scales).all():
            raise WeightsError(
                "CheckpointUnsupported",
                f"{header.path}: tensor {tensor.name}: wanted finite numbers, found infinity or NaN",
            )
        out.write(numbers.view(torch.uint8).numpy().data)
        scales_of.append(scales)
        back = torch.empty_like(weight)
        dequantise(numbers, scales, back)
        zeroed += int(weight.count_nonzero()) - int(back.count_nonzero())
        squares += _square_sum(weight)
        difference = back.sub_(weight)
        lost += _square_sum(difference)
        largest = max(largest, *(abs(float(end)) for end in difference.aminmax()))
    out.write(torch.cat(scales_of).numpy().data)
    return MatrixError(
        name=tensor.name,
        rows=rows,
        columns=columns,
        relative_error=(lost / squares) ** 0.5 if squares else 0.0,
        largest_error=largest,
        zeroed=zeroed,
    )


def _square_sum(numbers: torch.Tensor) -> float:
    """In float32 by rows, in float64 over them: a fifth of the time of float64 throughout, and as good for a report."""
    return float(torch.linalg.vecdot(numbers, numbers).sum(dtype=torch.float64))


def _chunks(header: Header, source: BinaryIO, size: int, chunk_bytes: int) -> Iterator[bytearray]:
    left = size
    while left:
        chunk = bytearray(min(chunk_bytes, left))
        if source.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
            raise WeightsError("CheckpointUnreadable", f"{header.path}: it became shorter while it was read")
        left -= len(chunk)
        yield chunk


class Hashing:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        flat = memoryview(data).cast("B") if isinstance(data, memoryview) else data
        self._file.write(flat)
        self._hash.update(flat)
        self.bytes += len(flat)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
