"""A study: which policies, on which traffic, with which chance, judged by which criterion. Read from one TOML file.

Pure but for reading that file: running is compare_runs, judging is compare_verdict, showing is report.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moefleet_replay.compare_run import RunArguments, TraceArguments, checked
from moefleet_replay.policies import REGISTRY
from moefleet_replay.policies import checked as checked_knobs
from moefleet_replay.policy import PolicyError, PolicySpec

# A knob whose range spans this factor is spread by equal ratios, others by equal steps.
GEOMETRIC_FROM: Final = 10.0


class StudyError(ValueError):
    """The text names the file and the field, what was wanted and what was found."""


@dataclass(frozen=True, slots=True)
class Criterion:
    ours: str
    oracle: str
    # The policy whose scaling actions are the bound of ours.
    calm: str
    # Shares 0 to 1, and ratios of ours to theirs.
    attainment: float
    peers_ratio: float
    oracle_ratio: float
    actions_ratio: float


@dataclass(frozen=True, slots=True)
class Segment:
    name: str
    trace: TraceArguments
    # The criterion sums over it.
    headline: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy at one value of its knob; `text` is what --policy takes."""

    policy: str
    text: str
    # None: a policy without a knob that is turned.
    knob: str | None
    value: float
    default: bool


@dataclass(frozen=True, slots=True)
class Pruning:
    enabled: bool
    # Half width that stands for a confidence interval while there is one seed.
    one_seed_margin: float


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    criterion: Criterion
    segments: tuple[Segment, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    calibrations: tuple[str, ...]
    # Segments that settings are tuned on to be judged on the others; empty: none.
    tuning: tuple[str, ...]
    pruning: Pruning
    # What every run shares; trace, policy, calibration and seed are filled in by `arguments`.
    common: RunArguments
    # sha256 of the file.
    digest: str

    @property
    def headline(self) -> tuple[Segment, ...]:
        return tuple(s for s in self.segments if s.headline)

    def of(self, policy: str) -> tuple[Setting, ...]:
        return tuple(s for s in self.settings if s.policy == policy)

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.policy for s in self.settings))

    def arguments(self, setting: Setting, segment: Segment, calibration: str, seed: int) -> RunArguments:
        c = self.common
        return RunArguments(
            trace=segment.trace, policy=setting.text, calibration=calibration, cold_start=c.cold_start,
            objective=c.objective, min_replicas=c.min_replicas, max_replicas=c.max_replicas,
            gpu_hour_price=c.gpu_hour_price, seed=seed,
        )  # fmt: skip


def load_study(path: Path, traces: Path, subset: str | None = None) -> Study:
    """`traces` is the folder that paths of the study begin at. `subset`: see `narrowed`. Raises StudyError and PolicyError."""
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as a study: {error}") from error
    study = _Reader(path, traces).study(data, hashlib.sha256(raw).hexdigest())
    for calibration in study.calibrations:
        # One argument set of each calibration: whatever is wrong with it is said before hours of running.
        checked(study.arguments(study.settings[0], study.segments[0], calibration, study.seeds[0]))
    return narrowed(study, subset) if subset else study


def narrowed(study: Study, subset: str) -> Study:
    """A quick look: `segments=mix shift|m-large 0:2;policies=moefleet|hpa-arrival;seeds=0;calibrations=aic;defaults`.

    Any part may be absent; `defaults` leaves only the default settings. The criterion is then judged on what is left, and the
    report says so.
    """
    segments, settings = study.segments, study.settings
    seeds, calibrations = study.seeds, study.calibrations
    for part in subset.split(";"):
        name, _, text = (p.strip() for p in part.partition("="))
        values = [v.strip() for v in text.split("|")] if text else []
        match name:
            case "segments":
                segments = tuple(
                    s for s in segments if s.name in _known(values, [x.name for x in study.segments], name)
                )
            case "policies":
                settings = tuple(
                    s for s in settings if s.policy in _known(values, list(study.policies), name)
                )
            case "seeds":
                seeds = tuple(int(v) for v in _known(values, [str(x) for x in study.seeds], name))
            case "calibrations":
                calibrations = tuple(_known(values, list(study.calibrations), name))
            case "defaults":
                settings = tuple(s for s in settings if s.default)
            case _:
                raise StudyError(
                    f"subset: wanted segments=, policies=, seeds=, calibrations= or defaults, found {part.strip()!r}"
                )  # fmt: skip
    return Study(
        name=f"{study.name} (subset {subset})", criterion=study.criterion, segments=segments, settings=settings,
        seeds=seeds, calibrations=calibrations, tuning=study.tuning, pruning=study.pruning, common=study.common,
        digest=study.digest,
    )  # fmt: skip


def settings_of(spec: PolicySpec, values: Sequence[float] | None, count: int) -> list[Setting]:
    """The default first, then the values of the knob in order; `count` values over the knob's range where none are given."""
    tuned = [k for k in spec.knobs if k.tuned]
    if not tuned:
        return [Setting(spec.name, spec.name, None, math.nan, True)]
    (knob,) = tuned
    if values is None:
        values = spread(knob.low, knob.high, count)
    made = [Setting(spec.name, spec.name, knob.name, knob.default, True)]
    for value in sorted(set(values) - {knob.default}):
        checked_knobs(spec, {knob.name: value})
        made.append(Setting(spec.name, f"{spec.name}:{knob.name}={value:g}", knob.name, value, False))
    return made


