"""Which effect runs when: at most so many at a time, a few for each fleet, fleets taking turns, each started in its order."""

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
# Effects that a fleet starts in one turn: twenty replicas with all that is around them. What changes together is answered
# together: the controllers of endpoints and budgets write once for many pods of a Service, and we once for a status. With turns
# of one, a thousand replicas in fifty fleets came one by one everywhere, and every one of them cost all of those writes.
TURN: Final = 32

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    waiting: deque[T] = field(default_factory=deque)
    running: int = 0
    # Starts left in its turn.
    left: int = TURN
    in_line: bool = False


class Lanes(Generic[T]):
    def __init__(
        self,
        start: Callable[[Key, T], None],
        running_max: int = RUNNING_MAX,
        per_fleet_max: int = RUNNING_PER_FLEET_MAX,
        turn: int = TURN,
    ) -> None:
        self._start = start
        self._running_max = running_max
        self._per_fleet_max = per_fleet_max
        self._turn = turn
        self._lanes: dict[Key, _Lane[T]] = {}
        # Lanes that may start something, in the order of their turns.
        self._line: deque[Key] = deque()
        self._running = 0
        self._waiting = 0

    def add(self, fleet: Key, job: T) -> None:
        lane = self._lanes.get(fleet)
        if lane is None:
            lane = self._lanes[fleet] = _Lane(left=self._turn)
        lane.waiting.append(job)
        self._waiting += 1
        self._line_up(fleet, lane)
        self._pump()

    def ended(self, fleet: Key) -> None:
        lane = self._lanes[fleet]
        lane.running -= 1
        self._running -= 1
        if lane.waiting:
            self._line_up(fleet, lane)
        elif lane.running == 0:
            del self._lanes[fleet]
        self._pump()

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def running(self) -> int:
        return self._running

    def _line_up(self, fleet: Key, lane: _Lane[T]) -> None:
        """At the end of the line; in front when its turn was only held up by its own bound."""
        if lane.in_line or not lane.waiting or lane.running >= self._per_fleet_max:
            return
        lane.in_line = True
        if lane.left < self._turn:
            self._line.appendleft(fleet)
        else:
            self._line.append(fleet)

    def _pump(self) -> None:
        while self._line and self._running < self._running_max:
            fleet = self._line.popleft()
            lane = self._lanes[fleet]
            lane.in_line = False
            job = lane.waiting.popleft()
            self._waiting -= 1
            lane.running += 1
            self._running += 1
            lane.left -= 1
            if lane.left == 0:
                lane.left = self._turn
            self._line_up(fleet, lane)
            self._start(fleet, job)


def fleet_of(effect: Effect) -> Key:
    """Replicas carry their fleet in their name; everything else has the fleet's own name."""
    replica = parse_pod_name(effect.object.name)
    return Key(effect.object.namespace, replica.fleet) if replica is not None else effect.object
