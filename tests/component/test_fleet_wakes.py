"""A fleet that sleeps is called 200 times at once: real picker, real Envoy, and a replica that starts when the demand is told."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway_rig import Rig
from moefleet_runtime_rig import replica
from moefleet_runtime_rig.process import POD_UID

REQUESTS = 200
TOKENS = 4
START_S = 6.0
FLEET = {"name": "chat", "model": "chat-model", "namespace": "team"}


async def called(rig: Rig) -> Any:
    """The first sample that says that somebody called, as the operator hears it."""
    call = rig.control().WatchDemand(gw.WatchDemandRequest())
    async for message in call:
        for said in message.sample.fleets:
            if said.arrivals:
                call.cancel()
                return said
    raise AssertionError("WatchDemand ended")


async def ask(stub: Any) -> tuple[float, int]:
    """When the first token came, and how many there were."""
    first, tokens = 0.0, 0
    request = inf.GenerateRequest(model="chat-model", prompt="one two three")
    request.stopping.max_tokens = TOKENS
    request.stopping.ignore_eos = True
    async for message in stub.Generate(request, timeout=120):
        first = first or time.monotonic()
        tokens += len(message.token_ids)
    return first, tokens


async def test_two_hundred_requests_wait_for_the_first_replica_and_none_is_lost(
    rig: Rig, tmp_path: Path, record_property: Any
) -> None:
    rig.world.fleet(
        **FLEET, limits={"hold": "110s"}, readyReplicas=0, coldStart={"p50": f"{START_S:g}s", "p90": "20s"}
    )
    await rig.start()
    hearing = asyncio.ensure_future(called(rig))
    await asyncio.sleep(0)
    stub = rig.stub()
    begun = time.monotonic()
    calls = [asyncio.ensure_future(ask(stub)) for _ in range(REQUESTS)]
    await hearing
    # What an operator does now; its own part of the way is measured in the simulated story of the same name.
    woken = time.monotonic()
    arguments = {"startSeconds": START_S, "speed": 20}
    async with replica(tmp_path, args=arguments, fleet="team/chat") as process:
        cold_s = time.monotonic() - woken
        rig.world.replicas = [
            {
                "uid": POD_UID,
                "fleet": "team/chat",
                "address": process.grpc_at,
                "control": process.control_at,
                "ready": True,
            }
        ]
        rig.world.write()
        answers = await asyncio.gather(*calls)
        first = min(at for at, _ in answers)
    assert [tokens for _, tokens in answers] == [TOKENS] * REQUESTS
    assert await rig.metric("moefleet_gateway_held_total") == REQUESTS
    assert await rig.metric("moefleet_gateway_shed_total") == 0
    record_property("cold_start_s", round(cold_s, 2))
    record_property("told_s", round(woken - begun, 3))
    record_property("first_token_over_cold_start", round((first - begun) / cold_s, 3))
    print(
        f"cold start {cold_s:.2f} s, told after {woken - begun:.3f} s, first token {(first - begun) / cold_s:.3f} of it"
    )
    assert cold_s >= START_S
    # On an idle machine 1.03; the samples of every 5 s alone would make it up to 1.8.
    assert (first - begun) / cold_s < 1.5


async def test_a_start_that_takes_longer_than_the_hold_is_told_at_once(rig: Rig) -> None:
    rig.world.fleet(
        **FLEET, limits={"hold": "60s"}, readyReplicas=0, coldStart={"p50": "240s", "p90": "300s"}
    )
    await rig.start()
    hearing = asyncio.ensure_future(called(rig))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(rig.stub())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    status = rpc_status.from_call(caught.value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status.details[0].Unpack(info)
    status.details[1].Unpack(retry)
    assert info.reason == "WAKING"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 300
    # It wakes the fleet all the same.
    said = await hearing
    assert (said.arrivals, said.shed, said.queue_requests) == (1, 1, 0)
