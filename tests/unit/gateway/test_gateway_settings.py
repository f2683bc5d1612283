"""Settings, the control credential and rich errors."""

import base64
import errno
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import status_pb2
from moefleet_gateway.credentials import Credentials, bearer_matches, decode_key
from moefleet_gateway.errors import immediate
from moefleet_gateway.listening import bindable, ipv6_works
from moefleet_gateway.picking.refusals import bad_request, queue_full, unknown_model
from moefleet_gateway.settings import Settings, SettingsError, load


def listens(settings: Settings) -> list[str]:
    at = (settings.listen, settings.control_listen, settings.health_listen, settings.metrics_listen)
    return [str(one) for one in at]


def test_without_ipv6_the_wildcard_is_that_of_ipv4_and_a_named_address_stays() -> None:
    settings = load({"MOEFLEET_METRICS_LISTEN": "127.0.0.1:9"})
    assert bindable(settings, ipv6=True) == settings
    assert listens(bindable(settings, ipv6=False)) == [
        "0.0.0.0:8080",
        "0.0.0.0:8502",
        "0.0.0.0:8503",
        "127.0.0.1:9",
    ]


@pytest.mark.parametrize("error", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_kernel_without_ipv6_is_noticed(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, "no IPv6")

    monkeypatch.setattr("socket.socket.bind", refuse)
    assert not ipv6_works()


def test_defaults() -> None:
    settings = load({})
    assert listens(settings) == ["[::]:8080", "[::]:8502", "[::]:8503", "[::]:9091"]
    assert (settings.watch_namespaces, settings.control_key_file) == ((), None)
    assert (settings.hold_max_s, settings.drain_s, settings.envoy_concurrency) == (600, 900, 2)
    assert settings.replica_silence_s == 8


def test_values() -> None:
    settings = load(
        {
            "MOEFLEET_WATCH_NAMESPACES": "a, b,",
            "MOEFLEET_LISTEN": "[::]:80",
            "MOEFLEET_CPU_LIMIT_MILLIS": "3500",
        }
    )
    assert settings.watch_namespaces == ("a", "b")
    assert (settings.listen.host, settings.listen.port, str(settings.listen)) == ("::", 80, "[::]:80")
    assert settings.envoy_concurrency == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOEFLEET_LISTEN", "8080"),
        ("MOEFLEET_LISTEN", "host:port"),
        ("MOEFLEET_LISTEN", "host:99999"),
        ("MOEFLEET_HOLD_MAX_S", "60s"),
        ("MOEFLEET_HOLD_MAX_S", "-1"),
        ("MOEFLEET_REPLICA_SILENCE_S", "3"),
        ("MOEFLEET_DRAIN_S", "inf"),
        ("MOEFLEET_ENVOY_CONCURRENCY", "many"),
        ("MOEFLEET_ENVOY_MEMORY_LIMIT_BYTES", "1Gi"),
        ("MOEFLEET_ENVOY_MEMORY_LIMIT_BYTES", "1000000"),
    ],
)
def test_a_value_that_cannot_be_used_stops_the_start_and_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        load({name: value})
    assert value in str(caught.value)


KEY = bytes(range(32))


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(base64.b64encode(KEY) + b"\n")
    credentials = Credentials(file)
    # Values that the operator and the runtime compute too (decision 0001).
    assert credentials.gateway_token() == "56dc15dbebbb8ae67b674c41fd327f93280a90c230c90e29d8b34de5f2932b4f"
    assert (
        credentials.replica_token("u") == "82ab6cfe126b3b407492a5cffc03e7ccba545a01ae127d1f49a4abe48964718a"
    )
    assert credentials.replica_token("u") != credentials.replica_token("v")
    assert Credentials(None).replica_token("u") == ""
    assert bearer_matches(f"Bearer {credentials.gateway_token()}", credentials.gateway_token())
    assert not bearer_matches("Bearer ", credentials.gateway_token())
    assert not bearer_matches("Bearer gr\u00f6\u00dfer", credentials.gateway_token())


@pytest.mark.parametrize("content", [b"", b"not base64!", base64.b64encode(b"short")])
def test_a_key_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="base64 of 32 bytes"):
        decode_key(content)


@pytest.mark.parametrize(
    ("refusal", "code", "http", "kinds"),
    [
        (bad_request("prompt", "must not be empty"), 3, 400, ["ErrorInfo", "BadRequest"]),
        (unknown_model("x", ("a",)), 5, 404, ["ErrorInfo"]),
        (queue_full("ns/f", 5, 5, 2.5), 8, 429, ["ErrorInfo", "RetryInfo", "QuotaFailure"]),
    ],
)
def test_refusals_as_envoy_gets_them(refusal: object, code: int, http: int, kinds: list[str]) -> None:
    answer = immediate(refusal).immediate_response
    assert (answer.grpc_status.status, answer.status.code, answer.body.decode()) == (
        code,
        http,
        refusal.message,
    )
    headers = {o.header.key: o.header.raw_value.decode() for o in answer.headers.set_headers}
    packed = headers["grpc-status-details-bin"]
    assert not packed.endswith("=")
    status = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
    assert (status.code, status.message) == (code, refusal.message)
    assert [d.type_url.rsplit(".", 1)[-1] for d in status.details] == kinds
    assert MessageToDict(status)["details"][0]["domain"] == "moefleet.io"
    assert ("grpc-retry-pushback-ms" in headers) == (refusal.retry_after_s is not None)
