"""Settings: what is taken, and that a value which cannot be parsed stops the start with one sentence."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from moefleet_operator.settings import SettingsError, load

NEEDED = {"OPERATOR_NAMESPACE": "ops", "POD_NAME": "operator-0"}


def test_defaults() -> None:
    settings = load(NEEDED, [])
    assert (settings.namespace, settings.pod_name) == ("ops", "operator-0")
    assert settings.watch_namespaces == ()
    assert (settings.gateway, settings.node_autoscaler, settings.control_key) == (True, False, None)
    assert (settings.metrics_host, settings.metrics_port, settings.log_level) == ("::", 9090, "info")
    assert settings.kubeconfig is None


def test_everything_set(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(bytes(range(32))).decode() + "\n")
    settings = load(
        {
            **NEEDED,
            "MOEFLEET_CONTROL_KEY_FILE": str(key),
            "MOEFLEET_WATCH_NAMESPACES": " team-a, team-b,team-a,",
            "MOEFLEET_GATEWAY_ENABLED": "False",
            "MOEFLEET_NODE_AUTOSCALER": "true",
            "MOEFLEET_METRICS_LISTEN": "127.0.0.1:0",
            "MOEFLEET_LOG_LEVEL": "WARNING",
            "KUBECONFIG": "/tmp/k",
        },
        [],
    )
    assert settings.control_key == bytes(range(32))
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert (settings.gateway, settings.node_autoscaler) == (False, True)
    assert (settings.metrics_host, settings.metrics_port, settings.log_level) == ("127.0.0.1", 0, "warning")
    assert settings.kubeconfig == "/tmp/k"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("OPERATOR_NAMESPACE", "", "OPERATOR_NAMESPACE is required and is not set"),
        ("POD_NAME", " ", "POD_NAME is required and is not set"),
        ("MOEFLEET_GATEWAY_ENABLED", "yes", "MOEFLEET_GATEWAY_ENABLED: wanted true or false, found 'yes'"),
        (
            "MOEFLEET_WATCH_NAMESPACES",
            "a,B",
            "MOEFLEET_WATCH_NAMESPACES: wanted names of namespaces .* found 'B'",
        ),
        ("MOEFLEET_METRICS_LISTEN", "9090", "MOEFLEET_METRICS_LISTEN: wanted HOST:PORT .* found '9090'"),
        (
            "MOEFLEET_METRICS_LISTEN",
            "[::]:70000",
            "MOEFLEET_METRICS_LISTEN: wanted HOST:PORT .* found '\\[::\\]:70000'",
        ),
        (
            "MOEFLEET_LOG_LEVEL",
            "loud",
            "MOEFLEET_LOG_LEVEL: wanted one of debug, info, warning, error, found 'loud'",
        ),
        (
            "MOEFLEET_CONTROL_KEY_FILE",
            "/nowhere/key",
            "MOEFLEET_CONTROL_KEY_FILE: cannot read /nowhere/key: No such file",
        ),
    ],
)
def test_a_value_that_cannot_be_parsed_stops_the_start(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load({**NEEDED, name: value}, [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not base64!", "wanted base64 text in"),
        (b"\xff\xfe", "wanted base64 text in"),
        (base64.b64encode(b"short"), "wanted the base64 of 32 bytes in .* found 5 bytes"),
    ],
)
def test_a_key_that_is_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        load({**NEEDED, "MOEFLEET_CONTROL_KEY_FILE": str(key)}, [])


def test_arguments_are_refused_with_a_hint() -> None:
    with pytest.raises(SettingsError, match="everything is set by the environment"):
        load(NEEDED, ["--namespace=x"])


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"namespace": "ops", "serviceaccount": {"name": "op", "uid": "u-1"}}, ("op", "u-1")),
        # Elsewhere: an owner in another namespace would end the Lease at once.
        ({"namespace": "else", "serviceaccount": {"name": "op", "uid": "u-1"}}, None),
        ({"namespace": "ops"}, None),
        (None, None),
    ],
)
def test_our_service_account_is_read_from_our_token(
    tmp_path: Path, claims: dict[str, object] | None, found: tuple[str, str] | None
) -> None:
    token = tmp_path / "token"
    body = base64.urlsafe_b64encode(json.dumps({"kubernetes.io": claims}).encode()).decode().rstrip("=")
    token.write_text(f"e30.{body}.c2ln")
    assert load(NEEDED, [], token).service_account == found


@pytest.mark.parametrize("text", [None, "", "no token", "a.!!!.b", "a.bm8ganNvbg.b"])
def test_without_a_token_that_can_be_read_there_is_no_service_account(
    tmp_path: Path, text: str | None
) -> None:
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
    assert load(NEEDED, [], token).service_account is None
