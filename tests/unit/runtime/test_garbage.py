"""Once a process serves, Python looks for garbage seldom, and not in what stays."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime.garbage import THRESHOLDS, settle
from moefleet_runtime_rig.answering import AnsweringReplica, Call, Ended


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Loaded:
    def __init__(self) -> None:
        self.me = self


def test_what_stays_is_looked_at_no_more_and_what_the_start_left_is_gone() -> None:
    stays, left = Loaded(), weakref.ref(Loaded())
    assert left() is not None
    settle()
    assert left() is None
    assert gc.get_threshold() == THRESHOLDS
    assert gc.get_freeze_count() > 1000
    assert all(each is not stays for each in gc.get_objects())


def test_cycles_that_serving_makes_are_found_before_they_are_many() -> None:
    settle()
    alive: list[weakref.ref[Loaded]] = []
    for _ in range(2 * THRESHOLDS[0]):
        alive.append(weakref.ref(Loaded()))
    assert sum(ref() is not None for ref in alive) < THRESHOLDS[0]


@pytest.mark.parametrize("ids", [[1, 2], []], ids=["answered", "refused"])
def test_a_request_leaves_no_cycle_of_ours(ids: list[int]) -> None:
    """grpc.aio leaves one for each call, its headers in it; with more of them memory would grow from one look to the next."""
    replica = AnsweringReplica()
    request = pb.GenerateRequest(
        model="m", token_ids=pb.TokenIds(ids=ids), stopping=pb.Stopping(max_tokens=3, stop=["xyz"])
    )

    async def ask(times: int) -> None:
        for _ in range(times):
            with suppress(Ended):
                await replica.inference.Generate(request, Call())

    async def left() -> int:
        await ask(3)
        gc.collect()
        gc.disable()
        try:
            await ask(20)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(left()) == 0
