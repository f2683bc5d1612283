"""The safetensors format: eight bytes of length, a JSON header, then the tensors' bytes end to end.

Headers come from strangers, so everything in them is checked before anything is believed. Only headers are read here;
the bytes are streamed by those who need them.
Format: the safetensors specification (little endian; header at most 100 MB; no holes, no overlaps).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard

from moefleet_weights.failing import WeightsError

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMENSIONS: Final = 16
# Bytes a number. Types below a byte are in no checkpoint that we serve.
TYPE_BYTES: Final[Mapping[str, int]] = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

INDEX_NAME: Final = "model.safetensors.index.json"
SUFFIX: Final = ".safetensors"
# 61 layers of 256 experts with three matrices and their scales are 94,000 names: some 10 MB.
MAX_INDEX_BYTES: Final = 64 << 20
# Formats that run code when they are read.
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    # In the data part of its file.
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    # In the order of their bytes.
    tensors: tuple[TensorEntry, ...]
    # Where the data part begins in the file.
    data_begin: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """Raises WeightsError(CheckpointUnreadable) that names the file and what is wrong with it."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _unreadable(path, "at least 8 bytes", f"{file_bytes}")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise _unreadable(path, f"a header of at most {MAX_HEADER_BYTES} bytes", f"{length}")
            if 8 + length > file_bytes:
                raise _unreadable(path, f"a header of {length} bytes", f"a file of {file_bytes} bytes")
            raw = file.read(length)
    except OSError as error:
        raise WeightsError("CheckpointUnreadable", f"{path}: {error.strerror or error}") from error
    return Header(path, parse_header(raw, file_bytes - 8 - length, str(path)), 8 + length, file_bytes)


def parse_header(raw: bytes, data_bytes: int, where: str) -> tuple[TensorEntry, ...]:
    """`data_bytes`: what follows the header in the file."""
    data = parse_json_object(raw, where)
    entries = sorted(
        (_entry(name, value, where) for name, value in data.items() if name != "__metadata__"),
        key=lambda e: (e.begin, e.end, e.name),
    )
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise _unreadable(where, f"tensor {entry.name} at byte {at}", f"{entry.begin}")
        at = entry.end
    if at != data_bytes:
        raise _unreadable(where, f"{at} bytes of tensors, as the header says", f"{data_bytes}")
    return tuple(entries)


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """JSON from a stranger: one object, no name twice, no depth that exhausts the stack."""
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError("CheckpointUnreadable", f"{where}: not JSON: {error!s:.200}") from error
    if not isinstance(data, dict):
        raise _unreadable(where, "a JSON object", type(data).__name__)
    return data


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """Length and header of a file that will hold these tensors (name, type, shape) in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + prod(shape) * TYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data part begins at a multiple of 8, so that it can be mapped.
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, by its index where there is one. Pickles are refused, never opened."""
    index = folder / INDEX_NAME
    if index.is_file():
        names = sorted(set(read_index(index).values()))
        paths = tuple(folder / name for name in names)
        missing = [p.name for p in paths if not p.is_file()]
        if missing:
            raise _unreadable(index, f"the file {missing[0]} that it names", "no such file")
        return paths
    paths = tuple(sorted(folder.glob(f"*{SUFFIX}")))
    if not paths:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES] if folder.is_dir() else []
        raise WeightsError(
            "CheckpointUnsupported" if pickles else "ModelSourceMissing",
            f"{folder}: wanted *{SUFFIX}, found "
            + (
                f"{pickles[0]}: pickles run code when they are read, so they are refused"
                if pickles
                else "none"
            ),
        )
    return paths


def read_index(path: Path) -> dict[str, str]:
    """`weight_map`: from tensor to file. Names that reach outside the folder are refused."""
    try:
        size = path.stat().st_size
        if size > MAX_INDEX_BYTES:
            raise _unreadable(path, f"at most {MAX_INDEX_BYTES} bytes", f"{size}")
        raw = path.read_bytes()
    except OSError as error:
        raise WeightsError("CheckpointUnreadable", f"{path}: {error.strerror or error}") from error
    return parse_index(raw, str(path))


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    names = parse_json_object(raw, where).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise _unreadable(where, "weight_map with file names", type(names).__name__)
    for file in names.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SUFFIX):
            raise _unreadable(
                where, f"weight_map with names of *{SUFFIX} in the same folder", f"{file!r:.80}"
            )
    return names


def _entry(name: str, value: object, where: str) -> TensorEntry:
    what = f"{where}: tensor {name:.200}"
    if not isinstance(value, dict):
        raise _unreadable(what, "an object", type(value).__name__)
    dtype: object = value.get("dtype")
    shape: object = value.get("shape")
    offsets: object = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in TYPE_BYTES:
        raise _unreadable(what, f"dtype one of {', '.join(TYPE_BYTES)}", f"{dtype!r:.80}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _unreadable(what, f"shape of at most {MAX_DIMENSIONS} whole numbers", f"{shape!r:.80}")
    if not _counts(offsets) or len(offsets) != 2:
        raise _unreadable(what, "data_offsets [begin, end]", f"{offsets!r:.80}")
    begin, end = offsets[0], offsets[1]
    wanted = prod(shape) * TYPE_BYTES[dtype]
    if end - begin != wanted:
        raise _unreadable(what, f"{wanted} bytes for {dtype} {shape}", f"{end - begin}")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r:.80} stands twice")
    return out


def _unreadable(where: object, wanted: str, found: str) -> WeightsError:
    return WeightsError("CheckpointUnreadable", f"{where}: wanted {wanted}, found {found}")
