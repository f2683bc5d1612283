"""What is read from a request, and what is refused before anybody is asked."""

import gzip
import zlib

import pytest
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway import methods
from moefleet_gateway.ext_proc import timeout_s
from moefleet_gateway.picking.core import Ask
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.refusals import Refusal
from moefleet_gateway.requests import Read, read
from moefleet_gateway.settings import MESSAGE_MAX_BYTES
from smg_grpc_proto.generated import trtllm_service_pb2 as trt

TINY = Fleet("ns", "tiny", "u", "2026-01-01T00:00:00Z", "m", context_length=8)
MODELS = ModelTable([TINY])


def frame(message: object, compressed: bytes | None = None) -> bytes:
    body = message.SerializeToString() if compressed is None else compressed
    return bytes([compressed is not None]) + len(body).to_bytes(4, "big") + body


def ask(path: str, message: object, **headers: str) -> Read | Refusal:
    names = {"request_id": "x-request-id", "authority": ":authority", "fleet": "x-moefleet-fleet"}
    sent = {"x-request-id": "r", **{names.get(k, k.replace("_", "-")): v for k, v in headers.items()}}
    return read(path, sent, frame(message), MODELS)


def generate(**fields: object) -> Read | Refusal:
    return ask(methods.GENERATE, inf.GenerateRequest(**{"model": "m", **fields}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "größe"}, Ask("r", text_bytes=7)),
        ({"token_ids": inf.TokenIds(ids=range(8))}, Ask("r", ids=8)),
        ({"prompt": "x", "stopping": inf.Stopping(max_tokens=5)}, Ask("r", text_bytes=1, max_tokens=5)),
        ({"prompt": "x", "stopping": inf.Stopping(ignore_eos=True)}, Ask("r", text_bytes=1)),
        ({"prompt": "x", "model": "ns/m"}, Ask("r", text_bytes=1)),
    ],
)
def test_generate(fields: dict[str, object], expected: Ask) -> None:
    assert generate(**fields) == Read(TINY, expected)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"token_ids": inf.TokenIds()}, "token_ids"),
        ({"token_ids": inf.TokenIds(ids=range(9))}, "token_ids"),
        ({"prompt": "x", "model": ""}, "model"),
        ({"prompt": "x", "stopping": inf.Stopping(max_tokens=0)}, "stopping.max_tokens"),
        ({"prompt": "x", "stopping": inf.Stopping(max_tokens=-7)}, "stopping.max_tokens"),
    ],
)
def test_bad_generate(fields: dict[str, object], field: str) -> None:
    refusal = generate(**fields)
    assert isinstance(refusal, Refusal)
    assert refusal.status == "INVALID_ARGUMENT"
    assert [v.field for v in refusal.violations] == [field]
    assert refusal.message.startswith(f"{field}: ")


def test_a_retrying_client_is_seen() -> None:
    request = inf.GenerateRequest(model="m", prompt="x")
    asked = ask(methods.GENERATE, request, grpc_previous_rpc_attempts="2")
    assert isinstance(asked, Read)
    assert asked.ask.retried


TOKENS = trt.TokenizedInput(input_token_ids=[1, 2, 3])


def test_trtllm() -> None:
    request = trt.GenerateRequest(request_id="e", tokenized=TOKENS, max_tokens=9)
    expected = Read(TINY, Ask("r", ids=3, max_tokens=9, engine_request_id="e"))
    assert ask(methods.TRTLLM_GENERATE, request, authority="tiny.ns:8080") == expected
    assert ask(methods.TRTLLM_GENERATE, request, authority="gw", fleet="ns/tiny") == expected
    aborted = ask(methods.TRTLLM_ABORT, trt.AbortRequest(request_id="e"), authority="tiny.ns")
    assert aborted == Read(TINY, Ask("r", kind="info"), abort_of="e")
    for path in methods.TRTLLM_INFO:
        assert ask(path, trt.HealthCheckRequest(), authority="tiny.ns") == Read(TINY, Ask("r", kind="info"))


@pytest.mark.parametrize(
    ("request_", "authority", "status"),
    [
        (trt.GenerateRequest(request_id="e"), "tiny.ns", "INVALID_ARGUMENT"),
        (trt.GenerateRequest(request_id="e" * 300, tokenized=TOKENS), "tiny.ns", "INVALID_ARGUMENT"),
        (trt.GenerateRequest(request_id="e", tokenized=TOKENS), "other.ns", "NOT_FOUND"),
        (trt.GenerateRequest(request_id="e", tokenized=TOKENS), "", "NOT_FOUND"),
    ],
)
def test_bad_trtllm(request_: trt.GenerateRequest, authority: str, status: str) -> None:
    refusal = ask(methods.TRTLLM_GENERATE, request_, authority=authority)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


GOOD = inf.GenerateRequest(model="m", prompt="x").SerializeToString()
BOMB = gzip.compress(b"\0" * (MESSAGE_MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"", "identity", "INVALID_ARGUMENT"),
        (b"\0\0\0", "identity", "INVALID_ARGUMENT"),
        (b"\0\0\0\0\x05abc", "identity", "INVALID_ARGUMENT"),
        (frame(None, b"") * 2, "identity", "INVALID_ARGUMENT"),
        (b"\0" + (MESSAGE_MAX_BYTES + 1).to_bytes(4, "big"), "identity", "INVALID_ARGUMENT"),
        (b"\0\0\0\0\x02\xff\xff", "identity", "INVALID_ARGUMENT"),
        (frame(None, gzip.compress(GOOD)), "gzip", None),
        (frame(None, zlib.compress(GOOD)), "deflate", None),
        (frame(None, b"no gzip"), "gzip", "INVALID_ARGUMENT"),
        (frame(None, BOMB), "gzip", "INVALID_ARGUMENT"),
        (frame(None, GOOD), "snappy", "UNIMPLEMENTED"),
    ],
)
def test_frames(body: bytes, encoding: str, status: str | None) -> None:
    answer = read(methods.GENERATE, {"grpc-encoding": encoding}, body, MODELS)
    assert (answer.status if isinstance(answer, Refusal) else None) == status


def test_a_method_that_is_not_served_is_unimplemented() -> None:
    refusal = ask("/moefleet.replica.v1.ReplicaService/Drain", inf.ListModelsRequest(), authority="tiny.ns")
    assert isinstance(refusal, Refusal)
    assert refusal.status == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5S", 5),
        ("1500m", 1.5),
        ("2M", 120),
        ("1H", 3600),
        ("7u", 7e-6),
        ("9n", 9e-9),
        ("", None),
        ("5", None),
        ("xS", None),
    ],
)
def test_grpc_timeout(text: str, seconds: float | None) -> None:
    assert timeout_s(text) == pytest.approx(seconds) if seconds else timeout_s(text) is None
