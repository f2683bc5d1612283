"""The OpenAI edge, in its pure parts: ids, who is asked for, what a replica's archive may be, Envoy's configuration."""

import io
import json
import os
import zipfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2  # noqa: F401
from envoy.extensions.access_loggers.grpc.v3 import als_pb2  # noqa: F401
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2  # noqa: F401
from envoy.extensions.resource_monitors.fixed_heap.v3 import fixed_heap_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from moefleet_gateway import methods
from moefleet_gateway.bootstrap import bootstrap
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.openai.edge import Asked, Edge, read
from moefleet_gateway.openai.errors import immediate, seconds
from moefleet_gateway.openai.ids import mark, sign, verify
from moefleet_gateway.openai.inner import Reader
from moefleet_gateway.openai.listeners import add_openai
from moefleet_gateway.openai.served import ServedModels
from moefleet_gateway.openai.tokenizers import BUNDLE_MAX_BYTES, FILES_MAX, BundleError, Store, unpack
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.refusals import Refusal, queue_full, unknown_model
from moefleet_gateway.requests import Read
from moefleet_gateway.settings import SettingsError, load
from moefleet_gateway.streams import Stream
from smg_grpc_proto.generated import trtllm_service_pb2 as trt

GOLDEN = Path(__file__).parents[2] / "golden/gateway/envoy-openai.json"
KEY = b"k" * 32
ON = {"POD_NAME": "gateway-0", "MOEFLEET_OPENAI_LISTEN": "[::]:8081"}
CHAT = Fleet("team", "chat", "uid-chat", "2026-01-01T00:00:00Z", "chat-model")
OTHER = Fleet("b", "x", "uid-x", "2026-01-02T00:00:00Z", "chat-model")  # younger: known as b/chat-model
MODELS = ModelTable([CHAT, OTHER])


# --- ids ---


@given(
    fleet=st.text(max_size=104),
    unique=st.text("0123456789abcdef-", max_size=60),
    flags=st.tuples(st.booleans(), st.booleans()),
    seed=st.none() | st.integers(0, (1 << 64) - 1),
    added=st.sampled_from(["", "-0191f3c2", "-p12-0191f3c2-aaaa"]),
)
def test_an_id_is_found_again_in_what_smg_makes_of_it(
    fleet: str, unique: str, flags: tuple[bool, bool], seed: int | None, added: str
) -> None:
    retried, open_ended = flags
    edge_id = sign(KEY, fleet, unique, retried=retried, open_ended=open_ended, seed=seed)
    assert len(edge_id) <= 128
    assert edge_id.isascii()
    signed = verify(KEY, edge_id + added)
    assert signed is not None
    assert (signed.fleet, signed.retried, signed.open_ended) == (mark(fleet), retried, open_ended)
    assert signed.seed == seed
    assert signed.edge_id == edge_id
    assert verify(b"another pod's key", edge_id + added) is None


@given(st.data())
def test_an_id_with_one_character_changed_is_nobodys(data: st.DataObject) -> None:
    edge_id = sign(KEY, "team/chat", "6f1c")
    at = data.draw(st.integers(0, len(edge_id) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != edge_id[at]))
    assert verify(KEY, edge_id[:at] + other + edge_id[at + 1 :]) is None


@pytest.mark.parametrize(
    "forged", ["", "x", "mf.", "mf...", "mf.a.b", "mf.a.b.c", "mf.a.b.é", "chatcmpl-1", "mf.a.b." + "0" * 500]
)
def test_ids_of_others_are_nobodys(forged: str) -> None:
    assert verify(KEY, forged) is None


# --- what SMG sends ---


