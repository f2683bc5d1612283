"""One run from its arguments as text: what `moefleet replay` does once and `moefleet replay compare` many times.

Arguments are plain values, so that they travel between processes and into cache keys; everything is checked before anything is
simulated, and each error names the field.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from moefleet_perf import Calibration, CalibrationError, load_calibration

from moefleet_replay import fleet
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.cold_start import ColdStart, parse_cold_start
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.observation import Objective
from moefleet_replay.policies import parse
from moefleet_replay.policy import PolicySpec
from moefleet_replay.result import RunResult
from moefleet_replay.traces import ArrivalShape, TraceSource, TraceSpec, open_trace, parse_days

# Names that are easier to say than those of the files.
CALIBRATION_ALIASES: Final = {"announcement": "deepseek-v2-8xh800", "aic": "deepseek-v2-8xh800-aic"}
# Share of the TPOT limit that may be planned: with less than this left, sizing finds no capacity at any load.
PLANNED_TPOT_SHARE: Final = 0.85
MAX_REPLICAS: Final = 4096


class ArgumentError(ValueError):
    """The text names the argument, what was wanted and what was found."""


@dataclass(frozen=True, slots=True)
class TraceArguments:
    """Which traffic. Either ServeGen's two files, or KIND:PATH (KIND alone where nothing is read)."""

    rates: str | None = None
    lengths: str | None = None
    trace: str | None = None
    # "A:B", days from zero of the trace's own clock.
    days: str | None = None
    scale: float = 1.0
    arrivals: str = "linear"


@dataclass(frozen=True, slots=True)
class RunArguments:
    trace: TraceArguments
    # NAME[:knob=value,...]
    policy: str
    calibration: str = "announcement"
    cold_start: str = "lognormal:240,420"
    objective: str = "ttft=2s,tpot=100ms,attainment=99"
    min_replicas: int = 1
    max_replicas: int = 200
    gpu_hour_price: float = 14.0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Checked:
    """Arguments as values, before a trace is opened."""

    spec: PolicySpec
    knobs: dict[str, float]
    calibration: Calibration
    cold_start: ColdStart
    objective: Objective


def opened(trace: TraceArguments, seed: int) -> TraceSource:
    """Raises TraceError, which names the row or the field."""
    return open_trace(
        TraceSpec(
            rates=Path(trace.rates) if trace.rates else None,
            lengths=Path(trace.lengths) if trace.lengths else None,
            trace=trace.trace,
            days=parse_days(trace.days) if trace.days is not None else None,
            scale=trace.scale,
            arrivals=ArrivalShape(trace.arrivals),
            seed=seed,
        )
    )


def checked(arguments: RunArguments) -> Checked:
    """Raises ArgumentError, PolicyError or CalibrationError; reads no trace."""
    spec, knobs = parse(arguments.policy)
    objective = parse_objective(arguments.objective)
    if not 1 <= arguments.min_replicas <= arguments.max_replicas <= MAX_REPLICAS:
        raise ArgumentError(
            f"min and max: wanted 1 <= min <= max <= {MAX_REPLICAS},"
            f" found {arguments.min_replicas} and {arguments.max_replicas}"
        )
    if not (math.isfinite(arguments.gpu_hour_price) and arguments.gpu_hour_price >= 0):
        raise ArgumentError(f"gpu-hour-price: wanted 0 or more, found {arguments.gpu_hour_price}")
    if arguments.seed < 0:
        raise ArgumentError(f"seed: wanted 0 or more, found {arguments.seed}")
    _check_trace(arguments.trace)
    return Checked(
        spec=spec,
        knobs=knobs,
        calibration=usable_calibration(arguments.calibration, objective),
        cold_start=parse_cold_start(arguments.cold_start),
        objective=objective,
    )


def usable_calibration(name: str, objective: Objective) -> Calibration:
    """A calibration of the package, by name or alias, that meets the objective at least with one request in a replica."""
    if name not in CALIBRATION_ALIASES:
        try:
            found = load_calibration(name)
        except CalibrationError as error:
            aliases = ", ".join(f"{alias} ({full})" for alias, full in CALIBRATION_ALIASES.items())
            raise CalibrationError(f"{error}; short names are {aliases}") from None
    else:
        found = load_calibration(CALIBRATION_ALIASES[name])
    empty_s = found.step.a_s
    if empty_s >= PLANNED_TPOT_SHARE * objective.tpot_s:
        raise CalibrationError(
            f"calibration {found.name!r} cannot meet the objective at any load: step.aS, the time of an empty step, is"
            f" {empty_s * 1e3:.4g} ms, and tpot={objective.tpot_s * 1e3:g}ms leaves"
            f" {PLANNED_TPOT_SHARE * objective.tpot_s * 1e3:.4g} ms of it to plan with"
        )
    if empty_s >= objective.ttft_s:
        raise CalibrationError(
            f"calibration {found.name!r} cannot meet the objective at any load: step.aS, the time of an empty step, is"
            f" {empty_s * 1e3:.4g} ms, and ttft={objective.ttft_s * 1e3:g}ms is less"
        )
    return found


