"""The scaling tick and fleets that sleep: woken between two ticks, by nothing but a call; and clocks that are set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from moefleet_operator.core.events import DecisionMade, Event, Json, Key, NumbersMeasured
from moefleet_operator.handlers.policy import told_cold_starts_s, told_target
from moefleet_operator.handlers.sizing import Sizing
from moefleet_operator.metrics import Metrics
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import DemandTotals, Policy, Queue, Sample, Supply
from moefleet_operator.telemetry import Figures, TelemetryHub
from moefleet_testing.builders import NOW

CHAT = Key("models", "chat")


class Clock:
    def __init__(self) -> None:
        self.mono_s, self.offset_s = 0.0, NOW

    def now(self) -> float:
        return self.mono_s

    def wall(self) -> float:
        return self.mono_s + self.offset_s

    async def sleep(self, seconds: float) -> None:
        self.mono_s += seconds


class World:
    """The core's view of one fleet without pods."""

    errors: Mapping[Key, str] = {}

    def __init__(self) -> None:
        self.raw: Json = asleep()
        self.wanted: int | None = 0

    def leading(self, now: float) -> bool:
        return True

    def fleets(self) -> Mapping[Key, Json]:
        return {CHAT: self.raw}

    def remembers(self, fleet: Key) -> bool:
        return True

    def target(self, fleet: Key) -> int | None:
        return self.wanted

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        return []

    def gateways(self) -> Sequence[PodFacts]:
        return []


class Hub(TelemetryHub):
    def __init__(self) -> None:
        self.arrivals, self.waiting = 0.0, 0
        self.supplies: list[Supply] = []

    def sample(self, fleet: Key, policy: Policy, supply: Supply, now: float) -> Sample:
        self.supplies.append(supply)
        demand = DemandTotals(
            arrivals=self.arrivals, prompt_tokens=100 * self.arrivals, output_tokens=10 * self.arrivals
        )
        return Sample(policy, supply, demand, queue=Queue(requests=self.waiting))

    def calls(self, fleet: Key) -> tuple[float, int]:
        return self.arrivals, self.waiting

    def history(self, fleet: Key, now: float) -> list[Any]:
        return []

    def figures(self, fleet: Key, *, ttft_limit_s: float, tpot_limit_s: float) -> Figures:
        return Figures()


def asleep(**status: Any) -> Json:
    return {
        "metadata": {"namespace": "models", "name": "chat", "uid": "fleet-uid"},
        "spec": {
            "model": {"name": "tiny", "source": "file:///models/tiny"},
            "engine": {"type": "Simulated", "image": "runtime:1"},
            "scaling": {"minReplicas": 1, "maxReplicas": 4, "idle": {"scaleToZeroAfter": "10m"}},
        },
        "status": {"desiredReplicas": 0, **status},
    }


class Desk:
    def __init__(self) -> None:
        self.world, self.hub, self.clock = World(), Hub(), Clock()
        self.told: list[Event] = []
        self.sizing = Sizing(
            view=self.world,
            hub=self.hub,
            emit=self.told.append,
            clock=self.clock,
            metrics=Metrics(),
            sightings=lambda: 0,
        )

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.clock.mono_s += 5.0
            self.sizing.tick()

    @property
    def decisions(self) -> list[tuple[int | None, str]]:
        return [(e.replicas, e.reason) for e in self.told if isinstance(e, DecisionMade)]


@pytest.mark.parametrize("waiting", [1, 0], ids=["held", "sent away"])
def test_a_call_is_decided_on_before_the_next_tick(waiting: int) -> None:
    desk = Desk()
    desk.ticks(3)
    desk.sizing.wake()
    assert desk.decisions[-1][0] == 0
    desk.clock.mono_s += 0.5
    desk.hub.arrivals, desk.hub.waiting = 1.0, waiting
    desk.sizing.wake()
    assert desk.decisions[-1] == (1, "Waking")
    desk.world.wanted = 1
    before = len(desk.hub.supplies)
    desk.sizing.wake()
    assert len(desk.hub.supplies) == before, "one that is awake waits for the tick"


def test_a_new_leader_leaves_the_sleeping_alone_although_no_plan_was_made_yet() -> None:
    desk = Desk()
    desk.world.wanted = None
    desk.ticks(30)
    assert {replicas for replicas, _ in desk.decisions} == {0}


def test_what_an_operator_before_us_measured_counts_until_we_have_seen_a_start() -> None:
    desk = Desk()
    desk.world.raw = asleep(coldStart={"p50": "30s", "p90": "45s"})
    desk.ticks(1)
    assert desk.hub.supplies[-1].cold_starts_s == (30.0, 45.0)
    # It is not taken for our own, or the median would become the slowest with every restart.
    assert not any(e.numbers.get("coldStart") for e in desk.told if isinstance(e, NumbersMeasured))


@pytest.mark.parametrize(
    ("status", "target", "starts"),
    [
        ({}, 2, ()),
        ({"desiredReplicas": 0}, 0, ()),
        ({"desiredReplicas": "3"}, 2, ()),
        ({"coldStart": {"p50": "1m30s"}}, 2, (90.0,)),
        ({"coldStart": {"p50": "soon", "p90": "5s"}}, 2, ()),
    ],
)
def test_what_a_status_says(status: Json, target: int, starts: tuple[float, ...]) -> None:
    raw = {"status": status}
    assert told_target(raw, 2) == target
    assert told_cold_starts_s(raw) == starts


@pytest.mark.parametrize("by_s", [-7200.0, 3600.0, 86_400.0])
def test_a_clock_that_is_set_puts_nobody_to_sleep(by_s: float) -> None:
    desk = Desk()
    desk.world.raw, desk.world.wanted = asleep(desiredReplicas=1), 1
    for _ in range(80):
        desk.hub.arrivals += 1
        desk.ticks(1)
    desk.clock.offset_s += by_s
    desk.ticks(60)
    assert {replicas for replicas, _ in desk.decisions} == {1}, "five minutes of silence are not ten"
