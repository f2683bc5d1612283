"""Two gateway pods before the same replicas, and a picker that dies while requests wait in it."""

import asyncio
from collections import Counter

import grpc
import pytest
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway_rig import Rig, until

CUT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
MESSAGES = 60


async def read_all(call: object) -> int:
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
    return count


async def test_one_envoy_of_two_killed_ends_its_own_streams_only_and_demand_is_counted_once() -> None:
    one, two = Rig(), Rig()
    try:
        for rig in (one, two):
            rig.world.fleet()
            await rig.start()
        replicas = [await one.replica(uid, messages=MESSAGES, message_s=0.1) for uid in "ab"]
        for replica in replicas:
            two.world.replica(replica)
        for rig in (one, two):
            await rig.registered("a", "b")
        calls = {}
        for rig in (one, two):
            stub = rig.stub()
            calls[rig] = [stub.Generate(inf.GenerateRequest(model="tiny", prompt="x")) for _ in range(4)]
            await asyncio.gather(*(call.read() for call in calls[rig]))
        await one.kill_envoy()
        for call in calls[one]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call)
            assert caught.value.code() in CUT
        # Its replicas stop working for nobody.
        await until(lambda: sum(r.cancelled for r in replicas) == 4)
        new = asyncio.ensure_future(two.generate(two.stub()))
        assert await asyncio.gather(*(read_all(call) for call in calls[two])) == [MESSAGES - 1] * 4
        assert len(await new) == MESSAGES
        assert sum(r.finished for r in replicas) == 5
        arrived = [await rig.metric("moefleet_gateway_requests_total") for rig in (one, two)]
        assert arrived == [4, 5]
    finally:
        await asyncio.gather(one.close(), two.close())


async def test_a_picker_killed_while_requests_are_held_ends_these_and_nothing_else() -> None:
    rig = Rig()
    try:
        rig.world.fleet()
        rig.world.fleet("asleep", "asleep")  # has no replica: its requests are held
        await rig.start()
        replica = await rig.replica("a", messages=MESSAGES, message_s=0.1)
        await rig.registered("a")
        call = rig.stub().Generate(inf.GenerateRequest(model="tiny", prompt="x"))
        await call.read()
        held = [asyncio.ensure_future(rig.generate(rig.stub(), model="asleep")) for _ in range(5)]
        await rig.metric_is(5, "moefleet_gateway_queue_requests")
        await rig.kill_picker()
        ends = await asyncio.gather(*held, return_exceptions=True)
        assert Counter(e.code() for e in ends) == {grpc.StatusCode.UNAVAILABLE: 5}
        await rig.start_picker()
        await rig.wait_ready()
        assert await read_all(call) == MESSAGES - 1
        assert replica.cancelled == 0
        replica.change(messages=3, message_s=0)
        assert len(await rig.generate(rig.stub())) == 3
    finally:
        await rig.close()