def parse_objective(text: str) -> Objective:
    """`ttft=2s,tpot=100ms,attainment=99`: durations with their unit, attainment in percent; what is absent has its default."""
    found = Objective()
    seen: set[str] = set()
    for part in text.split(","):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or name not in ("ttft", "tpot", "attainment"):
            raise ArgumentError(
                f"objective: wanted ttft=2s,tpot=100ms,attainment=99 or a part of it, found {part.strip()!r}"
            )
        if name in seen:
            raise ArgumentError(f"objective: {name} is given twice")
        seen.add(name)
        match name:
            case "ttft":
                found = replace(found, ttft_s=duration_s(value, "objective: ttft"))
            case "tpot":
                found = replace(found, tpot_s=duration_s(value, "objective: tpot"))
            case _:
                percent = number(value.removesuffix("%"), "objective: attainment")
                if not 0 < percent < 100:
                    raise ArgumentError(
                        f"objective: attainment: wanted percent above 0 and below 100, found {value}"
                    )
                # 99 / 100 and not 99 * 0.01: the nearest float of the decimal that was meant.
                found = replace(found, attainment=percent / 100)
    return found


def duration_s(text: str, where: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(ms|s)", text)
    value = number(match[1], where) if match else math.nan
    if match is None or not value > 0:
        raise ArgumentError(f"{where}: wanted a duration as 2s or 100ms, found {text!r}")
    return value / 1000 if match[2] == "ms" else value


def number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"{where}: wanted a number, found {text.strip()!r}")
    return value


def _check_trace(trace: TraceArguments) -> None:
    pair = trace.rates is not None, trace.lengths is not None
    if trace.trace is not None and any(pair):
        raise ArgumentError("trace: give --trace, or --rates with --lengths, not both")
    if trace.trace is None and not all(pair):
        raise ArgumentError("trace: wanted --rates FILE.csv and --lengths FILE.npz, or --trace KIND:PATH")
    if trace.arrivals not in set(ArrivalShape):
        raise ArgumentError(f"arrivals: wanted {' or '.join(ArrivalShape)}, found {trace.arrivals!r}")
    if not (math.isfinite(trace.scale) and trace.scale > 0):
        raise ArgumentError(f"scale: wanted a number above 0, found {trace.scale:g}")


Progress = Callable[[float], None]
"""Told the seconds of simulated time that are done."""


def trace_files(trace: TraceArguments) -> list[Path]:
    """What is read, for hashes."""
    path = trace.trace.partition(":")[2] if trace.trace else ""
    named = [Path(p) for p in (trace.rates, trace.lengths) if p] or ([Path(path)] if path else [])
    return [p for p in named if p.is_file()]


def execute_on(
    source: TraceSource, found: Checked, arguments: RunArguments, progress: Progress | None = None
) -> RunResult:
    """The run, with what was run in `setup`."""
    hashed = _Hashed(source)
    setup = FleetSetup(
        calibration=found.calibration,
        objective=found.objective,
        min_replicas=arguments.min_replicas,
        max_replicas=arguments.max_replicas,
        cold_start=found.cold_start,
        seed=arguments.seed,
        gpu_hour_cost=arguments.gpu_hour_price,
        policy_name=found.spec.name,
    )
    policy = found.spec.build(found.knobs)
    result = fleet.run(hashed, policy, setup, progress, foresees=found.spec.foresees)
    return replace(result, setup={**result.setup, **_said(source, found, arguments), "arrivals_sha256": hashed.digest()})  # fmt: skip


def _said(source: TraceSource, found: Checked, arguments: RunArguments) -> dict[str, str | int | float]:
    return {
        "trace": source.describe,
        "days": arguments.trace.days or "all",
        "scale": arguments.trace.scale,
        "arrivals": arguments.trace.arrivals,
        "policy": found.spec.name,
        "knobs": ",".join(f"{name}={value:g}" for name, value in found.knobs.items()),
        "calibration": found.calibration.name,
        "cold_start": arguments.cold_start,
        "objective": arguments.objective,
        "attainment": found.objective.attainment,
        "min_replicas": arguments.min_replicas,
        "max_replicas": arguments.max_replicas,
        "gpu_hour_price": arguments.gpu_hour_price,
        "seed": arguments.seed,
    }


class _Hashed:
    """A source that remembers what it gave. A call from zero begins anew: foresight has walked the trace before the run does."""

    def __init__(self, source: TraceSource) -> None:
        self._source = source
        self.name, self.duration_s = source.name, source.duration_s
        self._digests = [hashlib.sha256() for _ in range(4)]

    def between(self, start_s: float, end_s: float) -> Arrivals:
        found = self._source.between(start_s, end_s)
        if start_s <= 0:
            self._digests = [hashlib.sha256() for _ in range(4)]
        parts = (found.at_s, found.input_tokens, found.output_tokens, found.cached_tokens)
        for digest, part in zip(self._digests, parts, strict=True):
            digest.update(np.ascontiguousarray(part).data)
        return found

    def digest(self) -> str:
        """sha256 over the four sha256 of times, prompts, outputs and cached prompts: no cut into intervals changes it."""
        return hashlib.sha256(b"".join(d.digest() for d in self._digests)).hexdigest()


def execute(arguments: RunArguments, progress: Progress | None = None) -> RunResult:
    """Raises what `checked` and `opened` raise."""
    found = checked(arguments)
    return execute_on(opened(arguments.trace, arguments.seed), found, arguments, progress)


def execute_to_json(arguments: RunArguments) -> dict[str, Any]:
    """For another process, and for the cache: without the decisions, which nobody compares."""
    result = execute(arguments)
    return {
        "arguments": arguments.to_json(),
        "summary": result.summary.to_json(),
        "compile_s": result.compile_s,
        "setup": result.setup,
        "extra": result.extra,
        "timeline": asdict(result.timeline),
    }
