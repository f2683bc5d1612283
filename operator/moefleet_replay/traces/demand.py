"""moefleet's own recorded demand: what the pickers counted, kept as JSON lines and made into requests again.

First line: {"format": "moefleet-demand", "version": 1, "namespace": ..., "fleet": ...}. Each other line is one sample of one gateway
(every 5 s): `time_s` Unix time, `gateway` uid, `incarnation`, `seq`, and cumulative counts since the incarnation began: `arrivals`,
`prompt_tokens`, `predicted_cached_tokens`, `served_requests`, `served_output_tokens`, `lengths` as [[prompt_log2, output_log2, count],
...] with predicted outputs. They are the fields of moefleet.gateway.v1.FleetDemand. `header` and `line` write it.

Counts are cumulative, so a lost sample loses nothing but detail. The first sample of an incarnation is where counting
starts, unless it is its very first (seq 1), before which nothing was counted.
What is made again: as many requests as arrived between two samples, uniform between them; sizes log-uniform inside their bucket,
prompts scaled to the recorded token sum, outputs to the recorded mean of those that ended; the cached share of the interval for all.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moefleet_replay.arrivals import Arrivals
from moefleet_replay.traces.recorded import REQUESTS_LIMIT
from moefleet_replay.traces.source import TraceError
from moefleet_replay.traces.tables import TOKENS_LIMIT

if TYPE_CHECKING:
    from moefleet.gateway.v1 import gateway_pb2

FORMAT = "moefleet-demand"
VERSION = 1
COUNTS = (
    "arrivals",
    "prompt_tokens",
    "predicted_cached_tokens",
    "served_requests",
    "served_output_tokens",
)
SAMPLE_S = 5.0
# An interval longer than this has lost its shape, and a warning says so.
DETAIL_S = 30.0
# 2^24 tokens: no prompt of ours is longer.
LOG2_LIMIT = 24


@dataclass(frozen=True, slots=True)
class Recording:
    arrivals: Arrivals
    duration_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sample:
    row: int
    time_s: float
    seq: int
    counts: dict[str, int]
    lengths: dict[tuple[int, int], int]


def header(namespace: str, fleet: str) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, "namespace": namespace, "fleet": fleet}) + "\n"


def line(sample: gateway_pb2.DemandSample, namespace: str, fleet: str) -> str:
    """Empty when the sample does not speak of the fleet."""
    for said in sample.fleets:
        if (said.namespace, said.fleet) == (namespace, fleet):
            row: dict[str, Any] = {
                "time_s": sample.time_s,
                "gateway": sample.gateway_uid,
                "incarnation": sample.incarnation,
                "seq": sample.seq,
            }
            row |= {name: getattr(said, name) for name in COUNTS}
            row["lengths"] = [[one.prompt_log2, one.output_log2, one.count] for one in said.lengths]
            return json.dumps(row, separators=(",", ":")) + "\n"
    return ""


def read_demand(path: Path, *, seed: int = 0) -> Recording:
    series = _samples(path)
    intervals = sorted(
        ((before, after) for samples in series.values() for before, after in pairwise(samples)),
        key=lambda pair: (pair[0].time_s, pair[1].time_s),
    )
    if not intervals:
        raise TraceError(f"{path}: no two samples of one gateway, so nothing was counted")
    zero_s = intervals[0][0].time_s
    total = sum(after.counts["arrivals"] - before.counts["arrivals"] for before, after in intervals)
    if not 0 < total <= REQUESTS_LIMIT:
        raise TraceError(f"{path}: {total:,} requests arrived, wanted 1 to {REQUESTS_LIMIT:,}")
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(5,))))
    made = [_made(path, before, after, zero_s, stream) for before, after in intervals]
    at_s, inputs, outputs, cached = (np.concatenate(column) for column in zip(*made, strict=True))
    warnings = [
        "outputs are drawn from what the gateway predicted: how they spread within a prompt class is not recorded"
    ]
    served = sum(b.counts["served_requests"] - a.counts["served_requests"] for a, b in intervals)
    tokens = sum(b.counts["served_output_tokens"] - a.counts["served_output_tokens"] for a, b in intervals)
    if served and tokens:
        outputs = outputs * (tokens / served / outputs.mean())
    else:
        warnings.append("no request ended while it was recorded: outputs are as predicted")
    if sparse := [b.row for a, b in intervals if b.time_s - a.time_s > DETAIL_S]:
        warnings.append(
            f"more than {DETAIL_S:g} s without a sample before rows {', '.join(map(str, sparse))}"
        )
    order = np.argsort(at_s, kind="stable")
    arrivals = Arrivals(
        at_s[order], inputs[order], np.maximum(np.rint(outputs[order]), 1).astype(np.int32), cached[order]
    )
    return Recording(arrivals, max(after.time_s for _, after in intervals) - zero_s, tuple(warnings))


def _made(
    path: Path, before: _Sample, after: _Sample, zero_s: float, stream: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    more = {name: after.counts[name] - before.counts[name] for name in COUNTS}
    buckets = {key: n - before.lengths.get(key, 0) for key, n in after.lengths.items()}
    count = more["arrivals"]
    weights = np.array(list(buckets.values()), np.float64)
    if count and not weights.sum():
        raise TraceError(f"{path}: row {after.row}: {count} arrivals and no lengths")
    if not count:
        return np.empty(0), np.empty(0, np.int32), np.empty(0), np.empty(0, np.int32)
    at_s = np.sort(stream.uniform(before.time_s - zero_s, after.time_s - zero_s, count))
    logs = np.array(list(buckets))
    if int(weights.sum()) == count:
        picks = stream.permutation(np.repeat(np.arange(len(weights)), weights.astype(np.int64)))
    else:
        # A request is counted before its lengths are known: the two may differ by those on their way.
        picks = stream.choice(len(weights), count, p=weights / weights.sum())
    prompts = np.exp2(logs[picks, 0] + stream.random(count))
    outputs = np.exp2(logs[picks, 1] + stream.random(count))
    # Inside its bucket a size can be off by a factor of two at most; a larger correction would be another trace.
    factor = min(2.0, max(0.5, more["prompt_tokens"] / prompts.sum()))
    inputs = np.clip(np.rint(prompts * factor), 1, TOKENS_LIMIT).astype(np.int32)
    hit = min(1.0, more["predicted_cached_tokens"] / max(1, more["prompt_tokens"]))
    cached = np.minimum(np.rint(inputs * hit), inputs - 1).astype(np.int32)
    return at_s, inputs, outputs, cached


def _samples(path: Path) -> dict[tuple[str, str], list[_Sample]]:
    """By gateway and incarnation, in the order in which they were made."""
    series: dict[tuple[str, str], list[_Sample]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                row = _object(path, number, text)
                if number == 1:
                    if (row.get("format"), row.get("version")) != (FORMAT, VERSION):
                        raise TraceError(f"{path}: row 1: wanted format {FORMAT}, version {VERSION}")
                    continue
                sample = _sample(path, number, row)
                samples = series.setdefault((str(row.get("gateway")), str(row.get("incarnation"))), [])
                if not samples and sample.seq == 1:
                    samples.append(_Sample(number, sample.time_s - SAMPLE_S, 0, dict.fromkeys(COUNTS, 0), {}))
                if samples and (sample.seq <= samples[-1].seq or sample.time_s <= samples[-1].time_s):
                    raise TraceError(
                        f"{path}: row {number}: seq {sample.seq} does not come after row {samples[-1].row} of the same gateway"
                    )
                if samples:
                    _grown(path, samples[-1], sample)
                samples.append(sample)
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as JSON lines: {error}") from error
    return series


def _grown(path: Path, before: _Sample, after: _Sample) -> None:
    fewer = any(after.counts[name] < before.counts[name] for name in COUNTS)
    if fewer or any(after.lengths.get(key, 0) < count for key, count in before.lengths.items()):
        raise TraceError(
            f"{path}: row {after.row}: a count is lower than in row {before.row}, and they only grow"
        )


def _object(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise TraceError(f"{path}: row {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise TraceError(f"{path}: row {number}: {type(row).__name__}, wanted an object")
    return row


def _sample(path: Path, number: int, row: dict[str, Any]) -> _Sample:
    for name in ("seq", *COUNTS):
        if type(row.get(name)) is not int or row[name] < 0:
            raise TraceError(
                f"{path}: row {number}: {name} is {row.get(name)!r}, wanted a whole number, 0 or more"
            )
    if type(row.get("time_s")) not in (int, float) or not math.isfinite(row["time_s"]):
        raise TraceError(f"{path}: row {number}: time_s is {row.get('time_s')!r}, wanted a number")
    lengths = row.get("lengths")
    if not isinstance(lengths, list):
        raise TraceError(f"{path}: row {number}: lengths is {lengths!r}, wanted a list")
    for one in lengths:
        if (
            not isinstance(one, list)
            or len(one) != 3
            or any(type(value) is not int or value < 0 for value in one)
            or max(one[:2]) >= LOG2_LIMIT
        ):
            raise TraceError(
                f"{path}: row {number}: lengths has {one!r}, wanted [prompt_log2, output_log2, count]"
            )
    return _Sample(
        row=number,
        time_s=float(row["time_s"]),
        seq=row["seq"],
        counts={name: row[name] for name in COUNTS},
        lengths={(one[0], one[1]): one[2] for one in lengths},
    )
