"""The process in a pod: starts, serves streams, refuses while it drains, hangs, ends when told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from moefleet_operator.planning.reported import ReplicaLoad, ReplicaState

from .world import World

# Seconds between two reports of a replica that drains.
TELL_S = 10.0


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
    # It answers nobody and makes no tokens; probes fail.
    hung: bool = False
    # When it last changed between idle and busy.
    turned_at: float = 0.0
    _over: list[int] = field(default_factory=list)

    @property
    def answers(self) -> bool:
        return self.alive and not self.hung

    def load(self) -> ReplicaLoad | None:
        """None: nobody hears it."""
        if not self.answers:
            return None
        active = len(self.streams)
        oldest_s = self.world.now - min(s.began for s in self.streams.values()) if active else 0.0
        return ReplicaLoad(self.state, active, 0, 100 * active, oldest_s, str(self.incarnation))

    def serve(self) -> None:
        if self.alive and self.state == "STARTING":
            self._to("SERVING")

    def admit(self, stream: Stream, duration_s: float) -> bool:
        """False: refused before the first byte."""
        if not self.alive or self.state != "SERVING":
            return False
        if not self.streams:
            self.turned_at = self.world.now
        self.streams[stream.id] = stream
        self.changed(self)
        self.world.after(duration_s, lambda: self._finish(stream.id))
        return True

    def cancel(self, stream_id: int) -> None:
        """Whoever asked is gone."""
        if self.streams.pop(stream_id, None) is not None:
            self._one_less()

    def drain(self) -> ReplicaState:
        if self.state == "SERVING":
            self._to("DRAINING" if self.streams else "DRAINED")
            self.world.after(TELL_S, self._tell)
        return self.state

    def _tell(self) -> None:
        """Tokens are made all the while, so it says something new all the while; here as often as matters."""
        if self.state == "DRAINING" and self.alive:
            self.changed(self)
            self.world.after(TELL_S, self._tell)

    def resume(self) -> bool:
        if not self.alive or self.terminated or self.state not in ("SERVING", "DRAINING", "DRAINED"):
            return False
        self._to("SERVING")
        return True

    def hang(self) -> None:
        self.hung = True
        self.changed(self)

    def unhang(self) -> None:
        self.hung = False
        over, self._over = self._over, []
        for stream_id in over:
            self._finish(stream_id)
        self.changed(self)

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
        if self.hung:
            self._over.append(stream_id)
            return
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        stream.ended(True)
        self._one_less()

    def _one_less(self) -> None:
        if not self.streams:
            self.turned_at = self.world.now
        if self.state == "DRAINING" and not self.streams:
            self._to("DRAINED")
        else:
            self.changed(self)

    def _to(self, state: ReplicaState) -> None:
        self.state = state
        self.changed(self)
