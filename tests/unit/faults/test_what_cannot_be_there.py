"""What peers are complained about for having: hidden time limits, finalizers, webhooks. Here it is not there to go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc._cython.cygrpc
import yaml
from moefleet.client.connecting import CHANNEL_OPTIONS
from moefleet_gateway.bootstrap import bootstrap, replica_keepalive
from moefleet_gateway.settings import REPLICA_SILENCE_S, load
from moefleet_runtime.serving.listening import SERVER_OPTIONS

ROOT = Path(__file__).resolve().parents[3]
CRDS = ROOT / "charts/moefleet/files/crds"
# The chart as users get it, reviewed in tests/unit/chart.
CHART = (ROOT / "tests/unit/chart/golden/default.yaml", ROOT / "tests/unit/chart/golden/namespaced.yaml")
# What the operator makes.
RENDERED = sorted((ROOT / "tests/golden/rendering").glob("*.json"))
# Fields of Envoy that end a request or its connection after some time.
LIMITS = {
    "timeout",
    "idle_timeout",
    "stream_idle_timeout",
    "request_timeout",
    "per_try_timeout",
    "per_try_idle_timeout",
    "max_stream_duration",
    "grpc_timeout_header_max",
    "grpc_max_timeout",
    "max_grpc_timeout",
    "max_connection_duration",
    "stream_flush_timeout",
}
OPTION = re.compile(r'\("(grpc\.[a-z0-9_.]+)", ')
# Not of a request: the answer to a ping of ours.
NOT_OF_REQUESTS = {("connection_keepalive", "timeout")}


def walked(value: Any, above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name of the object, of the field, and its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield above, key, inner
            yield from walked(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from walked(inner, above)


def test_the_gateway_has_no_time_limit_of_its_own() -> None:
    """Envoy's defaults are 15 s for a route and 5 minutes without a byte: absent would be a limit."""
    made = bootstrap(load({"POD_NAME": "gateway-0"}))
    (listener,) = made["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    limits = {
        (above, name): value
        for above, name, value in walked(listener)
        if name in LIMITS and (above, name) not in NOT_OF_REQUESTS and not isinstance(value, dict)
    }
    assert set(limits.values()) == {"0s"}, limits
    assert manager["stream_idle_timeout"] == "0s"
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    to_somebody = [r["route"] for r in routes if "route" in r]
    assert len(to_somebody) >= 5
    for route in to_somebody:
        assert route["timeout"] == "0s", route
        assert route["max_stream_duration"] == {
            "max_stream_duration": "0s",
            "grpc_timeout_header_max": "0s",
        }, route


def test_nobody_of_ours_pings_more_often_than_a_replica_allows() -> None:
    """Or the replica answers GOAWAY too_many_pings, in the middle of streams; gRPC's own default allows a ping in 5 minutes."""
    allowed_ms = dict(SERVER_OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
    client_ms = dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"]
    # The least that may be set.
    pings = replica_keepalive(load({"MOEFLEET_REPLICA_SILENCE_S": "4"}).replica_silence_s)
    envoy_ms = 1000 * min(
        float(pings[name].removesuffix("s")) for name in ("interval", "connection_idle_interval")
    )
    # Half: on the way two pings may come closer to each other.
    assert allowed_ms <= 0.5 * min(client_ms, envoy_ms)
    assert dict(SERVER_OPTIONS)["grpc.keepalive_permit_without_calls"] == 1


def test_our_client_believes_a_silent_gateway_as_long_as_a_gateway_believes_a_silent_replica() -> None:
    """Together they are the pause in an answer that goes on: with 30 s and 10 s for the answer to a ping it was 35 s."""
    options = dict(CHANNEL_OPTIONS)
    assert (
        options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] == 1000 * REPLICA_SILENCE_S
    )
    assert REPLICA_SILENCE_S <= 10


def test_grpc_knows_each_option_by_its_name() -> None:
    """It ignores one that it does not know without a word: so replicas closed connections as pinged too often, once a prompt
    was computed for a minute and a half."""
    sources = [
        p for part in ("operator", "protos", "runtime", "tests/support") for p in (ROOT / part).rglob("*.py")
    ]
    named = {name for path in sources for name in OPTION.findall(path.read_text())}
    assert len(named) > 15
    core = Path(grpc._cython.cygrpc.__file__).read_bytes()
    assert not [name for name in sorted(named) if f"{name}\0".encode() not in core]


def test_nothing_of_ours_has_a_finalizer() -> None:
    objects = [json.loads(path.read_text()) for path in RENDERED]
    objects += [found for path in CHART for found in yaml.safe_load_all(path.read_text()) if found]
    assert len(objects) > 30
    for found in objects:
        assert "finalizers" not in (found.get("metadata") or {}), found["metadata"]


def test_no_webhook_can_stand_between_a_user_and_an_object() -> None:
    kinds = {found["kind"] for path in CHART for found in yaml.safe_load_all(path.read_text()) if found}
    assert {"Deployment", "ClusterRole"} <= kinds
    assert not [
        kind for kind in kinds if "Webhook" in kind or kind in ("APIService", "Issuer", "Certificate")
    ]
    for path in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        assert "conversion" not in crd["spec"], "one version, nothing to convert"
        assert [v["storage"] for v in crd["spec"]["versions"]] == [True]
