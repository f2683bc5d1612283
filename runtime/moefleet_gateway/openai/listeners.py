"""What the OpenAI edge adds to Envoy's configuration: the listener for its clients, the one for SMG behind it, and the
clusters of both. Each number has its reason beside it, as in bootstrap.py.
"""

from __future__ import annotations

from typing import Any

from moefleet_gateway import headers, methods
from moefleet_gateway.bootstrap import (
    CIRCUIT_BREAKERS,
    EXT_PROC,
    KEEPALIVE,
    LISTENER_WINDOWS,
    MAX_OUTBOUND_CONTROL_FRAMES,
    MAX_OUTBOUND_FRAMES,
    MAX_STREAMS,
    MESSAGE_TIMEOUT_MARGIN_S,
    WITHOUT_PICKING,
    address,
    connection_manager,
    http2_upstream,
    picker_cluster,
    picker_grpc,
    router,
)
from moefleet_gateway.openai import facade
from moefleet_gateway.openai.edge import CHAT, COME_AGAIN_S, TOKENIZER_WAIT_S
from moefleet_gateway.openai.errors import RETRY_AFTER, error_json, seconds
from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, OpenAI, Settings

SMG_CLUSTER = "smg"
EDGE_CLUSTER = "picker-edge"
INNER_PICKS_CLUSTER = "picker-inner-picks"
# The paths that are open, and nothing beside them: SMG's control interface is on the same port.
COMPLETIONS = (CHAT, "/v1/completions")
MODELS = "/v1/models"
# A body of a few megabytes over a slow line; a client that sends nothing must not hold a buffer for ever.
BODY_TIMEOUT = "60s"
# 600 streams at once over HTTP/1.1 were 93 x 503; SMG takes h2c, and a busy one accepts late.
SMG_CONNECT_TIMEOUT = "5s"
_TYPE = "type.googleapis.com/envoy."


def add_openai(config: dict[str, Any], settings: Settings, openai: OpenAI) -> dict[str, Any]:
    """The bootstrap with the edge in it."""
    static = config["static_resources"]
    return {
        **config,
        "static_resources": {
            "clusters": [
                *static["clusters"],
                picker_cluster(EDGE_CLUSTER, settings.edge_socket),
                picker_cluster(INNER_PICKS_CLUSTER, settings.inner_picks_socket),
                _smg_cluster(openai),
            ],
            "listeners": [*static["listeners"], _edge(settings, openai), _inner(settings, openai)],
        },
    }


def _edge(settings: Settings, openai: OpenAI) -> dict[str, Any]:
    return {
        "name": "openai",
        "traffic_direction": "INBOUND",
        "address": address(openai.listen),
        "per_connection_buffer_limit_bytes": ENVOY_BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _edge_manager(settings.hold_max_s),
                    }
                ]
            }
        ],
    }


def _inner(settings: Settings, openai: OpenAI) -> dict[str, Any]:
    manager = connection_manager(
        settings.hold_max_s,
        stat_prefix="inner",
        picks_cluster=INNER_PICKS_CLUSTER,
        to_picker=facade.ANSWERED,
        to_replica=(methods.TRTLLM_GENERATE, methods.TRTLLM_ABORT),
    )
    return {
        "name": "inner",
        # A drain of the pod closes the listeners of consumers; what they have begun still passes here.
        "traffic_direction": "OUTBOUND",
        "drain_type": "MODIFY_ONLY",
        "address": address(openai.inner),
        "per_connection_buffer_limit_bytes": ENVOY_BUFFER_BYTES,
        "filter_chains": [{"filters": [manager]}],
    }


def _smg_cluster(openai: OpenAI) -> dict[str, Any]:
    return {
        "name": SMG_CLUSTER,
        "type": "STATIC",
        "connect_timeout": SMG_CONNECT_TIMEOUT,
        "circuit_breakers": CIRCUIT_BREAKERS,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2_upstream(KEEPALIVE)
        },
        "load_assignment": {
            "cluster_name": SMG_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(openai.smg)}}]}],
        },
    }


def _edge_manager(hold_max_s: float) -> dict[str, Any]:
    return {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "openai",
        "codec_type": "AUTO",
        "http2_protocol_options": {
            **LISTENER_WINDOWS,
            "max_concurrent_streams": MAX_STREAMS,
            "max_outbound_frames": MAX_OUTBOUND_FRAMES,
            "max_outbound_control_frames": MAX_OUTBOUND_CONTROL_FRAMES,
            "connection_keepalive": KEEPALIVE,
        },
        # As on the gRPC listener: a stream may be silent as long as its first token takes.
        "stream_idle_timeout": "0s",
        "request_headers_timeout": "10s",
        "request_timeout": BODY_TIMEOUT,
        "early_header_mutation_extensions": [_strip()],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes()}]},
        "http_filters": [_ext_proc(hold_max_s), router()],
        "local_reply_config": {"mappers": _local_replies()},
    }


