"""What the core is plugged into, as small Protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Replica

from .effects import Effect
from .events import Event, Json, Key, Outcome


class Brain(Protocol):
    """The core, as the I/O side sees it. Calls never overlap; one thread."""

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        """now: monotonic seconds; wall: unix seconds. Deterministic; never raises for anything the world can send."""
        ...


class View(Protocol):
    """What telemetry, scaling and metrics read of the core between two events, on the same thread. `Core` has these."""

    def leading(self, now: float) -> bool: ...

    @property
    def errors(self) -> Mapping[Key, str]:
        """Fleets whose last plan ended in an internal error."""
        ...

    def fleets(self) -> Mapping[Key, Json]:
        """MoEFleets as the API server has them (spec, status and metadata.uid are enough), deleted ones not."""
        ...

    def target(self, fleet: Key) -> int | None:
        """The number of replicas that the planner steers to; None while it is not known."""
        ...

    def remembers(self, fleet: Key) -> bool:
        """Whether it still knows what scaling said of this fleet: it forgets that when it stops leading, be it for a moment."""
        ...

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        """Replica pods of the fleet, draining and terminating ones too."""
        ...

    def gateways(self) -> Sequence[PodFacts]:
        """Gateway pods that are not terminating or finished, ready or not."""
        ...


class Jitter(Protocol):
    """Chance, injected: random.Random has this method."""

    def uniform(self, a: float, b: float, /) -> float: ...


class EffectRunner(Protocol):
    """The I/O side, as tests see it."""

    async def run(self, effect: Effect) -> Outcome: ...
