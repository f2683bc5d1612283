"""A create whose answer was lost: nobody knows whether there is a pod, so nothing else is made in its place for a while."""

from __future__ import annotations

import random
from typing import Any

import pytest
from moefleet_operator.core.events import Key
from moefleet_operator.core.memory import DOUBT_S, Memory
from moefleet_operator.planning.steps import CreateReplica

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
    ],
)
def test_what_ends_the_doubt(known: Any) -> None:
    memory = in_doubt()
    known(memory)
    assert memory.blocked_until(FLEET, create("chat-b-0"), 101.0) == 0.0
