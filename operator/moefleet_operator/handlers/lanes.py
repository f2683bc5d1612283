"""Which effect runs when: at most so many at a time, a few for each fleet, fleets taking turns, started in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from moefleet_operator.core.effects import Effect
from moefleet_operator.core.events import Key
from moefleet_operator.names import parse_pod_name

# Writes at the same time: as many as connections, so nothing waits inside the HTTP client, unseen.
RUNNING_MAX: Final = 32
# Of one fleet: a fleet of 100 new replicas leaves room for the others.
RUNNING_PER_FLEET_MAX: Final = 8

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    waiting: deque[T] = field(default_factory=deque)
    running: int = 0


class Lanes(Generic[T]):
    def __init__(
        self,
        start: Callable[[Key, T], None],
        running_max: int = RUNNING_MAX,
        per_fleet_max: int = RUNNING_PER_FLEET_MAX,
    ) -> None:
        self._start = start
        self._running_max = running_max
        self._per_fleet_max = per_fleet_max
        self._lanes: dict[Key, _Lane[T]] = {}
        # Lanes with something to start, in the order of their turns.
        self._turns: deque[Key] = deque()
        self._running = 0

    def add(self, fleet: Key, job: T) -> None:
        lane = self._lanes.setdefault(fleet, _Lane())
        lane.waiting.append(job)
        if len(lane.waiting) == 1 and lane.running < self._per_fleet_max:
            self._turns.append(fleet)
        self._pump()

    def ended(self, fleet: Key) -> None:
        lane = self._lanes[fleet]
        lane.running -= 1
        self._running -= 1
        if lane.waiting and lane.running == self._per_fleet_max - 1:
            self._turns.append(fleet)
        elif not lane.waiting and lane.running == 0:
            del self._lanes[fleet]
        self._pump()

    @property
    def waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def running(self) -> int:
        return self._running

    def _pump(self) -> None:
        while self._turns and self._running < self._running_max:
            fleet = self._turns.popleft()
            lane = self._lanes[fleet]
            job = lane.waiting.popleft()
            lane.running += 1
            self._running += 1
            if lane.waiting and lane.running < self._per_fleet_max:
                self._turns.append(fleet)
            self._start(fleet, job)


def fleet_of(effect: Effect) -> Key:
    """Replicas carry their fleet in their name; everything else has the fleet's own name."""
    replica = parse_pod_name(effect.object.name)
    return Key(effect.object.namespace, replica.fleet) if replica is not None else effect.object
