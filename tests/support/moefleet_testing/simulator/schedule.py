"""What will happen in a story, drawn from its seed before it begins: fleets, and episodes of acts and faults.

A schedule is data, so that a failing one can be made shorter by leaving acts out; an act's place in the list is its number.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

Strategy = Literal["Auto", "Surge", "InPlace"]
Mode = Literal["Automatic", "External", "Advisory"]

# A story is at least so long; what its episodes leave of it is idle.
LENGTH_S = 7200.0
# Fault kinds drawn for a story, of which at least MIN_FAULTS happen.
FAULT_KINDS_MIN, FAULT_KINDS_MAX = 4, 8
MIN_FAULTS = 3

# What users and owners of the cluster do in good order, with weights.
USER_ACTS: dict[str, int] = {
    "scale": 6,
    "edit": 3,
    "edit-burst": 2,
    "revert": 2,
    "down-and-up": 2,
    "bounds": 1,
    "mode": 1,
    "strategy": 1,
    "sleep": 1,
    "recreate": 1,
    "delete-foreground": 1,
    "node-added": 1,
    "traffic-burst": 4,
    "traffic-long": 3,
}
# Faults of what the operator needs: they may slow it down, and never cost a request or a stream.
CONTROL_FAULTS = (
    "leader-killed",
    "leader-killed-at-effect",
    "leader-stopped",
    "leader-frozen",
    "lease-cut",
    "clock-jump",
    "api-errors",
    "api-slow",
    "api-throttled",
    "api-away",
    "api-conflicts",
    "watch-lost",
    "watch-cut",
    "watch-twice",
    "watch-disordered",
    "lists-stale",
    "load-unknown",
    "telemetry-lost",
    "gateway-silent",
    "gateway-slow",
)
# Faults that take something away from the fleets.
DATA_FAULTS = (
    "pod-deleted",
    "pod-forced",
    "label-edited",
    "replica-crashed",
    "replica-hung",
    "replica-evicted",
    "slow-start",
    "crash-loop",
    "revision-broken",
    "gateway-killed",
    "node-cordoned",
    "node-drained",
    "node-lost",
    "node-frozen",
    "node-tainted",
    "node-gpu-failed",
    "node-filled",
    "api-restored",
)
FAULTS = CONTROL_FAULTS + DATA_FAULTS


@dataclass(frozen=True, slots=True)
class Act:
    number: int
    # Seconds after its episode began.
    at_s: float
    kind: str
    # Draws in [0, 1): which fleet or object, and how much.
    who: float
    what: float
    long: float


@dataclass(frozen=True, slots=True)
class Episode:
    """Things happen for so long; then faults end and every fleet has to settle."""

    active_s: float
    acts: tuple[Act, ...]
    # Nothing may be written for a while after everything has settled.
    silence: bool


@dataclass(frozen=True, slots=True)
class FleetPlan:
    mode: Mode
    low: int
    high: int
    strategy: Strategy
    stream_s: int
    drain_s: int
    sleeps: bool
    canary_s: int


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    fleets: tuple[FleetPlan, ...]
    spare_nodes: int
    episodes: tuple[Episode, ...]
    # A younger fleet claims the model name of the first.
    rival: bool

    @property
    def acts(self) -> tuple[Act, ...]:
        return tuple(act for episode in self.episodes for act in episode.acts)

    @property
    def fault_kinds(self) -> set[str]:
        return {act.kind for act in self.acts if act.kind in FAULTS}

    def only(self, numbers: Collection[int]) -> Schedule:
        """The same story with these acts alone; episodes without acts are left out."""
        kept = []
        for episode in self.episodes:
            acts = tuple(a for a in episode.acts if a.number in numbers)
            if acts:
                kept.append(replace(episode, acts=acts))
        return replace(self, episodes=tuple(kept))


def draw(seed: int) -> Schedule:
    """The schedule of this seed. The same for every process and machine."""
    rng = random.Random(f"{seed}/schedule")
    fleets = tuple(_fleet(rng) for _ in range(rng.choices((1, 2, 3), (5, 4, 1))[0]))
    kinds = rng.sample(FAULTS, rng.randint(FAULT_KINDS_MIN, FAULT_KINDS_MAX))
    number = 0
    episodes: list[Episode] = []
    for _ in range(rng.randint(6, 9)):
        active_s = rng.choice((60.0, 120.0, 240.0, 420.0))
        acts: list[Act] = []
        at_s = rng.uniform(0.0, 10.0)
        while at_s < active_s and len(acts) < 14:
            fault = rng.random() < 0.4
            kind = rng.choice(kinds) if fault else rng.choices(list(USER_ACTS), list(USER_ACTS.values()))[0]
            acts.append(Act(number, at_s, kind, rng.random(), rng.random(), rng.random()))
            number += 1
            at_s += rng.choice((0.3, 3.0, 12.0, 40.0)) * rng.uniform(0.5, 1.5)
        episodes.append(Episode(active_s, tuple(acts), rng.random() < 0.3))
    number = _enough_faults(rng, kinds, episodes, number)
    return Schedule(seed, fleets, rng.choice((0, 0, 1, 3)), tuple(episodes), rng.random() < 0.15)


def _enough_faults(rng: random.Random, kinds: list[str], episodes: list[Episode], number: int) -> int:
    seen = {a.kind for e in episodes for a in e.acts if a.kind in FAULTS}
    for kind in [k for k in kinds if k not in seen][: max(0, MIN_FAULTS - len(seen))]:
        at = rng.randrange(len(episodes))
        episode = episodes[at]
        act = Act(number, rng.uniform(0.0, episode.active_s), kind, rng.random(), rng.random(), rng.random())
        episodes[at] = replace(episode, acts=(*episode.acts, act))
        number += 1
    return number


def _fleet(rng: random.Random) -> FleetPlan:
    high = rng.choice((1, 2, 2, 3, 4, 6))
    stream_s, drain_s = rng.choice(((20, 25), (20, 25), (90, 100), (240, 300)))
    mode: Mode = rng.choice(("Automatic", "Automatic", "External", "Advisory"))
    strategy: Strategy = rng.choice(("Auto", "Auto", "Surge", "InPlace"))
    return FleetPlan(
        mode,
        rng.randint(1, high),
        high,
        strategy,
        stream_s,
        drain_s,
        rng.random() < 0.4,
        rng.choice((0, 4, 4, 30)),
    )
