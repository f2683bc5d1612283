"""Sleep and wake as timelines: when a fleet may sleep, what wakes it, and that it never sleeps on those who woke it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator.scaling import (
    Decision,
    DemandTotals,
    Policy,
    Queue,
    Reason,
    Sample,
    State,
    Supply,
    decide,
    shifted,
)
from moefleet_perf import Calibration, ReplicaLimits, StepModel

T0 = 1_700_000_000.0
TICK_S = 5.0
CALIBRATION = Calibration(
    "round",
    StepModel(a_s=0.0085, b_s=0.0005, c_s=0.005, d_s=0.0),
    ReplicaLimits(1000, 10**6, 10**4),
    "Made up.",
)


@dataclass
class Fleet:
    """One whose replica takes `start_s` from the decision to ready, and for ever where that is None."""

    idle_s: float = 60.0
    start_s: float | None = 100.0
    known_s: tuple[float, ...] = (100.0,) * 5
    target: int = 0
    now: float = T0
    state: State | None = None
    demand: DemandTotals = field(default_factory=DemandTotals)
    created_at: float = T0
    silent: int = 0
    # (time, target) whenever the target left zero or came to it.
    turns: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.target > 0 and self.start_s is not None and self.now >= self.created_at + self.start_s

    def tick(self, calls: int = 0, waiting: int = 0, running: int = 0) -> Decision:
        self.now += TICK_S
        d = self.demand
        self.demand = replace(
            d,
            arrivals=d.arrivals + calls,
            prompt_tokens=d.prompt_tokens + 100 * calls,
            output_tokens=d.output_tokens + 10 * calls,
        )
        supply = Supply(
            self.target,
            ready=self.target if self.ready else 0,
            pending_ages_s=() if self.ready else (self.now - self.created_at,) * self.target,
            cold_starts_s=self.known_s,
        )
        policy = Policy(1, 4, 0.1, 2.0, CALIBRATION, scale_to_zero_after_s=self.idle_s)
        queue = Queue(requests=waiting, oldest_s=1.0 if waiting else 0.0)
        decision = decide(self.state, Sample(policy, supply, self.demand, self.silent, queue), self.now)
        self.state = decision.state
        if (decision.replicas == 0) != (self.target == 0):
            self.turns.append((self.now - T0, decision.replicas))
        if decision.replicas and not self.target:
            self.created_at = self.now
        self.target = decision.replicas
        return decision

    def run(self, seconds: float, **each: int) -> Decision:
        assert seconds >= TICK_S
        for _ in range(int(seconds / TICK_S)):
            decision = self.tick(**each)
        return decision


def test_a_call_wakes_it_once_and_it_sleeps_again_when_nobody_calls() -> None:
    fleet = Fleet()
    assert fleet.run(600).replicas == 0
    woken = fleet.tick(calls=1, waiting=1)
    assert (woken.replicas, woken.reason) == (1, Reason.WAKING)
    fleet.run(100, waiting=1)
    fleet.run(1200)
    assert [target for _, target in fleet.turns] == [1, 0]


@pytest.mark.parametrize("known_s", [(100.0,) * 5, ()], ids=["measured cold starts", "none measured"])
def test_whoever_was_sent_away_finds_it_awake(known_s: tuple[float, ...]) -> None:
    """The idle limit is far shorter than a cold start, and the request that woke it was refused with the time to come again."""
    fleet = Fleet(idle_s=10.0, known_s=known_s)
    fleet.run(600)
    fleet.tick(calls=1)
    fleet.run(110)
    assert fleet.ready
    assert fleet.turns[-1][1] > 0, "it slept before it served anybody"


def test_the_idle_clock_counts_from_the_last_call_and_from_the_last_running_request() -> None:
    fleet = Fleet(target=1, idle_s=300.0, known_s=(20.0,) * 5, created_at=T0 - 1000)
    fleet.run(600, calls=1)
    last_call = fleet.now - T0
    fleet.run(900)
    (slept_at, _) = fleet.turns[-1]
    # And the hold of 30 s that every step down has.
    assert last_call + 300.0 <= slept_at <= last_call + 300.0 + 30.0 + TICK_S


def test_who_sleeps_is_not_woken_by_an_operator_without_a_memory_or_a_gateway_that_says_nothing() -> None:
    fleet = Fleet()
    fleet.run(600)
    assert fleet.turns == []
    fleet.state = None
    fleet.run(600)
    assert fleet.turns == []
    busy = Fleet(target=1, created_at=T0 - 1000)
    busy.run(900, calls=30)
    busy.run(1800)
    assert [target for _, target in busy.turns] == [0]
    busy.silent = 1
    busy.run(600)
    assert [target for _, target in busy.turns] == [0]


def test_a_fleet_that_cannot_start_sleeps_again_at_last() -> None:
    fleet = Fleet(start_s=None, idle_s=30.0)
    fleet.run(600)
    fleet.tick(calls=1)
    fleet.run(3600)
    assert [target for _, target in fleet.turns][-1] == 0


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.booleans(), min_size=40, max_size=240),
    idle_s=st.sampled_from([1.0, 10.0, 60.0, 600.0]),
    start_s=st.sampled_from([5.0, 40.0, 100.0, 400.0]),
)
def test_no_sleep_within_one_cold_start_of_a_wake(calls: list[bool], idle_s: float, start_s: float) -> None:
    fleet = Fleet(idle_s=idle_s, start_s=start_s, known_s=(start_s,) * 5)
    for called in calls:
        fleet.tick(calls=int(called))
    for (woke_at, target), (slept_at, then) in zip(fleet.turns, fleet.turns[1:], strict=False):
        if target > 0 and then == 0:
            assert slept_at - woke_at >= start_s


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(st.integers(0, 40), min_size=20, max_size=120),
    by_s=st.sampled_from([-86_400.0, -60.0, 3600.0, 5e6]),
)
def test_a_memory_whose_clock_is_set_is_the_memory_of_the_other_clock(calls: list[int], by_s: float) -> None:
    here, there = Fleet(idle_s=60.0), Fleet(idle_s=60.0, now=T0 + by_s, created_at=T0 + by_s)
    for n in calls:
        here.tick(calls=n)
        there.tick(calls=n)
    assert here.state is not None
    assert there.state is not None
    moved, other = (json.loads(state.to_json()) for state in (shifted(here.state, by_s), there.state))
    for memory in (moved, other):
        # What was learnt of the time of day belongs to the clock that was right, whichever that was.
        memory.pop("season", None)
    assert moved == other
    assert shifted(here.state, 0.0) == here.state


def test_the_wake_outlives_the_process() -> None:
    fleet = Fleet()
    fleet.run(100)
    fleet.tick(calls=1)
    assert fleet.state is not None
    kept = State.from_json(fleet.state.to_json())
    assert kept is not None
    assert kept.woke_s == fleet.now
