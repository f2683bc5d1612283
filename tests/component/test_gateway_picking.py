"""A real Envoy and a real picker in front of replicas: who gets a request, and what a client is told otherwise."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet.replica.v1 import replica_pb2_grpc as rep_rpc
from moefleet_gateway_rig import Rig, envoy_binary, until

pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="no Envoy binary: run make setup")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    try:
        yield rig
    finally:
        await rig.close()


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
