"""The process in a pod: starts, serves streams, refuses while it drains, ends when told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from moefleet_operator.planning.reported import ReplicaLoad, ReplicaState

from .world import World


@dataclass(slots=True)
class Stream:
    id: int
    began: float
    ended: Callable[[bool], None]


@dataclass(slots=True)
class Replica:
    world: World
    uid: str
    name: str
    changed: Callable[[Replica], None]
    state: ReplicaState = "STARTING"
    alive: bool = True
    terminated: bool = False
    streams: dict[int, Stream] = field(default_factory=dict)
    incarnation: int = 0

    def load(self) -> ReplicaLoad:
        return ReplicaLoad(
            self.state, len(self.streams), 0, 100 * len(self.streams), 0.0, str(self.incarnation)
        )

    def serve(self) -> None:
        if self.alive and self.state == "STARTING":
            self._to("SERVING")

    def admit(self, stream: Stream, duration_s: float) -> bool:
        """False: refused before the first byte."""
        if not self.alive or self.state != "SERVING":
            return False
        self.streams[stream.id] = stream
        self.changed(self)
        self.world.after(duration_s, lambda: self._finish(stream.id))
        return True

    def drain(self) -> ReplicaState:
        if self.state == "SERVING":
            self._to("DRAINING" if self.streams else "DRAINED")
        return self.state

    def resume(self) -> bool:
        if not self.alive or self.terminated or self.state not in ("SERVING", "DRAINING", "DRAINED"):
            return False
        self._to("SERVING")
        return True

    def terminate(self) -> None:
        """SIGTERM: as drain, but for good."""
        self.terminated = True
        if self.state == "SERVING":
            self.drain()
        elif self.state == "STARTING":
            self._to("DRAINED")

    def die(self) -> list[Stream]:
        """The process is gone; the streams that were cut."""
        self.alive = False
        cut = list(self.streams.values())
        self.streams.clear()
        for stream in cut:
            stream.ended(False)
        self._to("FAILED")
        return cut

    def _finish(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        stream.ended(True)
        if self.state == "DRAINING" and not self.streams:
            self._to("DRAINED")
        else:
            self.changed(self)

    def _to(self, state: ReplicaState) -> None:
        self.state = state
        self.changed(self)
