"""`moefleet convert`: a BF16 checkpoint becomes one of block-scaled FP8, shard by shard.

Memory is bounded (see `shard`) whatever the checkpoint's size: a matrix is read, converted and written a few rows of
blocks at a time. A kill at any moment costs at most the shard in hand: a shard is flushed and renamed, then noted in the
journal, and `config.json` is written last, so that no engine can load a folder that is not whole.

Converted: the projections of attention and of dense, shared and routed MLPs, as in DeepSeek's own FP8 checkpoints.
Kept, byte by byte: routers (expert choice hangs on small differences), norms, embeddings and the head.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from moefleet_weights.durable import sync_folder, write_durably
from moefleet_weights.failing import WeightsError
from moefleet_weights.fp8 import BLOCK
from moefleet_weights.shard import SOURCE_TYPES, MatrixError, ShardDone, convert_shard, is_converted
from moefleet_weights.tensors import (
    INDEX_NAME,
    PICKLES,
    SUFFIX,
    Header,
    checkpoint_files,
    parse_json_object,
    read_header,
)

MAX_CONFIG_BYTES: Final = 1 << 20
REPORT_NAME: Final = "conversion.json"
SUMS_NAME: Final = "SHA256SUMS"
QUANTISATION: Final[Mapping[str, object]] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
_JOURNAL: Final = ".conversion"
# Bytes of the source that are done, of all, and the file in hand.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done."""

    folder: Path
    source_bytes: int
    bytes: int
    shards: int
    # Shards that an earlier run had finished.
    resumed: int
    matrices: tuple[MatrixError, ...]
    kept: int

    @property
    def relative_error(self) -> float:
        """Over all converted numbers alike: the mean of the matrices', weighted by their size."""
        numbers = sum(m.rows * m.columns for m in self.matrices)
        return sum(m.relative_error * m.rows * m.columns for m in self.matrices) / numbers

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "fp8-block",
            "weightBlockSize": [BLOCK, BLOCK],
            "sourceBytes": self.source_bytes,
            "bytes": self.bytes,
            "shards": self.shards,
            "keptTensors": self.kept,
            "relativeError": self.relative_error,
            "matrices": [
                {
                    "name": m.name,
                    "shape": [m.rows, m.columns],
                    "relativeError": m.relative_error,
                    "largestError": m.largest_error,
                    "zeroed": m.zeroed,
                }
                for m in self.matrices
            ],
        }


def convert(source: Path, target: Path, *, progress: Progress = lambda done, total, file: None) -> Conversion:
    """Goes on where an earlier run was ended. Raises WeightsError; the target is then without config.json."""
    config = _read_config(source)
    headers = [read_header(path) for path in checkpoint_files(source)]
    _check_tensors(headers, source)
    if source.resolve() == target.resolve():
        raise WeightsError("CheckpointUnsupported", f"{target}: wanted another folder than the source")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            return _convert(source, target, config, headers, progress)
    except OSError as error:
        raise WeightsError(
            "DiskFull" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "CacheUnusable",
            f"{target}: {error.strerror or error}; the same command goes on from here",
        ) from error


def _convert(
    source: Path, target: Path, config: dict[str, Any], headers: Sequence[Header], progress: Progress
) -> Conversion:
    journal = target / _JOURNAL
    names = {h.path.name for h in headers}
    _refuse_strangers(target, names)
    journal.mkdir(exist_ok=True)
    total = sum(h.file_bytes for h in headers)
    done: list[ShardDone] = []
    resumed = finished = 0
    for header in headers:
        earlier = _earlier(journal, target, header)
        if earlier is not None:
            resumed += 1
        else:
            (target / "config.json").unlink(missing_ok=True)
            earlier = convert_shard(
                header, target, partial(_tell, progress, finished, total, header.path.name)
            )
            write_durably(journal / f"{earlier.file}.json", json.dumps(asdict(earlier)).encode())
        done.append(earlier)
        finished += header.file_bytes
        progress(finished, total, header.path.name)
    conversion = Conversion(
        folder=target,
        source_bytes=total,
        bytes=sum(d.bytes for d in done),
        shards=len(done),
        resumed=resumed,
        matrices=tuple(m for d in done for m in d.matrices),
        kept=sum(1 for h in headers for t in h.tensors if not is_converted(t.name)),
    )
    _seal(source, target, config, done, conversion)
    return conversion


