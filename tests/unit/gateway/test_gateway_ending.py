"""What the picker does without end is ended by one cancel, whenever it comes: else its pod never ends."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import moefleet_gateway
import pytest
from grpc_health.v1 import health
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.server import _health, _tell_demand

TURNS = range(8)


async def ends(task: asyncio.Task[None], wake: asyncio.Event, turns: int) -> bool:
    """Woken, and cancelled so many turns of the loop later."""
    for _ in range(5):
        await asyncio.sleep(0)
    wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1.0)
    if ended := task.done():
        return ended
    task.cancel()
    return False


@pytest.mark.parametrize("turns", TURNS)
async def test_health_ends_when_it_is_cancelled_as_something_changes(turns: int) -> None:
    gateway = Gateway("g", 60.0)
    task = asyncio.create_task(_health(gateway, health.aio.HealthServicer(), health.aio.HealthServicer()))
    await asyncio.sleep(0)
    (changed,) = gateway._changes
    assert await ends(task, changed, turns)


@pytest.mark.parametrize("turns", TURNS)
async def test_telling_demand_ends_when_it_is_cancelled_as_a_fleet_is_called(turns: int) -> None:
    async def take() -> None:
        return

    gateway = Gateway("g", 60.0)
    demand: Any = SimpleNamespace(take=take)
    assert await ends(asyncio.create_task(_tell_demand(gateway, demand)), gateway.called, turns)


def test_nothing_here_waits_in_the_way_that_swallows_a_cancel() -> None:
    """Those that need a peer to be tried: load streams and watches of Kubernetes."""
    for path in Path(moefleet_gateway.__file__).parent.rglob("*.py"):
        assert not re.search(r"asyncio\.wait_for\(", path.read_text()), path
