"""ServeGen (Alibaba Cloud Model Studio): rates of 10-minute windows, and lengths of 6-hour windows, as two files.

Rates, CSV: `t_s` (start of the window, seconds, one step apart), `rps` (requests per second), `agg_idc` (index of dispersion of the
counts, variance/mean over seconds). Other columns are for people. Lengths, npz: `in_<start>` and `out_<start>`, int arrays of one
length, joint samples of prompt and output tokens from that second of the file on.

A window below 1 request/s is a hole in the data (the pools never rest): it is interpolated and named in a warning.
"""

from __future__ import annotations

import csv
import math
import re
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moefleet_replay.traces.generation import Curve, Generated, Pool
from moefleet_replay.traces.source import DAY_S, ArrivalShape, TraceError

COLUMNS = ("t_s", "rps", "agg_idc")
RATE_WINDOW_S = 600
LENGTH_WINDOW_S = 21_600
LOWEST_RATE = 1.0
TOKENS_LIMIT = 10_000_000


def open_servegen(
    rates: Path,
    lengths: Path,
    *,
    days: tuple[float, float] | None = None,
    scale: float = 1.0,
    arrivals: ArrivalShape = ArrivalShape.LINEAR,
    seed: int = 0,
) -> Generated:
    """`days` count from zero of the file's own t_s; all of the file without it. `scale` multiplies the rate, not the dispersion."""
    if not (math.isfinite(scale) and scale > 0):
        raise TraceError(f"scale: wanted a number above 0, found {scale}")
    starts, rate, idc = read_rates(rates)
    step_s = int(starts[1] - starts[0]) if len(starts) > 1 else RATE_WINDOW_S
    start_s, end_s = _chosen(rates, days, int(starts[0]), int(starts[-1]) + step_s)
    inside = (starts < end_s) & (starts + step_s > start_s)
    rate, warnings = _filled(rates, starts, rate, inside)
    pools, zeros = read_lengths(lengths)
    covered_s = pools[-1].start_s + _length_window_s(pools)
    if pools[0].start_s > start_s or covered_s < end_s:
        raise TraceError(
            f"{lengths}: lengths from {pools[0].start_s} s to {covered_s} s, wanted {start_s} s to {end_s} s"
        )
    width_s = _length_window_s(pools)
    raised = tuple(said for start, said in zeros.items() if start < end_s and start + width_s > start_s)
    seconds = np.arange(starts[0], end_s)
    window = ((seconds - starts[0]) // step_s).astype(np.int64)
    match arrivals:
        case ArrivalShape.LINEAR:
            per_second = np.interp(seconds + 0.5, starts + step_s / 2, rate)
        case ArrivalShape.STEP:
            per_second = rate[window]
    return Generated(
        name=_name(rates, days),
        describe=f"{rates.name} with {lengths.name}, {start_s} s to {end_s} s, rate x{scale:g}, arrivals {arrivals.value}, seed {seed}",
        warnings=warnings + raised,
        curve=Curve(first_s=int(starts[0]), rate=per_second * scale, idc=idc[window]),
        pools=pools,
        start_s=start_s,
        end_s=end_s,
        seed=seed,
    )


def read_rates(
    path: Path,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Window starts in seconds, requests per second, index of dispersion. Rows in errors count as an editor counts lines."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(
                    f"{path}: no column {', '.join(missing)}; found {', '.join(reader.fieldnames or ()) or 'nothing'}"
                )
            rows = [tuple(_number(path, reader.line_num, c, row[c]) for c in COLUMNS) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read as rates: {error}") from error
    if not rows:
        raise TraceError(f"{path}: no row below the header")
    starts, rate, idc = (np.array(column) for column in zip(*rows, strict=True))
    if len(starts) > 1:
        steps = np.diff(starts)
        step_s = float(steps[0])
        for index, step in enumerate(steps):
            line = f"{path}: row {index + 3}: t_s {starts[index + 1]:g}"
            if step <= 0:
                raise TraceError(f"{line} does not come after {starts[index]:g}")
            if step != step_s:
                raise TraceError(f"{line}, wanted {starts[index] + step_s:g} (rows are {step_s:g} s apart)")
    if starts[0] % 1 or (len(starts) > 1 and step_s % 1):
        raise TraceError(f"{path}: row 2: t_s {starts[0]:g}, wanted whole seconds a whole number apart")
    return starts, rate, idc


def read_lengths(path: Path) -> tuple[list[Pool], dict[int, str]]:
    """One pool for each pair of keys, by start, and a warning for those that hold samples of 0 tokens."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TraceError(f"{path}: one array, wanted an npz with in_<start> and out_<start>")
            arrays = {key: archive[key] for key in archive.files if re.fullmatch(r"(in|out)_\d+", key)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: cannot be read as lengths: {error}") from error
    if not arrays:
        raise TraceError(f"{path}: no key in_<start> or out_<start>")
    starts = sorted({int(key.rpartition("_")[2]) for key in arrays})
    pools = []
    warnings: dict[int, str] = {}
    for start in starts:
        pair = []
        for key in (f"in_{start}", f"out_{start}"):
            if key not in arrays:
                raise TraceError(f"{path}: no key {key}")
            tokens, zeros = _tokens(path, key, arrays[key])
            pair.append(tokens)
            if zeros:
                said = f"{path.name}: {key} has {zeros} samples of 0 tokens: taken as 1"
                warnings[start] = f"{warnings[start]}; {said}" if start in warnings else said
        if len(pair[0]) != len(pair[1]):
            raise TraceError(f"{path}: in_{start} has {len(pair[0])} samples and out_{start} {len(pair[1])}")
        pools.append(Pool(start, pair[0], pair[1], np.zeros(len(pair[0]), np.int32)))
    width = _length_window_s(pools)
    for before, after in pairwise(starts):
        if after - before != width:
            raise TraceError(f"{path}: no key in_{before + width} (in_{before} is followed by in_{after})")
    return pools, warnings


def _length_window_s(pools: list[Pool]) -> int:
    starts = [pool.start_s for pool in pools]
    return min((b - a for a, b in pairwise(starts)), default=LENGTH_WINDOW_S)


def _tokens(path: Path, key: str, values: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.int32], int]:
    """The samples, and how many were 0: production has requests that ended before their first token, and they cost a step."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise TraceError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}, wanted whole numbers in one row"
        )
    if not len(values):
        raise TraceError(f"{path}: {key} is empty")
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest < 1 or highest > TOKENS_LIMIT:
        raise TraceError(
            f"{path}: {key} has samples from {lowest} to {highest} tokens, wanted 1 to {TOKENS_LIMIT:,}"
        )
    return np.maximum(values.astype(np.int32), 1), int((values == 0).sum())


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TraceError(f"{path}: row {line}: {column} is {text!r}, wanted a number, 0 or more")
    return value


def _chosen(path: Path, days: tuple[float, float] | None, first_s: int, end_s: int) -> tuple[int, int]:
    if days is None:
        return first_s, end_s
    if not all(math.isfinite(day) for day in days) or not 0 <= days[0] < days[1]:
        raise TraceError(f"days: wanted A:B with 0 <= A < B, found {days[0]:g}:{days[1]:g}")
    start, end = round(days[0] * DAY_S), round(days[1] * DAY_S)
    if start < first_s or end > end_s:
        raise TraceError(
            f"days: {days[0]:g}:{days[1]:g} is {start} s to {end} s, and {path} has {first_s} s to {end_s} s"
        )
    return start, end


def _filled(
    path: Path, starts: npt.NDArray[np.float64], rate: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Rates with their holes filled; `inside` are the windows of the run, the only ones that are reported on."""
    hole = rate < LOWEST_RATE
    if hole[inside].all():
        first, last = np.flatnonzero(inside)[[0, -1]] + 2
        raise TraceError(f"{path}: row {first} to {last}: rps is below {LOWEST_RATE:g} in all of them")
    warnings: tuple[str, ...] = ()
    if rows := [str(index + 2) for index in np.flatnonzero(hole & inside)]:
        warnings = (
            f"{path.name}: rps below {LOWEST_RATE:g} in {len(rows)} windows (rows {', '.join(rows)}): interpolated from their neighbours",
        )
    return np.interp(starts, starts[~hole], rate[~hole]), warnings


def _name(path: Path, days: tuple[float, float] | None) -> str:
    return path.stem if days is None else f"{path.stem} days {days[0]:g}:{days[1]:g}"