def _tell(progress: Progress, before: int, total: int, file: str, done: int) -> None:
    progress(before + done, total, file)


def _seal(
    source: Path, target: Path, config: dict[str, Any], done: Sequence[ShardDone], conversion: Conversion
) -> None:
    """Everything beside the weights; config.json last of all."""
    sums = {d.file: d.sha256 for d in done}
    beside: dict[str, bytes] = {}
    for path in sorted(source.iterdir()):
        left = path.name in ("config.json", INDEX_NAME, REPORT_NAME, SUMS_NAME) or path.name.startswith(".")
        if path.is_file() and not left and path.suffix not in (SUFFIX, *PICKLES):
            beside[path.name] = path.read_bytes()
    weight_map = {name: d.file for d in done for name in d.tensors}
    size = sum(t.size for d in done for t in read_header(target / d.file).tensors)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    beside[INDEX_NAME] = _json(index)
    beside[REPORT_NAME] = _json(conversion.to_json())
    sealed = _json({**config, "quantization_config": dict(QUANTISATION)})
    for name, content in beside.items():
        write_durably(target / name, content)
        sums[name] = hashlib.sha256(content).hexdigest()
    sums["config.json"] = hashlib.sha256(sealed).hexdigest()
    write_durably(
        target / SUMS_NAME, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
    )
    write_durably(target / "config.json", sealed)


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise WeightsError("CheckpointUnreadable", f"{path}: wanted at most {MAX_CONFIG_BYTES} bytes")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError("ModelSourceMissing", f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError("CheckpointUnreadable", f"{path}: {error.strerror or error}") from error
    config = parse_json_object(raw, str(path))
    if config.get("quantization_config"):
        raise WeightsError(
            "CheckpointUnsupported",
            f"{path}: quantization_config: wanted none, found {config['quantization_config']!r:.200}",
        )
    return config


def _check_tensors(headers: Sequence[Header], source: Path) -> None:
    """Before a byte is written: every tensor once, every matrix of a type and form that can be converted, and at least one."""
    where: dict[str, Path] = {}
    matrices = 0
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in where:
                raise WeightsError(
                    "CheckpointUnreadable",
                    f"{header.path}: tensor {tensor.name} is in {where[tensor.name].name} too",
                )
            where[tensor.name] = header.path
            if not is_converted(tensor.name):
                continue
            matrices += 1
            if tensor.dtype not in SOURCE_TYPES or len(tensor.shape) != 2 or 0 in tensor.shape:
                raise WeightsError(
                    "CheckpointUnsupported",
                    f"{header.path}: tensor {tensor.name}: wanted a matrix of {', '.join(SOURCE_TYPES)}, "
                    f"found {tensor.dtype} {list(tensor.shape)}",
                )
    if not matrices:
        raise WeightsError(
            "CheckpointUnsupported",
            f"{source}: wanted the projections of a DeepSeek checkpoint (model.layers.N.self_attn, .mlp), found none "
            f"among {len(where)} tensors",
        )


def _refuse_strangers(target: Path, names: set[str]) -> None:
    """A folder that holds something else is not ours to fill."""
    if (target / _JOURNAL).is_dir():
        return
    others = [p.name for p in sorted(target.iterdir()) if p.name not in (".conversion.lock", "lost+found")]
    if others:
        raise WeightsError(
            "CheckpointUnsupported",
            f"{target}: wanted an empty folder or one to go on with, found {others[0]}",
        )


def _earlier(journal: Path, target: Path, header: Header) -> ShardDone | None:
    """The finished shard, if it is whole and made from this very source."""
    try:
        data = json.loads((journal / f"{header.path.name}.json").read_bytes())
        done = ShardDone(
            **{
                **data,
                "tensors": tuple(data["tensors"]),
                "matrices": tuple(MatrixError(**m) for m in data["matrices"]),
            }
        )
        stat = header.path.stat()
        same = (done.source_bytes, done.source_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        return done if same and (target / done.file).stat().st_size == done.bytes else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One conversion a target; the lock is the process's, so a kill frees it."""
    with (target / ".conversion.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError("CacheUnusable", f"{target}: another conversion writes here") from None
        yield
        sync_folder(target)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
