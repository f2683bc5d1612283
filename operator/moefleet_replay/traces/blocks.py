"""JSON lines with the hashes of a prompt's blocks: Mooncake and Qwen-Bailian. They say what a prefix cache could have held.

Mooncake (github kvcache-ai/Mooncake, FAST25-release, Apache-2.0): `timestamp` milliseconds from the start, `input_length`,
`output_length`, `hash_ids` of blocks of 512 tokens. Qwen-Bailian (github alibaba-edu/qwen-bailian-usagetraces-anon, Apache-2.0):
`timestamp` in seconds, the same two lengths, `hash_ids` of blocks of 16 tokens; chat_id, parent_chat_id, type and turn are not read.

An id stands for its block and everything before it, so the leading ids that were seen before are what an infinite cache shared by
all replicas would have had: `cached_tokens`, the most that can be hit. At least one token of every prompt is computed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces.source import TraceError
from moefleet_replay.traces.tables import TOKENS_LIMIT, ordered

MOONCAKE_BLOCK_TOKENS = 512
BAILIAN_BLOCK_TOKENS = 16


def read_mooncake(path: Path) -> Arrivals:
    return _read(path, unit_s=1e-3, block_tokens=MOONCAKE_BLOCK_TOKENS)


def read_bailian(path: Path) -> Arrivals:
    return _read(path, unit_s=1.0, block_tokens=BAILIAN_BLOCK_TOKENS)


def _read(path: Path, *, unit_s: float, block_tokens: int) -> Arrivals:
    at_s: list[float] = []
    inputs: list[int] = []
    outputs: list[int] = []
    cached: list[int] = []
    seen: set[int] = set()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                row = _object(path, line, text)
                at_s.append(_time(path, line, row) * unit_s)
                inputs.append(_count(path, line, row, "input_length"))
                outputs.append(_count(path, line, row, "output_length"))
                ids = _ids(path, line, row, -(-inputs[-1] // block_tokens))
                hit = next((place for place, one in enumerate(ids) if one not in seen), len(ids))
                cached.append(min(hit * block_tokens, inputs[-1] - 1))
                seen.update(ids[hit:])
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as JSON lines: {error}") from error
    if not at_s:
        raise TraceError(f"{path}: no row")
    times = np.array(at_s)
    ordered(path, 1, "timestamp", times)
    return Arrivals(times, *(np.array(column, np.int32) for column in (inputs, outputs, cached)))


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise TraceError(f"{path}: row {line}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise TraceError(f"{path}: row {line}: {type(row).__name__}, wanted an object")
    return row


def _field(path: Path, line: int, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise TraceError(f"{path}: row {line}: no field {name}")
    return row[name]


def _time(path: Path, line: int, row: dict[str, Any]) -> float:
    value = _field(path, line, row, "timestamp")
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise TraceError(f"{path}: row {line}: timestamp is {value!r}, wanted a number, 0 or more")
    return float(value)


def _count(path: Path, line: int, row: dict[str, Any], name: str) -> int:
    value = _field(path, line, row, name)
    if type(value) is not int or not 1 <= value <= TOKENS_LIMIT:
        raise TraceError(f"{path}: row {line}: {name} is {value!r}, wanted 1 to {TOKENS_LIMIT:,}")
    return value


def _ids(path: Path, line: int, row: dict[str, Any], blocks: int) -> list[int]:
    ids = _field(path, line, row, "hash_ids")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise TraceError(f"{path}: row {line}: hash_ids is not a list of whole numbers")
    if len(ids) > blocks:
        raise TraceError(f"{path}: row {line}: {len(ids)} hash_ids, and the prompt has {blocks} blocks")
    return ids