def frame(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def test_the_inner_listener_takes_requests_and_aborts_of_the_edge_and_nothing_else() -> None:
    reader = Reader(KEY)
    engine_id = sign(KEY, CHAT.key, "6f1c", retried=True) + "-0191"
    tokens = trt.TokenizedInput(input_token_ids=[1, 2, 3])
    request = trt.GenerateRequest(request_id=engine_id, tokenized=tokens, max_tokens=5)
    headers = {"x-request-id": "envoy's"}
    found = reader(methods.TRTLLM_GENERATE, headers, frame(request.SerializeToString()), MODELS)
    assert isinstance(found, Read)
    assert found.fleet is CHAT
    assert (found.ask.request_id, found.ask.engine_request_id) == ("envoy's", engine_id)
    assert (found.ask.ids, found.ask.max_tokens, found.ask.retried) == (3, 5, True)
    assert found.headers == ()
    request.request_id = sign(KEY, CHAT.key, "6f1c", open_ended=True) + "-0191"
    found = reader(methods.TRTLLM_GENERATE, headers, frame(request.SerializeToString()), MODELS)
    assert isinstance(found, Read)
    assert (found.ask.max_tokens, found.headers) == (None, (("x-moefleet-open-ended", "1"),))
    request.request_id = sign(KEY, CHAT.key, "6f1c", seed=7) + "-0191"
    found = reader(methods.TRTLLM_GENERATE, headers, frame(request.SerializeToString()), MODELS)
    assert isinstance(found, Read)
    assert (found.ask.max_tokens, found.headers) == (5, (("x-moefleet-seed", "7"),))
    abort = trt.AbortRequest(request_id=engine_id)
    found = reader(methods.TRTLLM_ABORT, headers, frame(abort.SerializeToString()), MODELS)
    assert isinstance(found, Read)
    assert (found.fleet, found.abort_of) == (CHAT, engine_id)
    for path, message, wanted in (
        (
            methods.TRTLLM_GENERATE,
            trt.GenerateRequest(request_id="forged", tokenized=tokens),
            "PERMISSION_DENIED",
        ),
        (methods.TRTLLM_ABORT, trt.AbortRequest(request_id="forged"), "PERMISSION_DENIED"),
        (methods.GENERATE, abort, "UNIMPLEMENTED"),
    ):
        refusal = reader(path, headers, frame(message.SerializeToString()), MODELS)
        assert isinstance(refusal, Refusal), path
        assert refusal.status == wanted
    bad = reader(methods.TRTLLM_GENERATE, headers, frame(b"\xff\xff"), MODELS)
    assert isinstance(bad, Refusal)
    assert bad.status == "INVALID_ARGUMENT"
    gone = reader(methods.TRTLLM_GENERATE, headers, frame(request.SerializeToString()), ModelTable([OTHER]))
    assert isinstance(gone, Refusal)
    assert gone.status == "NOT_FOUND"  # which waits in a picker that has just begun


# --- what clients send ---


@pytest.mark.parametrize(
    ("body", "fleet", "seed"),
    [
        (b'{"model": "chat-model"}', CHAT, None),
        (b'{"model": "team/chat-model", "messages": []}', CHAT, None),
        (b'{"model": "b/chat-model"}', OTHER, None),
        (b'{"model": "chat-model", "max_tokens": 5}', CHAT, None),
        (b'{"model": "chat-model", "max_completion_tokens": 5, "x": null}', CHAT, None),
        (b'{"model": "chat-model", "logit_bias": {}, "seed": 3}', CHAT, 3),
        (b'{"model": "chat-model", "seed": 0}', CHAT, 0),
        (b'{"model": "chat-model", "seed": null}', CHAT, None),
        (b'{"model": "chat-model", "seed": -1}', CHAT, (1 << 64) - 1),
    ],
)
def test_the_body_names_the_fleet_and_the_seed(body: bytes, fleet: Fleet, seed: int | None) -> None:
    asked = read(body, MODELS)
    assert isinstance(asked, Asked)
    assert (asked.fleet, asked.seed) == (fleet, seed)
    assert asked.open_ended == (b"max" not in body)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b"", 400, "body", "not JSON"),
        (b"{", 400, "body", "not JSON"),
        (b"\xff\xfe{}", 400, "body", "not JSON"),
        (b"[" * 100_000, 400, "body", "not JSON"),
        (b"[]", 400, "model", "must name a model; known models: chat-model"),
        (b'{"model": 5}', 400, "model", "must name a model"),
        (b'{"model": ""}', 400, "model", "must name a model"),
        (b'{"model": "chat-model", "logit_bias": {"5": 1}}', 400, "logit_bias", "is not served here"),
        (b'{"model": "chat-model", "seed": 1.5}', 400, "seed", "integer of 64 bits, found 1.5"),
        (b'{"model": "chat-model", "seed": true}', 400, "seed", "found true"),
        (b'{"model": "chat-model", "seed": 9223372036854775808}', 400, "seed", "integer of 64 bits"),
        (b'{"model": "gpt"}', 404, None, "model 'gpt' is not served here; known models: chat-model"),
    ],
)
def test_wrong_bodies_are_refused_in_openais_words(
    body: bytes, status: int, param: str | None, words: str
) -> None:
    refusal = read(body, MODELS)
    assert isinstance(refusal, Refusal)
    answer = immediate(refusal).immediate_response
    assert answer.status.code == status
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "logit_bias", "seed", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_comes_is_a_fleet_or_a_refusal_that_clients_can_read(body: bytes) -> None:
    found = read(body, MODELS)
    if isinstance(found, Refusal):
        answer = immediate(found).immediate_response
        assert answer.status.code in (400, 404)
        assert json.loads(answer.body)["error"]["message"]
    else:
        assert found.fleet in (CHAT, OTHER)


