"""From the options of the command line to a source of requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from moefleet_replay.traces.blocks import read_bailian, read_mooncake
from moefleet_replay.traces.demand import read_demand
from moefleet_replay.traces.recorded import replayed
from moefleet_replay.traces.servegen import open_servegen
from moefleet_replay.traces.source import ArrivalShape, TraceError, TraceSource
from moefleet_replay.traces.synthetic import open_synthetic
from moefleet_replay.traces.tables import read_azure, read_burstgpt


class Kind(StrEnum):
    """What stands before the colon of --trace."""

    AZURE = "azure"
    MOONCAKE = "mooncake"
    BURSTGPT = "burstgpt"
    BAILIAN = "bailian"
    # moefleet's own recording.
    DEMAND = "demand"
    SYNTHETIC = "synthetic"


KINDS = tuple(kind.value for kind in Kind)


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Either rates and lengths, or trace ("KIND:PATH", "synthetic:NAME,parameter=value,...")."""

    rates: Path | None = None
    lengths: Path | None = None
    trace: str | None = None
    # From and to, in days from the trace's zero; all of it when None.
    days: tuple[float, float] | None = None
    # Multiplies the rate of a trace of rates; copies or thins a trace of requests.
    scale: float = 1.0
    # Matters to rates and lengths only.
    arrivals: ArrivalShape = ArrivalShape.LINEAR
    seed: int = 0


def open_trace(spec: TraceSpec) -> TraceSource:
    """TraceError for everything that cannot be run."""
    if spec.seed < 0:
        raise TraceError(f"seed: wanted 0 or more, found {spec.seed}")
    if spec.trace is None:
        if spec.rates is None or spec.lengths is None:
            raise TraceError("rates, lengths: wanted both, or a trace instead")
        return open_servegen(
            spec.rates,
            spec.lengths,
            days=spec.days,
            scale=spec.scale,
            arrivals=spec.arrivals,
            seed=spec.seed,
        )
    if spec.rates is not None or spec.lengths is not None:
        raise TraceError("trace: cannot be together with rates or lengths")
    kind, colon, rest = spec.trace.partition(":")
    if kind not in KINDS or not colon or not rest:
        raise TraceError(f"trace: wanted KIND:PATH with KIND one of {', '.join(KINDS)}; found {spec.trace!r}")
    return _open(Kind(kind), rest, spec)


def parse_days(text: str) -> tuple[float, float]:
    """A:B."""
    first, colon, last = text.partition(":")
    try:
        if colon:
            return float(first), float(last)
    except ValueError:
        pass
    raise TraceError(f"days: wanted A:B, two numbers, found {text!r}")


def _open(kind: Kind, rest: str, spec: TraceSpec) -> TraceSource:
    path = Path(rest)
    warnings: tuple[str, ...] = ()
    duration_s: float | None = None
    match kind:
        case Kind.SYNTHETIC:
            if spec.days is not None:
                raise TraceError("days: a synthetic trace has none; give it duration_s")
            name, *pairs = rest.split(",")
            return open_synthetic(name, _parameters(name, pairs), scale=spec.scale, seed=spec.seed)
        case Kind.AZURE:
            arrivals = read_azure(path)
        case Kind.MOONCAKE:
            arrivals = read_mooncake(path)
        case Kind.BAILIAN:
            arrivals = read_bailian(path)
        case Kind.BURSTGPT:
            arrivals, warnings = read_burstgpt(path)
        case Kind.DEMAND:
            recording = read_demand(path, seed=spec.seed)
            arrivals, warnings, duration_s = recording.arrivals, recording.warnings, recording.duration_s
        case _:
            assert_never(kind)
    return replayed(
        arrivals,
        kind=kind.value,
        file=path.name,
        duration_s=duration_s,
        days=spec.days,
        scale=spec.scale,
        seed=spec.seed,
        warnings=warnings,
    )


def _parameters(name: str, pairs: list[str]) -> dict[str, float]:
    given: dict[str, float] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            if not equals or key in given:
                raise ValueError
            given[key] = float(text)
        except ValueError as error:
            raise TraceError(
                f"synthetic {name}: wanted parameter=number once each, found {pair!r}"
            ) from error
    return given
