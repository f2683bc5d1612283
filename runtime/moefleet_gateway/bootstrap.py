"""Envoy's static configuration. Clusters and endpoints of fleets come by ADS from the picker (ads.py).

Each number has its reason beside it; most were found by a failure that the default caused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moefleet_gateway import headers, methods
from moefleet_gateway.lost import lost_replies
from moefleet_gateway.overload import overload_manager, too_large_reply
from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, HostPort, Settings

PICKER_CLUSTER = "picker"
# Called for every request, so each has a socket of its own, on which all calls are of one method (streams.py).
PICKS_CLUSTER = "picker-picks"
ACCESS_LOG_CLUSTER = "picker-access-log"
RETRIES = 3
# The hold limit ends a wait with a clear status first; this bounds a picker that hangs.
MESSAGE_TIMEOUT_MARGIN_S = 5
# Envoy's default of 1024 requests a cluster answers the 1025th stream with UNKNOWN, and the picker's cluster,
# which every request passes, overflows first. Queues have their limit in the picker.
CIRCUIT_BREAKERS = {
    "thresholds": [
        {
            "max_connections": 100_000,
            "max_pending_requests": 100_000,
            "max_requests": 100_000,
            "max_retries": 10_000,
        }
    ]
}
UPSTREAM_WINDOWS = {"initial_stream_window_size": 1 << 20, "initial_connection_window_size": 1 << 24}
# With HTTP/2 the stream window is also what Envoy buffers of a request body: at 1 MiB a request of 1.1 MiB is
# answered 413, whatever per_connection_buffer_limit_bytes says.
LISTENER_WINDOWS = {
    "initial_stream_window_size": ENVOY_BUFFER_BYTES,
    # A dozen bodies that wait do not stop the others of a connection.
    "initial_connection_window_size": 64 << 20,
}
MAX_STREAMS = 100_000
# A token is a small frame and a slow client leaves many of them waiting: the default of 10,000 frames closes the
# whole connection as a flood.
MAX_OUTBOUND_FRAMES = 1_000_000
MAX_OUTBOUND_CONTROL_FRAMES = 100_000
# Finds clients that are gone; they must allow pings this often. Nothing but a replica's time is lost until then.
KEEPALIVE = {"interval": "30s", "timeout": "10s", "connection_idle_interval": "30s"}
# Envoy lengthens each interval between pings by up to so much, at random.
PING_JITTER = 0.15
# The log is where a request's end and usage come from: its lag delays drains and the estimate of load. Every flush wakes the
# picker, and with few requests each has one to itself: 0.05 s was 40 wakes/s. Full buffers (16 KiB, some 30 requests) do not wait.
ACCESS_LOG_FLUSH = "0.2s"
ASKED_FLEET = "moefleet-asked-fleet"  # carries FLEET over the removal of its prefix; never leaves Envoy

_TYPE = "type.googleapis.com/envoy."
BUFFER = "envoy.filters.http.buffer"
EXT_PROC = "envoy.filters.http.ext_proc"


def bootstrap(settings: Settings) -> dict[str, Any]:
    return {
        "node": {"id": settings.pod_name, "cluster": "moefleet-gateway"},
        # A socket that only this pod's containers share: the admin interface can stop Envoy.
        "admin": {"address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o660}}},
        "overload_manager": overload_manager(settings.envoy_memory_limit_bytes),
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [picker_grpc(PICKER_CLUSTER, reconnect=True)],
            },
            # 0s: wait for the picker rather than open the listener with nothing behind it.
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "static_resources": {
            "clusters": [
                picker_cluster(PICKER_CLUSTER, settings.picker_socket),
                picker_cluster(PICKS_CLUSTER, settings.picks_socket),
                picker_cluster(ACCESS_LOG_CLUSTER, settings.access_log_socket),
            ],
            "listeners": [
                {
                    "name": "grpc",
                    "traffic_direction": "INBOUND",
                    "address": address(settings.listen),
                    "per_connection_buffer_limit_bytes": ENVOY_BUFFER_BYTES,
                    # A gRPC client has one connection for all its streams: dealt out by chance, a few of them meet the same worker.
                    "connection_balance_config": {"exact_balance": {}},
                    "filter_chains": [{"filters": [connection_manager(settings.hold_max_s)]}],
                }
            ],
        },
    }


def http2_upstream(keepalive: dict[str, str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {**UPSTREAM_WINDOWS, "max_concurrent_streams": MAX_STREAMS}
    if keepalive is not None:
        options["connection_keepalive"] = keepalive
    return {
        "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": options},
    }


def replica_keepalive(silence_s: float) -> dict[str, str]:
    """Pings by which a replica that is silent for `silence_s` is found, whenever it fell silent. Any byte from it, and the
    answer to a ping, counts. Pings are frequent and patience long, so that a moment without a processor is forgiven."""
    interval_s = silence_s / 4
    timeout_s = silence_s - interval_s * (1 + PING_JITTER)
    return {
        "interval": f"{interval_s:g}s",
        "timeout": f"{timeout_s:g}s",
        "connection_idle_interval": f"{interval_s:g}s",
    }


def picker_grpc(cluster: str, reconnect: bool = False) -> dict[str, Any]:
    service: dict[str, Any] = {"cluster_name": cluster}
    if reconnect:
        # By default a missed connection backs off towards a minute; a restarted picker must not wait for that.
        service["retry_policy"] = {"retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"}}
    return {"envoy_grpc": service}


def picker_cluster(name: str, socket: Path) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": CIRCUIT_BREAKERS,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2_upstream()
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
    }


def connection_manager(
    hold_max_s: float,
    stat_prefix: str = "gateway",
    picks_cluster: str = PICKS_CLUSTER,
    to_picker: Sequence[str] = methods.TO_PICKER,
    to_replica: Sequence[str] = methods.TO_REPLICA,
) -> dict[str, Any]:
    """Of a listener for gRPC: who answers which method, and which of the picker's sockets is asked about a request."""
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": stat_prefix,
            "codec_type": "HTTP2",
            "http2_protocol_options": {
                **LISTENER_WINDOWS,
                "max_concurrent_streams": MAX_STREAMS,
                "max_outbound_frames": MAX_OUTBOUND_FRAMES,
                "max_outbound_control_frames": MAX_OUTBOUND_CONTROL_FRAMES,
                "connection_keepalive": KEEPALIVE,
            },
            # A stream may be silent as long as the first token takes; deadlines and limits end it, not silence.
            "stream_idle_timeout": "0s",
            "request_headers_timeout": "10s",
            "early_header_mutation_extensions": [_strip()],
            "route_config": {
                "virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": _routes(to_picker, to_replica)},
                ]
            },
            "http_filters": [_buffer(), _ext_proc(hold_max_s, picks_cluster), router()],
            "access_log": [_access_log()],
            "local_reply_config": {"mappers": [too_large_reply(), *lost_replies()]},
        },
    }


