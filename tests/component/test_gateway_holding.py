"""Requests that wait in the gateway: held, released, refused, cancelled, timed out."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway_rig import Rig, until


async def waiting(rig: Rig, count: int) -> None:
    await rig.metric_is(count, "moefleet_gateway_queue_requests")


async def test_a_request_without_a_replica_is_held_and_then_served(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    running = asyncio.ensure_future(rig.generate(rig.stub()))
    await waiting(rig, 1)
    replica = await rig.replica("late")
    assert {m.text for m in await running} == {"late"}
    assert replica.finished == 1
    assert await rig.metric("moefleet_gateway_held_total") == 1
    assert await rig.metric("moefleet_gateway_shed_total") == 0


async def test_held_too_long_without_a_replica_is_unavailable_with_retry_info(rig: Rig) -> None:
    rig.world.fleet(limits={"hold": "300ms"})
    await rig.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    status = rpc_status.from_call(caught.value)
    kinds = [d.type_url.rsplit(".", 1)[-1] for d in status.details]
    assert kinds == ["ErrorInfo", "RetryInfo"]
    assert "default/tiny has no serving replica" in (caught.value.details() or "")


async def test_the_queue_overflows_with_resource_exhausted_and_the_rest_is_served(rig: Rig) -> None:
    rig.world.fleet(limits={"queuedRequests": 3, "hold": "60s"})
    await rig.start()
    stub = rig.stub()
    calls = [asyncio.ensure_future(rig.generate(stub)) for _ in range(3)]
    await waiting(rig, 3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(stub)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    assert [d.type_url.rsplit(".", 1)[-1] for d in status.details] == [
        "ErrorInfo",
        "RetryInfo",
        "QuotaFailure",
    ]
    status.details[1].Unpack(retry)
    status.details[2].Unpack(quota)
    assert retry.retry_delay.seconds >= 1
    assert quota.violations[0].subject == "fleet:default/tiny"
    await rig.replica("a")
    assert all(len(answer) == 3 for answer in await asyncio.gather(*calls))
    assert await rig.metric("moefleet_gateway_shed_total") == 1


async def test_full_replicas_get_no_more_until_they_have_room(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", queued=1000)
    await rig.registered("a")
    running = asyncio.ensure_future(rig.generate(rig.stub()))
    await waiting(rig, 1)
    assert replica.seen == []
    replica.change(queued=0)
    assert len(await running) == 3


async def test_cancel_while_held_frees_the_place(rig: Rig) -> None:
    rig.world.fleet(limits={"queuedRequests": 1})
    await rig.start()
    stub = rig.stub()
    call = stub.Generate(inf.GenerateRequest(model="tiny", prompt="x"))
    reading = asyncio.ensure_future(call.read())
    await waiting(rig, 1)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await waiting(rig, 0)
    # The only place of the queue is free again, and the next that comes is served.
    running = asyncio.ensure_future(rig.generate(stub))
    await waiting(rig, 1)
    replica = await rig.replica("a")
    assert len(await running) == 3
    assert len(replica.seen) == 1


async def test_the_deadline_ends_a_wait(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub(), timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await waiting(rig, 0)


async def test_cancel_while_streaming_reaches_the_replica(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", messages=1000, message_s=0.05)
    await rig.registered("a")
    call = rig.stub().Generate(inf.GenerateRequest(model="tiny", prompt="x"))
    await call.read()
    call.cancel()
    await until(lambda: replica.cancelled == 1)
    await rig.metric_is(0, "moefleet_gateway_in_flight_requests")
    assert await rig.metric("moefleet_gateway_failed_total") == 0


async def test_the_deadline_reaches_the_replica_and_ends_the_stream(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", messages=1000, message_s=0.05)
    await rig.registered("a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub(), timeout=2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert replica.seen[0].remaining_s is not None
    # The client's deadline, and 5 s in which the client ends it itself.
    assert replica.seen[0].remaining_s <= 7
    await until(lambda: replica.active == 0)


async def test_stream_duration_bounds_a_stream_without_a_deadline(rig: Rig) -> None:
    rig.world.fleet(limits={"streamDuration": "1s"})
    rig.world.fleet("long", "long", limits={"streamDuration": "20m"})
    await rig.start()
    short = await rig.replica("a")
    long = await rig.replica("b", fleet="default/long", model="long")
    await rig.registered("a", "b")
    stub = rig.stub()
    for model in ("tiny", "long"):
        request = inf.GenerateRequest(model=model, prompt="x")
        assert len([m async for m in stub.Generate(request)]) == 3
    # 5 s above the limit: the replica ends a stream itself at the limit, this is for one that does not.
    assert short.seen[0].remaining_s == pytest.approx(6, abs=1)
    assert long.seen[0].remaining_s == pytest.approx(1205, abs=5)
    # Longer than the fleet allows: cut to it. Shorter: the client's own.
    await rig.generate(stub, timeout=3600)
    assert short.seen[1].remaining_s == pytest.approx(6, abs=1)
    short.change(messages=1000, message_s=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(inf.GenerateRequest(model="tiny", prompt="x")):
            pass
    # Envoy can only reset a stream whose answer has begun; which status that gives is the client library's choice.
    assert caught.value.code() != grpc.StatusCode.OK
    await until(lambda: short.active == 0)