def _strip() -> dict[str, Any]:
    """Nothing of a client's steers routing, SMG or the id by which the inner listener knows the request. Keys are checked by
    nobody here: they go no further."""
    prefixes = ("x-moefleet-", "x-envoy-", "x-smg-")
    names = (headers.DESTINATION, "x-request-id", "authorization", "grpc-timeout")
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": _TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes]
            + [{"remove": name} for name in names],
        },
    }


_UNASKED = {EXT_PROC: WITHOUT_PICKING[EXT_PROC]}
# What SMG tells of itself and of the addresses behind it.
_OF_SMG = ("x-smg-parser", "x-smg-routed-worker-id")
_NO_SUCH_PATH = error_json(
    f"the gateway serves POST {', POST '.join(COMPLETIONS)} and GET {MODELS}",
    "invalid_request_error",
    "not_found",
)


def _routes() -> list[dict[str, Any]]:
    def method(name: str) -> dict[str, Any]:
        return {"name": ":method", "string_match": {"exact": name}}

    to_smg = {
        "cluster": SMG_CLUSTER,
        "timeout": "0s",
        # SMG restarts: what did not reach it can be sent again.
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
    }
    asked = [
        {
            "match": {"path": path, "headers": [method("POST")]},
            "route": to_smg,
            "response_headers_to_remove": list(_OF_SMG),
        }
        for path in COMPLETIONS
    ]
    models = {
        "match": {"path": MODELS, "headers": [method("GET")]},
        "route": to_smg,
        "typed_per_filter_config": _UNASKED,
    }
    other = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": _NO_SUCH_PATH}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
        "typed_per_filter_config": _UNASKED,
    }
    return [*asked, models, other]


def _ext_proc(hold_max_s: float) -> dict[str, Any]:
    return {
        "name": EXT_PROC,
        "typed_config": {
            "@type": _TYPE + "extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": picker_grpc(EDGE_CLUSTER),
            # Open: an answer that waits must not be cut because the picker restarts. A request that passes without the
            # picker has no id that the inner listener takes, so none gets by.
            "failure_mode_allow": True,
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": "BUFFERED",
                "request_trailer_mode": "SKIP",
                # For retry-after, which SMG loses.
                "response_header_mode": "SEND",
                "response_body_mode": "NONE",
                "response_trailer_mode": "SKIP",
            },
            "message_timeout": f"{hold_max_s + TOKENIZER_WAIT_S + MESSAGE_TIMEOUT_MARGIN_S:g}s",
            "forward_rules": {
                "allowed_headers": {
                    "patterns": [
                        {"exact": name}
                        for name in (":path", ":status", "x-request-id", "x-stainless-retry-count")
                    ]
                }
            },
        },
    }


# Envoy's own answers, in JSON as clients expect errors: SMG that is away, a body that is too large, an unknown path.
# Refusals of the picker have a JSON body already, and none of these flags.
_FLAGS = ("UH", "UF", "UO", "NR", "UC", "UT", "UR", "LR", "OM", "DPE")


def _local_replies() -> list[dict[str, Any]]:
    def mapper(which: dict[str, Any], kind: str, code: str, again: bool = False) -> dict[str, Any]:
        out: dict[str, Any] = {
            "filter": which,
            "body_format_override": {
                "json_format": {
                    "error": {"message": "%LOCAL_REPLY_BODY%", "type": kind, "param": None, "code": code}
                }
            },
        }
        if again:
            header = {"key": RETRY_AFTER, "value": seconds(COME_AGAIN_S)}
            out["headers_to_add"] = [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
        return out

    def status(code: int) -> dict[str, Any]:
        value = {"default_value": code, "runtime_key": f"moefleet.openai_{code}"}
        return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}

    away = {"and_filter": {"filters": [status(503), {"response_flag_filter": {"flags": list(_FLAGS)}}]}}
    return [
        mapper(away, "server_error", "gateway_unavailable", again=True),
        mapper(status(413), "invalid_request_error", "request_too_large"),
        mapper(status(408), "invalid_request_error", "request_timeout"),
    ]
