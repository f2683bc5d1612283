"""What a plan wants changed about the replicas, before it becomes steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .observed import Replica

# What a rollout does now; the same words as in status.rollout.step.
StandStep = Literal["Surge", "InPlace", "Wait", "Canary", "Undone"]


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a rollout is, in one word and one sentence."""

    step: StandStep
    message: str


@dataclass(frozen=True, slots=True)
class Leaving:
    replica: Replica
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Making:
    """So many replicas of one revision."""

    rendered: RenderedPod
    count: int
    reason: str
    message: str


@dataclass(slots=True)
class Shape:
    drain: list[Leaving] = field(default_factory=list)
    resume: list[Replica] = field(default_factory=list)
    resume_message: str = ""
    create: list[Making] = field(default_factory=list)
    # RolloutHeld and CapacityLimited.
    held: Problem | None = None
    limited: Problem | None = None
    # Disrupted.
    disrupted: Problem | None = None
    # None: no rollout is on its way.
    stand: Stand | None = None
    wake_at: float | None = None

    def wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    def make(self, rendered: RenderedPod, count: int, message: str, reason: str = reasons.SCALING_UP) -> None:
        if count > 0:
            self.create.append(Making(rendered, count, reason, message))
