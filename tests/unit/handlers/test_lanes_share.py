"""Effects share the connections: bounded, in their order within a fleet, and no fleet waits for another's hundred pods."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.core.effects import Apply, CreatePod, Effect
from moefleet_operator.core.events import Key
from moefleet_operator.handlers.lanes import Lanes, fleet_of

FLEETS = [Key("ns", name) for name in "abc"]


def test_a_second_fleet_starts_while_the_first_has_many_left() -> None:
    started: list[tuple[Key, int]] = []
    lanes: Lanes[int] = Lanes(lambda fleet, job: started.append((fleet, job)), running_max=4, per_fleet_max=3)
    for job in range(10):
        lanes.add(FLEETS[0], job)
    lanes.add(FLEETS[1], 0)
    assert started == [(FLEETS[0], 0), (FLEETS[0], 1), (FLEETS[0], 2), (FLEETS[1], 0)]
    lanes.ended(FLEETS[0])
    assert started[-1] == (FLEETS[0], 3)
    assert (lanes.running, lanes.waiting) == (4, 6)


def test_fleets_take_turns() -> None:
    started: list[Key] = []
    lanes: Lanes[int] = Lanes(lambda fleet, _: started.append(fleet), running_max=1, per_fleet_max=1, turn=1)
    for fleet in (FLEETS[0], FLEETS[0], FLEETS[1], FLEETS[1]):
        lanes.add(fleet, 0)
    for fleet in (FLEETS[0], FLEETS[1], FLEETS[0]):
        lanes.ended(fleet)
    assert started == [FLEETS[0], FLEETS[1], FLEETS[0], FLEETS[1]]


def test_a_turn_is_several_effects_of_one_fleet_and_then_it_is_the_next_ones() -> None:
    started: list[str] = []
    lanes: Lanes[int] = Lanes(
        lambda fleet, _: started.append(fleet.name), running_max=2, per_fleet_max=1, turn=3
    )
    for fleet in (*[FLEETS[0]] * 5, *[FLEETS[1]] * 4, *[FLEETS[2]] * 4):
        lanes.add(fleet, 0)
    # The first two run side by side, each held up only by its own bound; the third comes when a turn is over.
    assert started == ["a", "b"]
    for fleet in (FLEETS[0], FLEETS[0]):
        lanes.ended(fleet)
    assert started == ["a", "b", "a", "a"]
    lanes.ended(FLEETS[0])
    assert started[4:] == ["c"]


@given(
    st.lists(st.sampled_from(FLEETS), max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(),
)
def test_everything_runs_once_in_order_and_within_the_bounds(
    jobs: list[Key], running_max: int, per_fleet_max: int, turn: int, seed: int
) -> None:
    chance = random.Random(seed)
    started: list[tuple[Key, int]] = []
    running: list[Key] = []

    def start(fleet: Key, job: int) -> None:
        started.append((fleet, job))
        running.append(fleet)
        assert len(running) <= running_max
        assert running.count(fleet) <= per_fleet_max

    lanes: Lanes[int] = Lanes(start, running_max, per_fleet_max, turn)
    for number, fleet in enumerate(jobs):
        lanes.add(fleet, number)
        if running and chance.random() < 0.5:
            lanes.ended(running.pop(chance.randrange(len(running))))
    while running:
        lanes.ended(running.pop(chance.randrange(len(running))))
    assert sorted(job for _, job in started) == list(range(len(jobs)))
    for fleet in FLEETS:
        mine = [job for f, job in started if f == fleet]
        assert mine == sorted(mine)
    assert (lanes.running, lanes.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("effect", "fleet"),
    [
        (
            CreatePod(
                id=1, object=Key("ns", "chat-0a1b2c3d-12"), reason="", message="", not_after=0, body={}
            ),
            "chat",
        ),
        (
            CreatePod(
                id=1, object=Key("ns", "my-chat-0a1b2c3d-0"), reason="", message="", not_after=0, body={}
            ),
            "my-chat",
        ),
        (Apply(id=1, object=Key("ns", "chat"), reason="", message="", not_after=0, body={}), "chat"),
    ],
)
def test_an_effect_runs_in_its_fleets_lane(effect: Effect, fleet: str) -> None:
    assert fleet_of(effect) == Key("ns", fleet)
