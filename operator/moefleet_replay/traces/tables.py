"""CSV files with one request a row: Azure LLM inference 2023 and 2024, BurstGPT.

Azure (github Azure/AzurePublicDataset, CC-BY-4.0; AzureLLMInferenceDataset2023.md and 2024.md): `TIMESTAMP` invocation time,
`ContextTokens` prompt tokens, `GeneratedTokens` output tokens. 2023 writes 100 ns without a zone, 2024 microseconds and +00:00.

BurstGPT (github HPMLL/BurstGPT, CC-BY-4.0; schema in its README): `Timestamp` seconds from 0:00:00 of the first day, `Request tokens`,
`Response tokens`, and Model, Total tokens, Log Type (later files Session ID and Elapsed time), which are not read. A response of 0
tokens is a failed request, as the README says: left out, with a warning.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces.source import TraceError

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
TOKENS_LIMIT = 10_000_000
ROWS_AT_ONCE = 200_000

_T = TypeVar("_T", bound=np.generic)


def read_azure(path: Path) -> Arrivals:
    """Zero is the first request."""
    parts = []
    first: np.datetime64 | None = None
    for line, (times, inputs, outputs) in _chunks(path, AZURE_COLUMNS):
        moments = _column(path, line, AZURE_COLUMNS[0], times, _moments)
        first = moments[0] if first is None else first
        at_s = (moments - first).astype(np.int64) / 1e9
        parts.append(
            (
                at_s,
                _tokens(path, line, AZURE_COLUMNS[1], inputs),
                _tokens(path, line, AZURE_COLUMNS[2], outputs),
            )
        )
    return arranged(path, parts, column=AZURE_COLUMNS[0])


def read_burstgpt(path: Path) -> tuple[Arrivals, tuple[str, ...]]:
    """Zero is midnight before the first request of the file, so that days are days of the calendar."""
    parts = []
    failed = 0
    for line, (times, inputs, outputs) in _chunks(path, BURSTGPT_COLUMNS):
        at_s = _column(path, line, BURSTGPT_COLUMNS[0], times, _seconds)
        tokens = [
            _tokens(path, line, *c, lowest=0)
            for c in zip(BURSTGPT_COLUMNS[1:], (inputs, outputs), strict=True)
        ]
        answered = tokens[1] > 0
        failed += int((~answered).sum())
        empty = answered & (tokens[0] < 1)
        if empty.any():
            row = line + int(np.argmax(empty))
            raise TraceError(f"{path}: row {row}: {BURSTGPT_COLUMNS[1]} is 0, wanted 1 or more")
        ordered(path, line, BURSTGPT_COLUMNS[0], at_s)
        parts.append((at_s[answered], tokens[0][answered], tokens[1][answered]))
    trace = arranged(path, parts, column=BURSTGPT_COLUMNS[0])
    if not len(trace):
        raise TraceError(f"{path}: no request that was answered")
    midnight_s = trace.at_s[0] // 86_400 * 86_400
    trace.at_s[:] -= midnight_s
    warnings = (f"{path.name}: {failed} failed requests (0 response tokens) left out",) if failed else ()
    return trace, warnings


def arranged(
    path: Path,
    parts: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int32]]],
    *,
    column: str,
) -> Arrivals:
    if not parts:
        raise TraceError(f"{path}: no row below the header")
    at_s, inputs, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    ordered(path, 2, column, at_s)
    return Arrivals(at_s, inputs, outputs, np.zeros(len(at_s), np.int32))


def ordered(path: Path, line: int, column: str, at_s: npt.NDArray[np.float64]) -> None:
    back = np.flatnonzero(np.diff(at_s) < 0)
    if len(back):
        raise TraceError(f"{path}: row {line + int(back[0]) + 1}: {column} is before the row above it")


def _chunks(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[list[str]]]]:
    """Line number of the first row, and the texts of each column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise TraceError(
                    f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}"
                )
            places = [header.index(column) for column in columns]
            line = 2
            while some := list(islice(rows, ROWS_AT_ONCE)):
                short = next((i for i, row in enumerate(some) if len(row) <= max(places)), None)
                if short is not None:
                    raise TraceError(
                        f"{path}: row {line + short}: {len(some[short])} fields, wanted {len(header)}"
                    )
                yield line, [[row[place] for row in some] for place in places]
                line += len(some)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read as a table: {error}") from error


def _column(
    path: Path, line: int, column: str, texts: list[str], parse: Callable[[list[str]], npt.NDArray[_T]]
) -> npt.NDArray[_T]:
    """All at once; when that fails, one by one to name the row."""
    try:
        return parse(texts)
    except (ValueError, OverflowError):
        for index, text in enumerate(texts):
            try:
                parse([text])
            except (ValueError, OverflowError) as error:
                raise TraceError(f"{path}: row {line + index}: {column} is {text!r}") from error
        raise


def _moments(texts: list[str]) -> npt.NDArray[np.datetime64]:
    moments = np.array([text.removesuffix("+00:00") for text in texts], "datetime64[ns]")
    if np.isnat(moments).any():
        raise ValueError("not a time")
    return moments


def _seconds(texts: list[str]) -> npt.NDArray[np.float64]:
    seconds = np.array(texts, np.float64)
    if not np.isfinite(seconds).all() or (seconds < 0).any():
        raise ValueError("not a time")
    return seconds


def _tokens(
    path: Path, line: int, column: str, texts: list[str], *, lowest: int = 1
) -> npt.NDArray[np.int32]:
    def parse(texts: list[str]) -> npt.NDArray[np.int64]:
        return np.array(list(map(int, texts)), np.int64)

    tokens = _column(path, line, column, texts, parse)
    outside = np.flatnonzero((tokens < lowest) | (tokens > TOKENS_LIMIT))
    if len(outside):
        index = int(outside[0])
        raise TraceError(
            f"{path}: row {line + index}: {column} is {tokens[index]}, wanted {lowest} to {TOKENS_LIMIT:,}"
        )
    return tokens.astype(np.int32)
