"""A picker that has just begun knows no fleet: whoever asks waits until it does, and is not told that the model is unknown."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway import ext_proc
from moefleet_gateway.aborts import Aborts
from moefleet_gateway.ext_proc import Picker
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.facts import Fleet, Load, Replica
from moefleet_gateway.streams import Call, Stream

UNAVAILABLE, NOT_FOUND = 14, 5


class Answers:
    """A stream that keeps what it was told."""

    def __init__(self) -> None:
        self.last: Any = None

    def send(self, message: bytes) -> None:
        raise AssertionError("headers and body have one answer, and it is the last")

    def end(self, message: bytes) -> None:
        self.last = pb.ProcessingResponse.FromString(message)


def asked(gateway: Gateway, model: str) -> tuple[Answers, Call]:
    answers = Answers()
    call = Picker(gateway, cast(Aborts, None)).open(cast(Stream, answers))
    headers = pb.ProcessingRequest()
    for key, value in ((":path", "/moefleet.inference.v1.InferenceService/Generate"), ("x-request-id", "r")):
        headers.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    message = inf.GenerateRequest(model=model, prompt="x").SerializeToString()
    body = pb.ProcessingRequest(
        request_body=pb.HttpBody(body=b"\0" + len(message).to_bytes(4, "big") + message, end_of_stream=True)
    )
    call.received(headers.SerializeToString())
    call.received(body.SerializeToString())
    return answers, call


def learn(gateway: Gateway) -> None:
    gateway.put_fleets([Fleet("ns", "f", "fu", "2026-01-01T00:00:00Z", "m")])
    gateway.put_replica(Replica("a", "a", "ns/f", "fu", "1.2.3.4:1", "1.2.3.4:2", ready=True, draining=False))
    gateway.put_load("a", Load("a", True, "SERVING", gateway.now()))
    gateway.mark_synced()
    gateway.confirmed(gateway.core.endpoints.version)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_waits_until_the_fleets_are_known_and_is_then_sent_on() -> None:
    gateway = Gateway("g", 60.0)
    answers, _ = asked(gateway, "m")
    await settle()
    assert answers.last is None
    learn(gateway)
    await settle()
    headers = answers.last.request_headers.response.header_mutation.set_headers
    sent = {h.header.key: h.header.raw_value.decode() for h in headers}
    assert sent["x-gateway-destination-endpoint"] == "1.2.3.4:1"


async def test_one_for_a_model_that_is_not_there_learns_that_when_it_is_true() -> None:
    gateway = Gateway("g", 60.0)
    answers, _ = asked(gateway, "another")
    await settle()
    assert answers.last is None
    learn(gateway)
    await settle()
    assert answers.last.immediate_response.grpc_status.status == NOT_FOUND
    assert b"known models: m" in answers.last.immediate_response.body


async def test_a_picker_that_learns_nothing_says_so_and_that_another_try_is_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ext_proc, "KNOW_WAIT_S", 0.0)
    answers, _ = asked(Gateway("g", 60.0), "m")
    await settle()
    assert answers.last.immediate_response.grpc_status.status == UNAVAILABLE


async def test_who_leaves_while_waiting_is_forgotten() -> None:
    gateway = Gateway("g", 60.0)
    answers, call = asked(gateway, "m")
    await settle()
    call.lost()
    learn(gateway)
    await settle()
    assert answers.last is None