def _strip() -> dict[str, Any]:
    """Before anything reads a header: nothing of a client's can steer routing, retries or the access log's key."""
    keep = [
        {"append": set_header(ASKED_FLEET, f"%REQ({headers.FLEET})%")},
        {"remove_on_match": {"key_matcher": {"prefix": "x-moefleet-"}}},
        {"append": set_header(headers.FLEET, f"%REQ({ASKED_FLEET})%")},
        {"remove": ASKED_FLEET},
    ]
    drop = [
        {"remove": headers.DESTINATION},
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
        # Envoy makes its own, unique one: the picker finds the end of a request by it.
        {"remove": "x-request-id"},
    ]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": _TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": keep + drop,
        },
    }


def set_header(name: str, value: str) -> dict[str, Any]:
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        "keep_empty_value": False,
    }


# For routes that the picker is not asked about.
WITHOUT_PICKING = {
    BUFFER: {"@type": _TYPE + "extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True},
    EXT_PROC: {"@type": _TYPE + "extensions.filters.http.ext_proc.v3.ExtProcPerRoute", "disabled": True},
}


def _routes(to_picker: Sequence[str], to_replica: Sequence[str]) -> list[dict[str, Any]]:
    # 0s: no limit but the client's grpc-timeout. The picker puts limits.streamDuration into that header.
    no_limit = {
        "timeout": "0s",
        "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
    }
    picker = [
        {
            "match": {"path": path, "grpc": {}},
            "route": {"cluster": PICKER_CLUSTER, **no_limit},
            "typed_per_filter_config": WITHOUT_PICKING,
        }
        for path in to_picker
    ]
    replica = [
        {
            "match": {"path": path, "grpc": {}},
            "route": {"cluster_header": headers.CLUSTER, **no_limit, "retry_policy": _retries()},
        }
        for path in to_replica
    ]
    other = {
        "match": {"prefix": "/"},
        # 404 is UNIMPLEMENTED to a gRPC client.
        "direct_response": {"status": 404, "body": {"inline_string": "the gateway has no such method"}},
        "typed_per_filter_config": WITHOUT_PICKING,
    }
    return [*picker, *replica, other]


def _retries() -> dict[str, Any]:
    return {
        # Only what certainly did not begin: no connection, a stream the replica's HTTP/2 refused, or its refusal.
        "retry_on": "connect-failure,refused-stream,retriable-headers",
        "retriable_headers": [{"name": headers.REFUSED, "present_match": True}],
        "num_retries": RETRIES,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }


def _buffer() -> dict[str, Any]:
    """Before the picker is asked: it gets headers and body in one turn, and of a body that never ends it hears nothing."""
    return {
        "name": BUFFER,
        "typed_config": {
            "@type": _TYPE + "extensions.filters.http.buffer.v3.Buffer",
            "max_request_bytes": ENVOY_BUFFER_BYTES,
        },
    }


def _ext_proc(hold_max_s: float, picks_cluster: str) -> dict[str, Any]:
    return {
        "name": EXT_PROC,
        "typed_config": {
            "@type": _TYPE + "extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": picker_grpc(picks_cluster),
            # Fail closed, and so that a client sees UNAVAILABLE: the default of 500 is UNKNOWN to it.
            "failure_mode_allow": False,
            "status_on_error": {"code": "ServiceUnavailable"},
            # Only the request: with response trailers the ext_proc stream would live as long as the answer and a
            # picker that dies would cut every stream.
            "processing_mode": {
                "request_header_mode": "SEND",
                # One answer for headers and body, which come together since the buffer is before us: BUFFERED would ask
                # for the headers first and for the body when they are answered. Not BUFFERED_PARTIAL, which would bring larger bodies to the picker: Envoy 1.40 sometimes
                # forwards such a request before the picker's answer ("route cache is blocked", 3 of 80).
                "request_body_mode": "STREAMED",
                "request_trailer_mode": "SKIP",
                "response_header_mode": "SKIP",
                "response_body_mode": "NONE",
                "response_trailer_mode": "SKIP",
            },
            # Both are sent, and neither goes on before the headers are answered. The answer ends the stream, and the body
            # then goes on as it is.
            "send_body_without_waiting_for_header_response": True,
            "message_timeout": f"{hold_max_s + MESSAGE_TIMEOUT_MARGIN_S:g}s",
            # The picker sees what it needs and no client secrets.
            "forward_rules": {"allowed_headers": {"patterns": [{"exact": name} for name in FORWARDED]}},
            "mutation_rules": {"allow_all_routing": True},
        },
    }


FORWARDED = (
    ":path",
    ":authority",
    "grpc-timeout",
    "grpc-encoding",
    "grpc-previous-rpc-attempts",
    "x-request-id",
    headers.FLEET,
)


def router() -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": _TYPE + "extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }


def _access_log() -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": _TYPE + "extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": "requests",
                "transport_api_version": "V3",
                "grpc_service": picker_grpc(ACCESS_LOG_CLUSTER),
                "buffer_flush_interval": ACCESS_LOG_FLUSH,
            },
            "additional_request_headers_to_log": [headers.CLUSTER],
            "additional_response_headers_to_log": ["grpc-status", headers.REFUSED],
            "additional_response_trailers_to_log": [
                "grpc-status",
                headers.USAGE_PROMPT,
                headers.USAGE_COMPLETION,
                headers.USAGE_CACHED,
            ],
        },
    }


def address(at: HostPort) -> dict[str, Any]:
    out: dict[str, Any] = {"address": at.host, "port_value": at.port}
    if at.host == "::":
        out["ipv4_compat"] = True
    return {"socket_address": out}
