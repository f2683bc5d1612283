"""The life of a replica: which state it is in, and why. Pure: events in, a new Life out.

    Starting [-> Fetching] -> Loading -> Warming (a canary prompt gives real tokens) -> Serving <-> Draining -> Drained; Failed from anywhere.

Draining is not a phase but an intent laid over the phase, so that Resume gives back whatever was underneath: a replica
that was told to drain while it loaded goes on loading. The state is derived from phase, intent and streams; it is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import assert_never

from moefleet_runtime.ending import Failure


class State(IntEnum):
    """Numbers of replica.v1.ReplicaState."""

    STARTING = 1
    LOADING = 2
    WARMING = 3
    SERVING = 4
    DRAINING = 5
    DRAINED = 6
    FAILED = 7
    FETCHING = 8


class Phase(IntEnum):
    STARTING = 1
    LOADING = 2
    WARMING = 3
    SERVING = 4
    FETCHING = 8


@dataclass(frozen=True, slots=True)
class Fetching:
    """The weights come over the network; again with each new word about how far they are."""

    message: str


@dataclass(frozen=True, slots=True)
class HostUp:
    """The engine host process runs and makes the engine."""


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """The engine can step: time for the canary."""


@dataclass(frozen=True, slots=True)
class CanaryPassed:
    pass


@dataclass(frozen=True, slots=True)
class CanaryFailed:
    message: str


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step failed the requests in it; the engine must prove itself again before it gets new ones."""

    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot go on."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class DrainWanted:
    reason: str


@dataclass(frozen=True, slots=True)
class ResumeWanted:
    pass


@dataclass(frozen=True, slots=True)
class Terminated:
    """SIGTERM: a drain that cannot be undone."""


@dataclass(frozen=True, slots=True)
class StreamsChanged:
    active: int


Event = (
    Fetching
    | HostUp
    | EngineStarted
    | CanaryPassed
    | CanaryFailed
    | StepFailed
    | Failed
    | DrainWanted
    | ResumeWanted
    | Terminated
    | StreamsChanged
)


@dataclass(frozen=True, slots=True)
class Life:
    born_s: float
    phase: Phase = Phase.STARTING
    message: str = "the engine host process starts"
    # ScaleDown, Rollout, Eviction, Terminated; None: takes work when Serving.
    drain: str | None = None
    drain_since_s: float | None = None
    terminated: bool = False
    # Streams that run, waiting ones included.
    active: int = 0
    failure: Failure | None = None
    # From the start of the process to the first Serving; 0 until then.
    start_s: float = 0.0
    # From the start of the process until the engine could step for the first time; 0 until then.
    load_s: float = 0.0

    @property
    def state(self) -> State:
        if self.failure:
            return State.FAILED
        if self.drain:
            return State.DRAINING if self.active else State.DRAINED
        return State(self.phase)

    @property
    def takes_work(self) -> bool:
        return self.state is State.SERVING

    @property
    def live(self) -> bool:
        return self.failure is None

    @property
    def explanation(self) -> str:
        """For people; empty while Serving."""
        if self.failure:
            return f"{self.failure.reason}: {self.failure.message}"
        if self.drain:
            left = f"{self.active} streams left" if self.active else "no stream left"
            return f"drains ({self.drain}), {left}"
        return self.message

    @property
    def over(self) -> bool:
        """Nothing is left to wait for: the process can end."""
        return self.failure is not None or (self.terminated and self.active == 0)


def advance(life: Life, event: Event, now_s: float) -> Life:
    """What does not apply changes nothing: events come from several sides and may cross."""
    if life.failure and not isinstance(event, StreamsChanged):
        return life
    match event:
        case Fetching(message):
            if life.phase not in (Phase.STARTING, Phase.FETCHING):
                return life
            return replace(life, phase=Phase.FETCHING, message=message)
        case HostUp():
            if life.phase not in (Phase.STARTING, Phase.FETCHING):
                return life
            return replace(life, phase=Phase.LOADING, message="the engine loads")
        case EngineStarted():
            if life.phase not in (Phase.STARTING, Phase.LOADING):
                return life
            load_s = life.load_s or max(now_s - life.born_s, 1e-6)
            return replace(life, phase=Phase.WARMING, message="the canary prompt runs", load_s=load_s)
        case CanaryPassed():
            if life.phase is not Phase.WARMING:
                return life
            start_s = life.start_s or max(now_s - life.born_s, 1e-6)
            return replace(life, phase=Phase.SERVING, message="", start_s=start_s)
        case CanaryFailed(message):
            return replace(life, failure=Failure("CanaryFailed", message))
        case StepFailed(message):
            # While Warming it is the canary's own business: it fails or passes.
            if life.phase is not Phase.SERVING:
                return life
            return replace(
                life, phase=Phase.WARMING, message=f"a step failed, the canary runs again: {message}"
            )
        case Failed(failure):
            return replace(life, failure=failure)
        case DrainWanted(reason):
            return life if life.drain else replace(life, drain=reason, drain_since_s=now_s)
        case ResumeWanted():
            return life if life.terminated else replace(life, drain=None, drain_since_s=None)
        case Terminated():
            if life.terminated:
                return life
            return replace(life, terminated=True, drain=life.drain or "Terminated", drain_since_s=now_s)
        case StreamsChanged(active):
            return replace(life, active=active)
        case _:
            assert_never(event)
