"""Where fleets and replica pods come from: Kubernetes, or a file. Both tell a World; none decides anything.

A source keeps its last view when what it watches is away, and says `synced` once it has told everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from moefleet_gateway.picking.facts import Fleet, Replica


class World(Protocol):
    """Who is told. Gateway implements it."""

    def put_fleets(self, fleets: Iterable[Fleet]) -> None:
        """All fleets, each time."""

    def put_replica(self, replica: Replica) -> None: ...

    def drop_replica(self, uid: str) -> None: ...


class Source(Protocol):
    async def run(self, world: World, synced: Callable[[], None]) -> None:
        """Runs until cancelled."""


class SourceError(ValueError):
    """The source cannot be read at all; the message says what was wanted and found."""
