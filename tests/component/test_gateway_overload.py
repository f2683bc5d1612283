"""More bytes than Envoy has memory for: the largest requests pay, a token stream beside them goes on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway_rig import FakeReplica, Rig, until

# The least that settings allow: 128 MiB of heap.
MEMORY_LIMIT_BYTES = 256 << 20
MESSAGES = 200


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(MOEFLEET_ENVOY_MEMORY_LIMIT_BYTES=str(MEMORY_LIMIT_BYTES))
    try:
        yield rig
    finally:
        await rig.close()


async def streaming(rig: Rig) -> tuple[FakeReplica, object]:
    """A stream of 10 s, and who sends it."""
    rig.world.fleet()
    rig.world.fleet("asleep", "asleep")  # has no replica: its requests are held
    await rig.start()
    replica = await rig.replica("a", messages=MESSAGES, message_s=0.05)
    await rig.registered("a")
    call = rig.stub().Generate(inf.GenerateRequest(model="tiny", prompt="x"))
    await call.read()
    return replica, call


async def ends_well(rig: Rig, replica: FakeReplica, call: object) -> None:
    """All of the stream comes, and OK, from an Envoy that was never started anew."""
    count = 1
    while await call.read() is not grpc.aio.EOF:
        count += 1
    assert count == MESSAGES
    assert await call.code() == grpc.StatusCode.OK
    assert replica.cancelled == 0
    assert rig.envoy is not None
    assert rig.envoy.returncode is None


async def outcome(rig: Rig, model: str, prompt: str) -> str:
    try:
        await rig.generate(rig.stub(), model=model, prompt=prompt, timeout=300)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_thirty_bodies_of_30_mib_are_refused_beside_a_running_stream(rig: Rig) -> None:
    replica, call = await streaming(rig)
    prompt = "x" * (30 << 20)
    outcomes = Counter(await asyncio.gather(*(outcome(rig, "tiny", prompt) for _ in range(30))))
    assert set(outcomes) <= {"INVALID_ARGUMENT", "UNAVAILABLE"}, outcomes
    assert outcomes["INVALID_ARGUMENT"] > 0
    await ends_well(rig, replica, call)


async def test_held_bodies_that_fill_the_memory_are_reset_and_what_streams_goes_on(rig: Rig) -> None:
    replica, call = await streaming(rig)
    prompt = "x" * (4_000_000)
    held = [asyncio.ensure_future(outcome(rig, "asleep", prompt)) for _ in range(60)]  # 240 MB of 134
    # 30 of them are what the heap takes at most.
    await until(lambda: sum(task.done() for task in held) >= 30)
    outcomes = Counter(task.result() for task in held if task.done())
    assert set(outcomes) <= {"UNAVAILABLE", "INTERNAL"}, outcomes
    await ends_well(rig, replica, call)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    replica.change(messages=3, message_s=0)
    assert len(await rig.generate(rig.stub())) == 3
