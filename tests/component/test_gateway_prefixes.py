"""Two real replicas with the Torch engine behind a real gateway: who has the beginning of a prompt gets the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from moefleet.client import AsyncClient, Stopping
from moefleet.replica.v1 import replica_pb2
from moefleet_gateway_rig import Rig
from moefleet_perf.prefixes import token_marks
from moefleet_runtime_rig import ReplicaProcess, replica
from moefleet_testing.torch_engine import CHECKPOINT

FEW = Stopping(max_tokens=2, ignore_eos=True)
UIDS = ("a", "b")
# Two samples of a replica in a small fleet (runtime/moefleet_gateway/loads.py).
SAMPLES_S = 0.6


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ReplicaProcess, ReplicaProcess]]:
    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(
                replica(
                    tmp_path,
                    engine="Torch",
                    # 4,096 tokens of cache: room for what is asked once, and not for much more.
                    args={"blocks": 256, "blockTokens": 16, "threads": 1},
                    model={"source": CHECKPOINT.as_uri(), "contextLength": 2048},
                    environment={"MOEFLEET_POD_UID": uid},
                )
            )
            for uid in UIDS
        ]
        yield both[0], both[1]


@pytest.fixture
async def rig(pair: tuple[ReplicaProcess, ReplicaProcess]) -> AsyncIterator[Rig]:
    rig = Rig()
    try:
        rig.world.fleet("chat", "chat-model", "team")
        rig.world.replicas = [
            {"uid": uid, "fleet": "team/chat", "address": r.grpc_at, "control": r.control_at, "ready": True}
            for uid, r in zip(UIDS, pair, strict=True)
        ]
        rig.world.write()
        await rig.start()
        await rig.registered(*UIDS)
        yield rig
    finally:
        await rig.close()


async def held(r: ReplicaProcess) -> set[int]:
    """What it tells a picker that comes anew."""
    call = r.control.WatchLoad(replica_pb2.WatchLoadRequest(prefixes=True))
    try:
        # Until the engine has told anything, samples come without.
        while not (first := await call.read()).prefixes.reset:
            pass
        assert not first.prefixes.removed
        return set(first.prefixes.stored)
    finally:
        call.cancel()


async def held_when(r: ReplicaProcess, right: Callable[[set[int]], bool]) -> set[int]:
    async with asyncio.timeout(30):
        while True:
            if right(found := await held(r)):
                return found
            await asyncio.sleep(0.1)


async def test_the_second_request_with_the_same_beginning_is_found_in_the_cache(
    rig: Rig, pair: tuple[ReplicaProcess, ReplicaProcess]
) -> None:
    systems = [list(range(300 + 150 * n, 300 + 150 * n + 140)) for n in range(6)]
    texts = [
        f"It is a truth universally acknowledged, number {n}: " + f"{n} and more, " * 30 for n in range(4)
    ]
    async with AsyncClient(f"127.0.0.1:{rig.ports['grpc']}", timeout_s=60.0) as client:

        async def cached(prompt: str | list[int]) -> int:
            answer = await client.generate("chat-model", prompt, stopping=FEW).collect()
            assert answer.usage is not None
            # Until the picker knows that it ended: before that its replica counts as busy, and may be left for the other.
            await rig.metric_is(0, "moefleet_gateway_in_flight_requests", fleet="chat")
            # ... and until the replica has told its load again, which speaks of a moment when it was still at work.
            await asyncio.sleep(SAMPLES_S)
            return answer.usage.cached_prompt_tokens

        # One by one they go round, so each replica gets some: a second one by chance would find half of them.
        cold = [await cached([*system, 100]) for system in systems]
        # Replicas tell a few times a second; a picker that has not heard yet goes on round.
        told = sum(len(token_marks(system)) for system in systems)
        async with asyncio.timeout(30):
            while await rig.metric("moefleet_gateway_prefix_hashes") < told:  # noqa: ASYNC110  (another process's state)
                await asyncio.sleep(0.05)
        cold += [await cached(t + "Why?") for t in texts]
        warm = [await cached([*system, 200, 201]) for system in systems] + [
            await cached(t + "How?") for t in texts
        ]
    assert await rig.metric("moefleet_gateway_prefix_trust", fleet="chat") > 0.5
    assert await rig.metric("moefleet_gateway_prefix_hashes") > 0
    # What texts begin with alike is shared too, but it is short.
    assert max(cold) < 64
    assert min(warm[: len(systems)]) >= 128
    assert min(warm[len(systems) :]) >= 64
    marks = [set(token_marks(system)) for system in systems]
    first = await held_when(pair[0], lambda found: any(each <= found for each in marks))
    here = [each <= first for each in marks]
    # Each has some: the round went on.
    assert not all(here)
    await held_when(
        pair[1],
        lambda found: all(each <= found for each, is_here in zip(marks, here, strict=True) if not is_here),
    )


async def test_what_a_cache_dropped_is_not_promised_any_more(tmp_path: Path) -> None:
    old = list(range(300, 340))
    async with (
        replica(
            tmp_path,
            engine="Torch",
            # 1,200 tokens of cache.
            args={"blocks": 75, "blockTokens": 16, "threads": 1},
            model={"source": CHECKPOINT.as_uri(), "contextLength": 1200},
        ) as one,
        AsyncClient(one.grpc_at, timeout_s=120.0) as client,
    ):
        await client.generate("chat-model", old, stopping=FEW).collect()
        marks = set(token_marks(old))
        await held_when(one, lambda found: marks <= found)
        # 3 prompts of 500 tokens do not fit beside it.
        for n in range(3):
            await client.generate("chat-model", [350 + n] * 500, stopping=FEW).collect()
        assert await held_when(one, lambda found: not marks & found)