class Answered:
    """Envoy's stream as the edge sees it."""

    def __init__(self) -> None:
        self.said: list[ext_proc.ProcessingResponse] = []

    def send(self, message: bytes) -> None:
        self.said.append(ext_proc.ProcessingResponse.FromString(message))

    end = send


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        ("200", b'{"model": "chat-model"}', None),
        ("400", b'{"model": "chat-model"}', None),
        # SMG was started anew and was not told of the model yet.
        ("404", b'{"model": "chat-model"}', 503),
        # Nobody knows it: that is refused before SMG hears of it.
        ("", b'{"model": "gpt"}', 404),
    ],
)
def test_a_model_that_only_smg_does_not_know_is_not_not_found(
    status: str, body: bytes, told: int | None
) -> None:
    known = SimpleNamespace(models=MODELS)
    gateway = cast(Gateway, SimpleNamespace(core=known, synced=True))
    served = cast(ServedModels, SimpleNamespace(has=lambda key: True))
    stream = Answered()
    call = Edge(gateway, served, KEY).open(cast(Stream, stream))
    path = {"headers": [{"key": ":path", "raw_value": b"/v1/chat/completions"}]}
    call.received(ext_proc.ProcessingRequest(request_headers={"headers": path}).SerializeToString())
    call.received(ext_proc.ProcessingRequest(request_body={"body": body}).SerializeToString())
    if status:
        answer = {"headers": [{"key": ":status", "raw_value": status.encode()}]}
        call.received(ext_proc.ProcessingRequest(response_headers={"headers": answer}).SerializeToString())
    last = stream.said[-1]
    if told is None:
        assert last.WhichOneof("response") == "response_headers"
        return
    assert last.immediate_response.status.code == told
    error = json.loads(last.immediate_response.body)["error"]
    headers = {o.header.key for o in last.immediate_response.headers.set_headers}
    assert error["code"] == ("gateway_starting" if told == 503 else "model_not_found")
    assert ("retry-after" in headers) is (told == 503)


def test_a_refusal_says_when_to_come_again() -> None:
    answer = immediate(queue_full("team/chat", 10, 10, 1.2)).immediate_response
    headers = {o.header.key: o.header.raw_value.decode() for o in answer.headers.set_headers}
    assert answer.status.code == 429
    assert headers == {"content-type": "application/json", "retry-after": "2"}
    assert json.loads(answer.body)["error"]["code"] == "rate_limit_exceeded"
    never = immediate(unknown_model("x", ())).immediate_response
    assert "retry-after" not in {o.header.key for o in never.headers.set_headers}
    assert [seconds(s) for s in (0.0, 0.2, 1.0, 1.1)] == ["1", "1", "1", "2"]


# --- tokenizers ---


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return out.getvalue()


GOOD = {"tokenizer.json": b"{}", "config.json": b"{}"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a zip"),
        (b"PK\x03\x04 and no more", "not a zip"),
        (archive(**GOOD)[:-30], "not a zip"),
        (archive(**{"config.json": b"{}"}), "no tokenizer.json"),
        (archive(**GOOD, **{"../evil": b"x"}), "is a path"),
        (archive(**GOOD, **{"/evil": b"x"}), "is a path"),
        (archive(**GOOD, **{"a/tokenizer.json": b"x"}), "is a path"),
        (archive(**GOOD, **{f"{n}": b"" for n in range(FILES_MAX)}), "files, at most"),
        (archive(**GOOD, bomb=b"\0" * (BUNDLE_MAX_BYTES + 1)), "bytes unpacked"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replicas_archive_is_refused_with_a_reason(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=words):
        unpack(data, tmp_path)
    assert not list(tmp_path.parent.glob("evil"))


async def test_the_store_keeps_one_bundle_a_fleet_and_finds_it_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(CHAT) is None
    first = await store.put(CHAT, archive(**GOOD))
    assert (first / "config.json").read_bytes() == b"{}"
    assert await store.put(CHAT, archive(**GOOD)) == first
    second = await store.put(CHAT, archive(**{"tokenizer.json": b'{"a": 1}'}))
    assert Store(tmp_path).find(CHAT) == second
    assert not first.exists()
    await store.put(OTHER, archive(**GOOD))
    await store.keep([CHAT])
    assert (store.find(CHAT), store.find(OTHER)) == (second, None)
    with pytest.raises(BundleError):
        await store.put(OTHER, b"nonsense")
    assert store.find(OTHER) is None


# --- Envoy's configuration ---


def made() -> dict[str, object]:
    settings = load(ON)
    assert settings.openai is not None
    return add_openai(bootstrap(settings), settings, settings.openai)


def test_the_configuration_is_the_reviewed_one() -> None:
    text = json.dumps(made(), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_field_is_one_that_envoy_knows() -> None:
    # It changes the order of what it reads.
    json_format.ParseDict(deepcopy(made()), bootstrap_pb2.Bootstrap())


def test_only_three_paths_are_open_and_what_lies_behind_is_on_loopback() -> None:
    listeners = {one["name"]: one for one in made()["static_resources"]["listeners"]}
    assert set(listeners) == {"grpc", "openai", "inner"}
    manager = listeners["openai"]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    paths = [route["match"]["path"] for route in routes if "path" in route["match"]]
    assert paths == ["/v1/chat/completions", "/v1/completions", "/v1/models"]
    assert routes[-1]["direct_response"]["status"] == 404
    assert listeners["inner"]["address"]["socket_address"]["address"] == "127.0.0.1"
    # A drain closes the listeners of consumers, and leaves what they began its way to the replicas.
    assert [listeners[n]["traffic_direction"] for n in ("grpc", "openai", "inner")] == [
        "INBOUND",
        "INBOUND",
        "OUTBOUND",
    ]
    with pytest.raises(SettingsError, match="MOEFLEET_OPENAI_SMG must be a loopback address"):
        load({**ON, "MOEFLEET_OPENAI_SMG": "[::]:8505"})
