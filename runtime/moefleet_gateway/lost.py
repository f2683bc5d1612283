"""What a client is told when the replica that had its request is gone before anything of the answer came, or the picker is.

Envoy's own words for it name no reason and not whether to try again, or there are none. After the first byte nothing can be said:
Envoy then ends the stream with RST_STREAM, which gRPC shows as INTERNAL (`moefleet.client` goes on by itself).
"""

from __future__ import annotations

import base64
from typing import Any

from moefleet_gateway.errors import status
from moefleet_gateway.picking.refusals import Refusal

# About the time in which a gateway learns that a replica is gone.
RETRY_AFTER_S = 0.2
# As in replicas' errors: generating has no side effects.
AGAIN = (("safeToRetry", "true"), ("generatedTokens", "0"))

REPLICA_LOST = Refusal(
    "UNAVAILABLE",
    "REPLICA_LOST",
    "the replica that had this request is gone; nothing of its answer had come, and asking again is safe",
    metadata=AGAIN,
    retry_after_s=RETRY_AFTER_S,
)
REPLICA_UNREACHABLE = Refusal(
    "UNAVAILABLE",
    "REPLICA_UNREACHABLE",
    "no replica that was chosen for this request could be reached; it was not begun, and asking again is safe",
    metadata=AGAIN,
    retry_after_s=RETRY_AFTER_S,
)
PICKER_AWAY = Refusal(
    "UNAVAILABLE",
    "PICKER_AWAY",
    "this gateway could not choose a replica, since its picker is away; the request was not begun, and asking again is safe",
    metadata=AGAIN,
    retry_after_s=RETRY_AFTER_S,
)
# Envoy's response flags: the connection or the stream ended after the request was sent; or it never could be.
_FLAGS = ((("UC", "UR"), REPLICA_LOST), (("UF", "UH"), REPLICA_UNREACHABLE))


def lost_replies() -> list[dict[str, Any]]:
    """Mappers of Envoy's local replies, which only exist while nothing has been sent."""
    by_flag = [_reply({"response_flag_filter": {"flags": list(flags)}}, refusal) for flags, refusal in _FLAGS]
    return [*by_flag, _reply(_PICKER_FAILED, PICKER_AWAY)]


# By its details only: a refusal of the picker's is a local reply too, with the same status and words of its own.
_PICKER_FAILED = {
    "extension_filter": {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": "response.code_details.startsWith('ext_proc_error')",
        },
    }
}


def _reply(which: dict[str, Any], refusal: Refusal) -> dict[str, Any]:
    full = status(refusal)
    encoded = base64.b64encode(full.SerializeToString()).decode().rstrip("=")
    pairs = (
        ("grpc-status", str(full.code)),
        ("grpc-status-details-bin", encoded),
        ("grpc-retry-pushback-ms", str(int(RETRY_AFTER_S * 1000))),
    )
    return {
        "filter": which,
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in pairs
        ],
        "body_format_override": {"text_format_source": {"inline_string": refusal.message}},
    }
