"""Envoy's configuration as a reviewer reads it: tests/golden/gateway/envoy.json. Written anew by `make golden`."""

import json
import os
from copy import deepcopy
from pathlib import Path

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2  # noqa: F401
from envoy.extensions.access_loggers.grpc.v3 import als_pb2  # noqa: F401
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2  # noqa: F401
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2  # noqa: F401
from envoy.extensions.resource_monitors.fixed_heap.v3 import fixed_heap_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf import json_format
from moefleet_gateway import methods
from moefleet_gateway.bootstrap import BUFFER, EXT_PROC, PING_JITTER, bootstrap, replica_keepalive
from moefleet_gateway.settings import MESSAGE_MAX_BYTES, load

GOLDEN = Path(__file__).parents[2] / "golden/gateway/envoy.json"


def test_the_configuration_is_the_reviewed_one() -> None:
    made = json.dumps(bootstrap(load({"POD_NAME": "gateway-0"})), indent=1) + "\n"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()


def test_every_field_is_one_that_envoy_knows() -> None:
    # ParseDict takes "@type" out and puts it back, which would change the order of what others are compared with.
    json_format.ParseDict(deepcopy(bootstrap(load({}))), bootstrap_pb2.Bootstrap())


def routes() -> list[dict[str, object]]:
    manager = bootstrap(load({}))["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    return manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]


def test_only_the_listed_methods_have_a_route_and_none_is_of_the_replica_service() -> None:
    paths = [route["match"]["path"] for route in routes() if "path" in route["match"]]
    assert sorted(paths) == sorted([*methods.TO_REPLICA, *methods.TO_PICKER])
    assert not [p for p in paths if "ReplicaService" in p or "GatewayService" in p]
    assert "direct_response" in routes()[-1]


def test_what_a_held_request_needs() -> None:
    made = bootstrap(load({"MOEFLEET_HOLD_MAX_S": "60"}))
    listener = made["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    filters = {entry["name"]: entry["typed_config"] for entry in manager["http_filters"]}
    assert filters[EXT_PROC]["message_timeout"] == "65s"
    assert listener["per_connection_buffer_limit_bytes"] > MESSAGE_MAX_BYTES
    assert manager["http2_protocol_options"]["initial_stream_window_size"] > MESSAGE_MAX_BYTES


def test_the_picker_is_asked_once_with_headers_and_all_of_the_body() -> None:
    manager = bootstrap(load({}))["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    names = [entry["name"] for entry in manager["typed_config"]["http_filters"]]
    assert names.index(BUFFER) < names.index(EXT_PROC)
    # Streams of the picker's own methods have no end that could be waited for.
    for route in routes():
        asked = route["match"].get("path") in methods.TO_REPLICA
        disabled = set(route.get("typed_per_filter_config", {}))
        assert disabled == (set() if asked else {BUFFER, EXT_PROC}), route["match"]


@pytest.mark.parametrize("silence_s", [4, 8, 300])
def test_whenever_a_replica_falls_silent_it_is_found_within_the_time_that_was_set(silence_s: float) -> None:
    pings = {name: float(value.removesuffix("s")) for name, value in replica_keepalive(silence_s).items()}
    worst_s = pings["interval"] * (1 + PING_JITTER) + pings["timeout"]
    assert worst_s == pytest.approx(silence_s)
    # A moment without a processor is forgiven: the answer may take more than half of it.
    assert pings["timeout"] > silence_s / 2
    assert pings["connection_idle_interval"] <= pings["interval"]
