"""What the core is plugged into, as small Protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .effects import Effect
from .events import Event, Outcome


class Brain(Protocol):
    """The core, as the I/O side sees it. Calls never overlap; one thread."""

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        """now: monotonic seconds; wall: unix seconds. Deterministic; never raises for anything the world can send."""
        ...


class Jitter(Protocol):
    """Chance, injected: random.Random has this method."""

    def uniform(self, a: float, b: float, /) -> float: ...


class EffectRunner(Protocol):
    """The I/O side, as tests see it."""

    async def run(self, effect: Effect) -> Outcome: ...
