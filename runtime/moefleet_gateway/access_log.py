"""Envoy's access log: how each request ended, its usage from the trailers, and that its place is free again."""

from __future__ import annotations

from typing import Any

from envoy.service.accesslog.v3 import als_pb2

from moefleet_gateway import headers as names
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.core import End
from moefleet_gateway.streams import Call, Stream

_OK = "0"
# Statuses that say something about us. The others are about the request or its client: CANCELLED (1),
# INVALID_ARGUMENT (3), DEADLINE_EXCEEDED (4), NOT_FOUND (5), OUT_OF_RANGE (11), UNIMPLEMENTED (12).
_OURS = frozenset({"2", "8", "10", "13", "14", "15"})


class AccessLog:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def open(self, stream: Stream) -> Call:
        return _Log(self._gateway, stream)


class _Log:
    """One worker of Envoy, as long as it lives."""

    __slots__ = ("_gateway", "_stream")

    def __init__(self, gateway: Gateway, stream: Stream) -> None:
        self._gateway = gateway
        self._stream = stream

    def received(self, message: bytes) -> None:
        for entry in als_pb2.StreamAccessLogsMessage.FromString(message).http_logs.log_entry:
            end = read_end(entry)
            if end is not None:
                self._gateway.finish(end)

    def closed(self) -> None:
        self._stream.end(als_pb2.StreamAccessLogsResponse().SerializeToString())

    def lost(self) -> None:
        pass  # Envoy opens another with its next entries


def read_end(entry: Any) -> End | None:
    """None for requests that were not sent to a replica: refused ones, and those the picker answers itself."""
    fleet = entry.request.request_headers.get(names.CLUSTER, "")
    request_id = entry.request.request_id
    if not fleet:
        # Still told by its id: a request cancelled while the pick was on its way has no header yet.
        return End(request_id, "", ok=False, failed=False) if request_id else None
    common, response = entry.common_properties, entry.response
    trailers = response.response_trailers
    grpc_status = trailers.get("grpc-status") or response.response_headers.get("grpc-status", "")
    flags = common.response_flags
    client_left = flags.downstream_connection_termination or flags.downstream_remote_reset
    first_s = _seconds(common.time_to_first_downstream_tx_byte)
    return End(
        request_id,
        fleet,
        ok=grpc_status == _OK,
        failed=grpc_status in _OURS or (not grpc_status and not client_left and not flags.duration_timeout),
        prompt_tokens=_count(trailers.get(names.USAGE_PROMPT)),
        cached_tokens=_count(trailers.get(names.USAGE_CACHED)),
        output_tokens=_count(trailers.get(names.USAGE_COMPLETION)),
        ttft_s=first_s,
        stream_s=max(0.0, _seconds(common.time_to_last_downstream_tx_byte) - first_s),
    )


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
