"""What the operator is told: demand counted once, usage from trailers; and trtllm.TrtllmService behind the gateway."""

import asyncio

import grpc
import pytest
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway_rig import Rig, until
from smg_grpc_proto.generated import trtllm_service_pb2 as trt
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as trt_rpc


async def test_demand_samples_count_arrivals_once_and_usage_from_the_trailers(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    await rig.replica("a", output_tokens=7, cached_tokens=2, messages=4, message_s=0.02)
    await rig.replica("b", refuse="full")
    await rig.registered("a", "b")
    stub = rig.stub()
    for _ in range(5):
        request = inf.GenerateRequest(
            model="tiny", token_ids=inf.TokenIds(ids=[1] * 10), stopping=inf.Stopping(max_tokens=20)
        )
        assert len([m async for m in stub.Generate(request)]) == 4
    watch = rig.control().WatchDemand(gw.WatchDemandRequest())
    async with asyncio.timeout(60):
        while True:
            sample = (await watch.read()).sample
            fleet = next(f for f in sample.fleets if f.fleet == "tiny")
            if fleet.served_requests == 5:
                break
    assert (fleet.namespace, fleet.fleet_uid) == ("default", "uid-default-tiny")
    assert (fleet.arrivals, fleet.retries, fleet.shed, fleet.failed) == (5, 0, 0, 0)
    assert (fleet.prompt_tokens, fleet.served_prompt_tokens) == (50, 50)
    assert (fleet.served_output_tokens, fleet.served_cached_tokens) == (35, 10)
    assert 5 <= fleet.predicted_output_tokens <= 100  # at most max_tokens each, less when learnt
    assert sum(fleet.ttft_counts) == 5
    assert sum(fleet.tpot_counts) == 5
    assert len(fleet.ttft_counts) == len(sample.ttft_bounds_s) + 1
    assert sum(b.count for b in fleet.lengths) == 5
    assert {b.prompt_log2 for b in fleet.lengths} == {3}
    assert (fleet.in_flight, fleet.queue_requests) == (0, 0)
    assert (sample.gateway_uid, sample.endpoints_version_applied > 0) == ("gateway-uid", True)
    # A caller that comes back gets what it missed; with another incarnation, everything.
    again = rig.control().WatchDemand(
        gw.WatchDemandRequest(incarnation=sample.incarnation, since_seq=sample.seq - 1)
    )
    assert (await again.read()).sample.seq == sample.seq
    other = rig.control().WatchDemand(gw.WatchDemandRequest(incarnation="before", since_seq=sample.seq))
    assert (await other.read()).sample.seq == 1


def request(request_id: str, tokens: int = 4) -> trt.GenerateRequest:
    return trt.GenerateRequest(
        request_id=request_id,
        tokenized=trt.TokenizedInput(input_token_ids=[1] * tokens),
        max_tokens=8,
        streaming=True,
    )


async def test_trtllm_finds_its_fleet_by_authority_or_header(rig: Rig) -> None:
    rig.world.fleet()
    rig.world.fleet("two", "two", namespace="team")
    await rig.start()
    await rig.replica("a")
    await rig.replica("b", fleet="team/two", model="two")
    await rig.registered("a", "b")

    async def who(authority: str, fleet: str = "") -> str:
        stub = trt_rpc.TrtllmServiceStub(rig.channel(authority))
        metadata = (("x-moefleet-fleet", fleet),) if fleet else ()
        answer = [m.request_id async for m in stub.Generate(request("r"), timeout=30, metadata=metadata)]
        return answer[0]

    assert await who("tiny.default") == "a"
    assert await who("two.team.svc.cluster.local:8080") == "b"
    assert await who("tiny.default", "team/two") == "b"
    assert await who("gateway", "default/tiny") == "a"
    for authority in ("gateway", "nobody.default"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await who(authority)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert "default/tiny, team/two" in (caught.value.details() or "")
    stub = trt_rpc.TrtllmServiceStub(rig.channel("tiny.default"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(request("r", tokens=0), timeout=30):
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await stub.GetModelInfo(trt.GetModelInfoRequest(), timeout=30)


async def test_abort_goes_where_the_request_went_also_through_another_gateway() -> None:
    # The proxy of the environment, where nobody listens, is for the outside and not for pods.
    one, two = Rig(), Rig(http_proxy="http://127.0.0.1:9", no_proxy="")
    try:
        replicas = []
        for rig in (one, two):
            rig.world.fleet()
            await rig.start()
        for uid in "abc":
            replicas.append(await one.replica(uid, messages=1000, message_s=0.05))
            two.world.replica(replicas[-1])
        await one.registered("a", "b", "c")
        await two.registered("a", "b", "c")
        stub = trt_rpc.TrtllmServiceStub(one.channel("tiny.default"))
        calls, holders = [], {}
        for number in range(3):
            calls.append(stub.Generate(request(f"r{number}")))
            holders[f"r{number}"] = (await calls[-1].read()).request_id
        assert set(holders.values()) == {"a", "b", "c"}  # least work: each has one
        for request_id, holder in holders.items():
            await stub.Abort(trt.AbortRequest(request_id=request_id), timeout=30)
            assert [r.uid for r in replicas if request_id in r.aborted] == [holder]
        # The other gateway knows nothing of r0: all are told, each once.
        other = trt_rpc.TrtllmServiceStub(two.channel("tiny.default"))
        for replica in replicas:
            replica.aborted.clear()
        await other.Abort(trt.AbortRequest(request_id="r0"), timeout=30)
        assert [r.aborted for r in replicas] == [["r0"]] * 3
        for call in calls:
            call.cancel()
        await until(lambda: all(r.active == 0 for r in replicas))
    finally:
        await asyncio.gather(one.close(), two.close())
