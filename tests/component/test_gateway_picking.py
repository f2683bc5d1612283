"""A real Envoy and a real picker in front of replicas: who gets a request, and what a client is told otherwise."""

import asyncio
from collections import Counter

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet.replica.v1 import replica_pb2_grpc as rep_rpc
from moefleet_gateway_rig import Rig, until


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    """google.rpc details by message name."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    out: dict[str, object] = {}
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.type_url.rsplit(".", 1)[-1])()
        packed.Unpack(kind)
        out[type(kind).__name__] = kind
    return out


async def test_a_request_reaches_a_replica_of_its_model_and_streams_back(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a")
    await rig.registered("a")
    answer = await rig.generate(rig.stub())
    assert [m.token_ids[0] for m in answer] == [0, 1, 2]
    assert {m.text for m in answer} == {"a"}
    headers = replica.seen[0].headers
    assert headers["x-moefleet-pod-uids"] == "a"
    assert headers["x-moefleet-model"] == "tiny"
    assert headers["x-moefleet-cluster"] == "default/tiny"


async def test_an_unknown_model_is_not_found_with_the_known_ones(rig: Rig) -> None:
    rig.world.fleet()
    rig.world.fleet("other", "größer")
    await rig.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub(), model="tinny")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    # Not ASCII: the message has to survive percent-encoding.
    assert caught.value.details() == "model 'tinny' is not served here; known models: größer, tiny"
    info = details(caught.value)["ErrorInfo"]
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "MODEL_NOT_FOUND",
        "moefleet.io",
        {"model": "tinny"},
    )


BAD = {
    "no model": (inf.GenerateRequest(prompt="x"), "model"),
    "no input": (inf.GenerateRequest(model="tiny"), "prompt"),
    "empty prompt": (inf.GenerateRequest(model="tiny", prompt=""), "prompt"),
    "empty ids": (inf.GenerateRequest(model="tiny", token_ids=inf.TokenIds()), "token_ids"),
    "negative max_tokens": (
        inf.GenerateRequest(model="tiny", prompt="x", stopping=inf.Stopping(max_tokens=-1)),
        "stopping.max_tokens",
    ),
    "above the context": (
        inf.GenerateRequest(model="tiny", token_ids=inf.TokenIds(ids=[1] * 1001)),
        "token_ids",
    ),
    "5 MiB": (inf.GenerateRequest(model="tiny", prompt="x" * (5 << 20)), "message"),
    "20 MiB": (inf.GenerateRequest(model="tiny", prompt="x" * (20 << 20)), "message"),
}


async def test_bad_requests_are_invalid_with_the_field_and_reach_no_replica(rig: Rig) -> None:
    rig.world.fleet(contextLength=1000)
    await rig.start()
    replica = await rig.replica("a")
    await rig.registered("a")
    stub = rig.stub()
    for name, (request, field) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(request, timeout=60):
                pass
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {caught.value.details()}"
        bad = details(caught.value)["BadRequest"]
        assert [v.field for v in bad.field_violations] == [field], name
    assert replica.seen == []
    assert await rig.metric("moefleet_gateway_requests_total") == 0


async def test_above_envoys_buffer_the_message_still_says_what_is_accepted(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    await rig.replica("a")
    await rig.registered("a")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub(), prompt="x" * (40 << 20))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 4194304 bytes are accepted" in (caught.value.details() or "")
    assert [v.field for v in details(caught.value)["BadRequest"].field_violations] == ["message"]


async def test_128k_token_ids_and_compressed_requests_pass(rig: Rig) -> None:
    rig.world.fleet(contextLength=131072)
    await rig.start()
    replica = await rig.replica("a")
    await rig.registered("a")
    request = inf.GenerateRequest(model="tiny", token_ids=inf.TokenIds(ids=range(131072)))
    for compression in (None, grpc.Compression.Gzip):
        answer = [m async for m in rig.stub().Generate(request, timeout=60, compression=compression)]
        assert len(answer) == 3
    assert [len(s.request.token_ids.ids) for s in replica.seen] == [131072, 131072]
    await until(lambda: replica.finished == 2)


async def test_one_slow_and_one_dead_replica_of_three(rig: Rig) -> None:
    """Round robin gives each a third: a third of the requests would queue at the slow one."""
    rig.world.fleet()
    await rig.start()
    slow = await rig.replica("slow", messages=2, message_s=60.0)
    dead = await rig.replica("dead")
    fast = await rig.replica("fast", messages=2)
    await rig.registered("slow", "dead", "fast")
    await dead.stop_data()  # its control port still says SERVING: only connecting tells
    stub = rig.stub()
    running = [asyncio.ensure_future(rig.generate(stub)) for _ in range(4)]
    await until(lambda: slow.active >= 1)
    answers: Counter[str] = Counter()
    for _ in range(30):
        # The end of a request is known when Envoy's access log told it: only then is a replica idle again. Those
        # that went to the dead one may still be on their way to the slow one, so both are read each time.
        await rig.metric_is(lambda: slow.active, "moefleet_gateway_in_flight_requests")
        call = stub.Generate(inf.GenerateRequest(model="tiny", prompt="x y z"), timeout=60)
        first = await call.read()
        answers[first.text] += 1
        running.append(asyncio.ensure_future(call.read()))
    assert answers == {"fast": 30}
    assert slow.finished == 0
    assert fast.finished >= 28
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_refusal_before_the_first_byte_is_retried_on_the_next_replica(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    a, b = await rig.replica("a", refuse="draining"), await rig.replica("b")
    await rig.registered("a", "b")
    stub = rig.stub()
    for _ in range(6):
        assert {m.text for m in await rig.generate(stub)} == {"b"}
    assert a.refused >= 1
    assert b.finished == 6
    await until(lambda: b.active == 0)
    # Retries between replicas are not demand.
    assert await rig.metric("moefleet_gateway_requests_total") == 6
    assert await rig.metric("moefleet_gateway_retries_total") == 0


async def test_when_all_refuse_the_client_sees_unavailable_and_why(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replicas = [await rig.replica(uid, refuse="not-serving") for uid in "abc"]
    await rig.registered("a", "b", "c")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "refuses: not-serving" in (caught.value.details() or "")
    assert all(replica.refused >= 1 for replica in replicas)
    assert await rig.metric("moefleet_gateway_requests_total") == 1


async def test_a_client_that_retries_is_counted_apart(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    await rig.replica("a")
    await rig.registered("a")
    await rig.generate(rig.stub(), metadata=(("grpc-previous-rpc-attempts", "1"),))
    assert await rig.metric("moefleet_gateway_requests_total") == 0
    assert await rig.metric("moefleet_gateway_retries_total") == 1


async def test_routing_headers_of_clients_are_stripped(rig: Rig) -> None:
    rig.world.fleet()
    rig.world.fleet("other", "other-model")
    await rig.start()
    a = await rig.replica("a")
    other = await rig.replica("o", fleet="default/other", model="other-model")
    await rig.registered("a", "o")
    forged = (
        ("x-gateway-destination-endpoint", other.address),
        ("x-moefleet-cluster", "default/other"),
        ("x-moefleet-pod-uids", "o"),
        ("x-moefleet-model", "other-model"),
        ("x-moefleet-anything", "1"),
        ("moefleet-asked-fleet", "default/forged"),
        ("x-moefleet-fleet", "default/tiny"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-request-id", "chosen"),
        ("x-mine", "kept"),
    )
    answer = await rig.generate(rig.stub(), metadata=forged)
    assert {m.text for m in answer} == {"a"}
    headers = a.seen[0].headers
    assert headers["x-gateway-destination-endpoint"] == a.address
    assert headers["x-moefleet-pod-uids"] == "a"
    assert headers["x-moefleet-model"] == "tiny"
    assert headers["x-moefleet-fleet"] == "default/tiny"
    assert headers["x-mine"] == "kept"
    assert headers["x-request-id"] != "chosen"
    assert not {"x-moefleet-anything", "moefleet-asked-fleet", "x-envoy-retry-on"} & set(headers)
    # A call that the picker answers, and one that goes nowhere, take no forged route either.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub(), model="nobody", metadata=forged)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert other.seen == []


async def test_replica_service_and_unknown_methods_are_unimplemented(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a")
    await rig.registered("a")
    channel = rig.channel("tiny.default")
    stub = rep_rpc.ReplicaServiceStub(channel)
    forged = (("x-moefleet-cluster", "default/tiny"), ("x-gateway-destination-endpoint", replica.address))
    calls = [
        stub.Drain(rep.DrainRequest(pod_uid="a"), timeout=30, metadata=forged),
        stub.WatchLoad(rep.WatchLoadRequest(), timeout=30, metadata=forged).read(),
        channel.unary_unary("/trtllm.TrtllmService/SubscribeKvEvents")(b"", timeout=30, metadata=forged),
        channel.unary_unary("/envoy.service.discovery.v3.AggregatedDiscoveryService/X")(b"", timeout=30),
        channel.unary_unary("/moefleet.inference.v1.InferenceService/Other")(b"", timeout=30),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert replica.state == rep.REPLICA_STATE_SERVING


async def test_models_health_and_reflection_are_answered_by_the_gateway(rig: Rig) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    rig.world.fleet("old", "m", created="2026-01-01T00:00:00Z", engine="Simulated", contextLength=4096)
    rig.world.fleet("young", "m", namespace="team", created="2026-02-01T00:00:00Z")
    await rig.start()
    channel = rig.channel()
    models = (await rig.stub(channel).ListModels(inf.ListModelsRequest(), timeout=30)).models
    assert [(m.name, m.fleet, m.engine, m.context_length) for m in models] == [
        ("m", "default/old", "Simulated", 4096),
        ("team/m", "team/young", "", 0),
    ]
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "moefleet.inference.v1.InferenceService", "trtllm.TrtllmService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await call.read()).list_services_response.service
    await call.done_writing()
    assert "moefleet.inference.v1.InferenceService" in {s.name for s in listed}
    assert not {s.name for s in listed} & {"moefleet.replica.v1.ReplicaService"}


async def test_get_model_and_count_tokens_come_from_a_replica(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    await rig.replica("a")
    await rig.registered("a")
    stub = rig.stub()
    assert (
        await stub.GetModel(inf.GetModelRequest(model="default/tiny"), timeout=30)
    ).model.fleet == "default/tiny"
    assert (
        await stub.CountTokens(inf.CountTokensRequest(model="tiny", text="a b c"), timeout=30)
    ).tokens == 3
    assert await rig.metric("moefleet_gateway_requests_total") == 0
