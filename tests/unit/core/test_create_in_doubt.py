"""A create whose answer was lost: nobody knows whether there is a pod, so nothing else is made in its place for a while."""

from __future__ import annotations

import random
from typing import Any

import pytest
from moefleet_operator.core.effects import CreatePod, Relist
from moefleet_operator.core.events import ESSENTIAL, Key, ObjectChanged, Ok, Relisted, Transient
from moefleet_operator.core.leadership import IN_DOUBT
from moefleet_operator.core.memory import DOUBT_LOOK_S, DOUBT_S, Memory
from moefleet_operator.planning.steps import CreateReplica
from moefleet_testing.desk import fleet, with_fleet

FLEET = Key("models", "chat")


def create(name: str) -> CreateReplica:
    return CreateReplica(name=name, reason="ScalingUp", message="wanted", slot=0, body={})


def in_doubt() -> Memory:
    memory = Memory(random.Random(1))
    memory.doubt(FLEET, "chat-a-0", 100.0)
    return memory


@pytest.mark.parametrize(
    ("name", "fleet", "until"),
    [
        # The same name is never made twice, so asking again is the way to know.
        ("chat-a-0", FLEET, 0.0),
        # Of the next revision, or the next slot.
        ("chat-b-0", FLEET, 100.0 + DOUBT_S),
        ("chat-a-1", FLEET, 100.0 + DOUBT_S),
        ("talk-b-0", Key("models", "talk"), 0.0),
    ],
)
def test_what_waits_while_a_pod_is_in_doubt(name: str, fleet: Key, until: float) -> None:
    assert in_doubt().blocked_until(fleet, create(name), 101.0) == until


@pytest.mark.parametrize(
    "known",
    [
        lambda memory: memory.answered(FLEET, "chat-a-0"),
        lambda memory: memory.saw_pods(FLEET, {"chat-a-0"}),
        lambda memory: memory.drop(FLEET),
        # A LIST that was read when the request had arrived or never would.
        lambda memory: memory.forget(set(), 120.0, listed_since=100.0 + DOUBT_S),
    ],
)
def test_what_ends_the_doubt(known: Any) -> None:
    memory = in_doubt()
    known(memory)
    assert memory.blocked_until(FLEET, create("chat-b-0"), 101.0) == 0.0


def test_time_alone_ends_no_doubt_and_neither_does_a_list_that_was_read_before() -> None:
    """A watch that is cut shows nothing, however long one waits (seed 5386)."""
    memory = in_doubt()
    memory.forget(set(), 104.0, listed_since=103.0)
    assert not memory.must_look(104.0)
    assert memory.must_look(100.0 + DOUBT_S)
    assert memory.blocked_until(FLEET, create("chat-b-0"), 200.0) == 200.0 + DOUBT_LOOK_S


def test_a_list_is_asked_for_when_no_watch_shows_what_is_in_doubt() -> None:
    desk = with_fleet()
    desk.lists = False
    lost = desk.take(CreatePod)
    changed = fleet(generation=2, resourceVersion="900")
    changed["spec"] = {**changed["spec"], "engine": {"type": "Simulated", "image": "r:2"}}
    desk.feed(ObjectChanged("MoEFleet", FLEET, changed))
    desk.fleet = changed
    desk.answer(lost, Transient("the answer was lost"))
    desk.settle(DOUBT_S - 1.0)
    assert desk.open == []
    desk.tick(3.0)
    asked = desk.take(Relist)
    assert asked.message == IN_DOUBT
    assert desk.all(CreatePod) == []
    for kind in ESSENTIAL:
        desk.feed(Relisted(kind, (), 0, desk.now))
    desk.answer(asked, Ok())
    desk.tick(3.0)
    assert desk.take(CreatePod).object != lost.object
    assert desk.all(Relist) == []


def test_a_create_that_was_turned_away_is_in_no_doubt() -> None:
    """A server that throttles would be asked for a LIST of everything, again and again."""
    desk = with_fleet()
    desk.lists = False
    desk.answer(desk.take(CreatePod), Transient("429: slow down", maybe_done=False))
    desk.carry_out()
    desk.tick(2 * DOUBT_S)
    assert desk.all(Relist) == []
    assert desk.all(CreatePod)
