"""Each component's tests run on the event loop that the component has: uvloop's handles, for one, know less than asyncio's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop
from moefleet_gateway_rig import Rig

# The others choose their loop in the processes that they start.
OPERATOR = ("test_operator_", "test_telemetry_")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name.startswith(OPERATOR):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Envoy and pickers in front of replicas of the test's own; one that needs another kind has a fixture of this name itself."""
    rig = Rig()
    try:
        yield rig
    finally:
        await rig.close()