def spread(low: float, high: float, count: int) -> list[float]:
    """Inside the range, ends included, three significant digits."""
    if count < 2:
        return [low]
    steps = [i / (count - 1) for i in range(count)]
    if low > 0 and high / low >= GEOMETRIC_FROM:
        values = [low * (high / low) ** s for s in steps]
    else:
        values = [low + (high - low) * s for s in steps]
    return [min(max(float(f"{v:.3g}"), low), high) for v in values]


class _Reader:
    """Fields of the file, each error with the path to it."""

    def __init__(self, path: Path, traces: Path) -> None:
        self._path, self._traces = path, traces

    def study(self, data: Mapping[str, Any], digest: str) -> Study:
        criterion = self._table(data, "criterion")
        setup = self._table(data, "setup")
        segments = tuple(self._segment(s, i) for i, s in enumerate(self._list(data, "segments", dict)))
        names = [s.name for s in segments]
        if len(set(names)) < len(names) or not any(s.headline for s in segments):
            raise self._wrong("segments", "names that differ and at least one with headline = true", names)
        tuning = tuple(self._list(data["tuning"], "segments", str)) if "tuning" in data else ()
        if unknown := set(tuning) - set(names):
            raise self._wrong("tuning.segments", f"names of {names}", sorted(unknown))
        pruning = self._table(data, "pruning")

        def number(field: str) -> float:
            return self._number(criterion, f"criterion.{field}")

        roles = {f: str(criterion.get(f)) for f in ("ours", "oracle", "calm")}
        for role, policy in roles.items():
            if policy not in REGISTRY:
                raise PolicyError(
                    f"{self._path}: criterion.{role}: policy {policy!r} is unknown; there are {', '.join(REGISTRY)}"
                )
        return Study(
            name=str(data.get("name", self._path.stem)),
            criterion=Criterion(
                ours=roles["ours"], oracle=roles["oracle"], calm=roles["calm"], attainment=number("attainment"),
                peers_ratio=number("peers_ratio"), oracle_ratio=number("oracle_ratio"), actions_ratio=number("actions_ratio"),
            ),
            segments=segments,
            settings=tuple(self._settings(data.get("policies", {}))),
            seeds=tuple(self._list(setup, "seeds", int)),
            calibrations=tuple(self._list(setup, "calibrations", str)),
            tuning=tuning,
            pruning=Pruning(pruning.get("enabled") is True, self._number(pruning, "pruning.one_seed_margin")),
            common=RunArguments(
                trace=segments[0].trace, policy=roles["ours"], cold_start=str(setup.get("cold_start")),
                objective=str(setup.get("objective")), min_replicas=int(self._number(setup, "setup.min")),
                max_replicas=int(self._number(setup, "setup.max")),
                gpu_hour_price=self._number(setup, "setup.gpu_hour_price"),
            ),
            digest=digest,
        )  # fmt: skip

    def _segment(self, data: Mapping[str, Any], index: int) -> Segment:
        where = f"segments[{index}]"
        known = {"name", "rates", "lengths", "trace", "days", "scale", "headline", "arrivals"}
        if unknown := set(data) - known:
            raise self._wrong(where, f"fields of {sorted(known)}", sorted(unknown))
        if not isinstance(data.get("name"), str):
            raise self._wrong(f"{where}.name", "text", data.get("name"))
        kind, colon, path = str(data.get("trace", "")).partition(":")
        trace = TraceArguments(
            rates=str(self._traces / data["rates"]) if "rates" in data else None,
            lengths=str(self._traces / data["lengths"]) if "lengths" in data else None,
            # A path begins at the folder of the traces; what synthetic takes is no path.
            trace=(f"{kind}:{path}" if kind == "synthetic" else f"{kind}{colon}{self._traces / path}") if kind else None,
            days=data.get("days"),
            scale=float(data.get("scale", 1.0)),
            arrivals=data.get("arrivals", "linear"),
        )  # fmt: skip
        return Segment(data["name"], trace, data.get("headline") is True)

    def _settings(self, data: Mapping[str, Any]) -> list[Setting]:
        grid = data.get("grid", {})
        count = int(data.get("settings", 8))
        only = data.get("only", list(REGISTRY))
        for name in (*grid, *only):
            if name not in REGISTRY:
                raise PolicyError(
                    f"{self._path}: policies: {name!r} is unknown; there are {', '.join(REGISTRY)}"
                )
        return [s for name in REGISTRY if name in only for s in settings_of(REGISTRY[name], grid.get(name), count)]  # fmt: skip

    def _table(self, data: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        found = data.get(field)
        if not isinstance(found, Mapping):
            raise self._wrong(field, "a table", found)
        return found

    def _list(self, data: Mapping[str, Any], field: str, kind: type) -> list[Any]:
        found = data.get(field)
        if not isinstance(found, list) or not found or not all(isinstance(v, kind) for v in found):
            raise self._wrong(field, f"a list of {kind.__name__}", found)
        return found

    def _number(self, data: Mapping[str, Any], field: str) -> float:
        found = data.get(field.rpartition(".")[2])
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._wrong(field, "a number", found)
        return float(found)

    def _wrong(self, field: str, wanted: str, found: object) -> StudyError:
        return StudyError(f"{self._path}: {field}: wanted {wanted}, found {found!r}")


def _known(values: Sequence[str], known: Sequence[str], field: str) -> list[str]:
    if unknown := [v for v in values if v not in known] or (["nothing"] if not values else []):
        raise StudyError(f"subset: {field}: {', '.join(unknown)} unknown; there are {', '.join(known)}")
    return list(values)
