"""Streams that run while something happens, and what must be true of them afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End

from .kube import eventually

# Far beyond what any test needs: the block's end stops the arrivals.
ARRIVALS_S = 600
# A simulated step of `fleets.simulated` takes 0.13 s: about 10 s and about 21 s of stream.
SHORT_TOKENS = 80
LONG_TOKENS = 160
# A replica refuses a request id that runs in it already: each load has ids of its own.
_numbers = count()


@asynccontextmanager
async def streaming(
    address: str, model: str, *, per_s: float = 2.0, output_tokens: int = SHORT_TOKENS, running: int = 4
) -> AsyncIterator[Load]:
    """Requests at a steady rate for as long as the block runs; entered with `running` streams, left when all have ended."""
    load, name = Load(address, model), f"load{next(_numbers)}"
    arrivals = [Arrival(i / per_s, 200, output_tokens) for i in range(int(ARRIVALS_S * per_s))]
    task = asyncio.create_task(load.run(arrivals, name))
    try:
        await eventually(
            f"{running} streams of {model} to run through {address}",
            lambda: load.running >= running,
            60,
            lambda: f"{load.running} run, {len(load.outcomes)} have ended: {load.outcomes[-3:]}",
        )
        yield load
    finally:
        load.stop()
        await task


def fine(load: Load) -> None:
    assert [o for o in load.outcomes if o.end is not End.OK] == []
    assert len(load.outcomes) > 5, "too little ran to show anything"


def ended_after(load: Load, moment_s: float, pod_uid: str = "") -> int:
    """How many streams ended after `moment_s` (of one replica): those that something at that moment could have cut."""
    return sum(o.ended_s > moment_s and pod_uid in ("", o.pod_uid) for o in load.outcomes)
