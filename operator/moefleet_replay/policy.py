"""A policy says how many replicas there should be: the seam between the fleet and whoever decides.

Ours and every peer's stand behind the same protocol, see the same observation and are driven at their own interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from moefleet_replay.observation import Observation


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer of one tick: replicas that should exist (ready and pending). The fleet clamps it to min and max."""

    replicas: int
    # Why, for the decision log; empty when the algorithm has no words for it.
    reason: str = ""
    # Replicas by what they are kept for, where the algorithm can say; they add up to `replicas`.
    parts: Mapping[str, float] = field(default_factory=dict)


class ScalingPolicy(Protocol):
    """Has memory, has no clock and no chance."""

    @property
    def interval_s(self) -> float: ...

    def decide(self, observation: Observation) -> Wanted: ...


@dataclass(frozen=True, slots=True)
class Knob:
    name: str
    default: float
    low: float
    high: float
    # What it is, with its unit.
    meaning: str
    # True: the one that is turned for a frontier.
    tuned: bool = False


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """An entry of `moefleet policies`."""

    name: str
    summary: str
    # Where the algorithm is published: version, file and lines.
    source: str
    knobs: tuple[Knob, ...]
    build: Callable[[Mapping[str, float]], ScalingPolicy]
    # Needs Observation.foresight.
    foresees: bool = False


class PolicyError(ValueError):
    """The text names the policy or the knob, and what there is instead."""
