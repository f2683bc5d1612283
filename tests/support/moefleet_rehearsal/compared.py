"""What a real operator decided, and what the replay of the same demand decides: `compare(folder) -> Compared`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moefleet_perf import load_calibration
from moefleet_replay import fleet, policies
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.observation import Objective
from moefleet_replay.traces import TraceSpec, open_trace

DEMAND, DECISIONS, ABOUT = "demand.jsonl", "decisions.jsonl", "about.json"


@dataclass(frozen=True, slots=True)
class Change:
    """Of the target; seconds since the first recorded sample of demand."""

    at_s: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class MeasuredStarts(ColdStart):
    """The starts as they were; after the last one was used, as the last one."""

    starts_s: tuple[float, ...] = (1.0,)

    def draw_s(self, seed: int, number: int) -> float:
        return self.starts_s[min(number, len(self.starts_s) - 1)]


@dataclass(frozen=True, slots=True)
class Compared:
    real: tuple[Change, ...]
    replayed: tuple[Change, ...]
    duration_s: float

    @property
    def same_share(self) -> float:
        """Of the time, that in which both have the same target."""
        return self._share(lambda a, b: a == b)

    @property
    def near_share(self) -> float:
        """Of the time, that in which the targets differ by at most one."""
        return self._share(lambda a, b: abs(a - b) <= 1)

    @property
    def replica_s(self) -> tuple[float, float]:
        """Replica-seconds that the targets ask for."""
        return self._area(self.real), self._area(self.replayed)

    def target(self, changes: Sequence[Change], at_s: float) -> int:
        return [c for c in changes if c.at_s <= at_s][-1].after

    def table(self) -> list[tuple[float, int, int]]:
        """(second, real target, replayed target) wherever one of them changes."""
        moments = sorted({c.at_s for c in (*self.real, *self.replayed)})
        return [(s, self.target(self.real, s), self.target(self.replayed, s)) for s in moments]

    def _share(self, alike: Any) -> float:
        seconds = range(int(self.duration_s))
        return sum(alike(self.target(self.real, s), self.target(self.replayed, s)) for s in seconds) / len(
            seconds
        )

    def _area(self, changes: Sequence[Change]) -> float:
        return float(sum(self.target(changes, s) for s in range(int(self.duration_s))))


def compare(folder: Path, *, seed: int = 0) -> Compared:
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    zero_s = _first_time_s(folder / DEMAND)
    source = open_trace(TraceSpec(trace=f"demand:{folder / DEMAND}", seed=seed))
    spec, knobs = policies.parse("moefleet")
    result = fleet.run(source, spec.build(knobs), setup_of(about, seed))
    duration_s = min(source.duration_s, about["until_s"] - zero_s)
    played = [Change(d.at_s, d.before, d.after, d.reason) for d in result.decisions]
    return Compared(
        tuple(_only_changes(real_changes(folder, zero_s), duration_s, int(about["initial_replicas"]))),
        tuple(_only_changes(played, duration_s, int(about["initial_replicas"]))),
        duration_s,
    )


def setup_of(about: Mapping[str, Any], seed: int) -> FleetSetup:
    """The fleet as its manifest says, and cold starts as they were measured, in the order of the pods' creation."""
    starts_s = tuple(about["cold_starts_s"])
    return FleetSetup(
        calibration=load_calibration(about["calibration"]),
        objective=Objective(**about["objective"]),
        min_replicas=about["min_replicas"],
        max_replicas=about["max_replicas"],
        cold_start=MeasuredStarts(min(starts_s), max(starts_s), 0.0, starts_s),
        initial_replicas=about["initial_replicas"],
        seed=seed,
        policy_name="moefleet",
        # The rehearsal's clients do.
        max_tokens_told=True,
    )


def real_changes(folder: Path, zero_s: float) -> list[Change]:
    rows = [json.loads(text) for text in (folder / DECISIONS).read_text().splitlines() if text.strip()]
    return [Change(row["at"] - zero_s, row["from"], row["to"], row["reason"]) for row in rows]


def _only_changes(changes: Sequence[Change], until_s: float, first: int) -> list[Change]:
    """Without those that only change the reason; what came before the recording is its first target."""
    found = [Change(0.0, first, first, "")]
    for change in changes:
        if change.before != change.after and 0 <= change.at_s <= until_s:
            found.append(change)
    return found


def _first_time_s(path: Path) -> float:
    with path.open() as file:
        next(file)
        return min(float(json.loads(text)["time_s"]) for text in file)
