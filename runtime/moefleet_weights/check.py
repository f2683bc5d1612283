"""Whether a folder is the checkpoint that spec describes. Called when config and tokenizer are there, before the long part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from moefleet_weights.failing import WeightsError
from moefleet_weights.tensors import parse_json_object, read_header

MAX_CONFIG_BYTES: Final = 1 << 20
# DeepSeek's tokenizers are below 10 MB.
MAX_TOKENIZER_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """From spec: `engine.precision` and whether the engine must have a tokenizer."""

    precision: Literal["FP8", "BF16", "Auto"] = "Auto"
    tokenizer: bool = True


def check_small_files(folder: Path, expected: Expected) -> None:
    """Raises WeightsError: CheckpointUnreadable for what is broken, ModelMismatch for another model than was asked for."""
    path = folder / "config.json"
    config = _object(path, MAX_CONFIG_BYTES)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise WeightsError(
            "CheckpointUnreadable", f"{path}: wanted architectures, found {architectures!r:.80}"
        )
    vocabulary = config.get("vocab_size")
    if type(vocabulary) is not int or vocabulary < 1:
        raise WeightsError(
            "CheckpointUnreadable", f"{path}: vocab_size: wanted a whole number, found {vocabulary!r:.80}"
        )
    quantised = bool(config.get("quantization_config"))
    if expected.precision != "Auto" and quantised is not (expected.precision == "FP8"):
        raise WeightsError(
            "ModelMismatch",
            f"{path}: engine.precision is {expected.precision}, found "
            + ("quantised weights" if quantised else "no quantization_config (see `moefleet convert`)"),
        )
    if expected.tokenizer:
        _check_tokenizer(folder / "tokenizer.json", vocabulary)


def check_shard(path: Path) -> None:
    """Its header is sound and promises exactly the bytes that are there."""
    read_header(path)


def _check_tokenizer(path: Path, vocabulary: int) -> None:
    if not path.is_file():
        raise WeightsError("ModelMismatch", f"{path}: no such file, and the engine needs a tokenizer")
    tokenizer = _object(path, MAX_TOKENIZER_BYTES)
    model = tokenizer.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    added = tokenizer.get("added_tokens") or []
    if not isinstance(entries, dict | list) or not isinstance(added, list):
        raise WeightsError("CheckpointUnreadable", f"{path}: wanted model.vocab, found none")
    ids = list(entries.values()) if isinstance(entries, dict) else list(range(len(entries)))
    ids += [t.get("id") for t in added if isinstance(t, dict)]
    largest = max((i for i in ids if type(i) is int), default=-1)
    if not 0 <= largest < vocabulary:
        raise WeightsError(
            "ModelMismatch",
            f"{path}: wanted token ids below vocab_size {vocabulary} of config.json, the largest is {largest}: "
            f"it belongs to another model",
        )


def _object(path: Path, most_bytes: int) -> dict[str, Any]:
    try:
        found = path.stat().st_size
        if found > most_bytes:
            raise WeightsError(
                "CheckpointUnreadable", f"{path}: wanted at most {most_bytes} bytes, found {found}"
            )
        raw = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError("ModelSourceMissing", f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError("CheckpointUnreadable", f"{path}: {error.strerror or error}") from error
    # Tokenizers repeat names now and then; only what is used is believed.
    if path.name != "config.json":
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise WeightsError("CheckpointUnreadable", f"{path}: not JSON: {error!s:.200}") from error
        if not isinstance(data, dict):
            raise WeightsError(
                "CheckpointUnreadable", f"{path}: wanted a JSON object, found {type(data).__name__}"
            )
        return data
    return parse_json_object(raw, str(path))
