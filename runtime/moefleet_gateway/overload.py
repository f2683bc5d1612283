"""What keeps Envoy alive when bodies come faster than they go: the largest pay, token streams go on.

Two bounds. A request's body is at most ENVOY_BUFFER_BYTES, or it is refused while it still arrives. All bodies
together are bounded by the heap: near its limit Envoy takes no new requests, then resets those with the most buffered.
A token stream buffers next to nothing, so it is the last that this could hit.
"""

from __future__ import annotations

import base64
from typing import Any

from moefleet_gateway.errors import status
from moefleet_gateway.picking.refusals import bad_request
from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, MESSAGE_MAX_BYTES

# Of the container's limit: the launcher (a Python process of 50 MiB) and Envoy's code and stacks beside its heap.
NOT_HEAP_BYTES = 128 * 1024 * 1024
# 1 GB/s of bodies on two workers are 100 MB more between two looks: a tenth of the chart's limit. The default is 1 s.
REFRESH = "0.1s"
# Memory that is free but kept goes back first: it counts, and may be all that counts.
SHRINK_AT = 0.65
# New requests get UNAVAILABLE, which clients may retry at another gateway.
REFUSE_AT = 0.75
# From here the largest streams are reset, more of them the fuller it is.
RESET_FROM, RESET_ALL_AT = 0.8, 0.95
# Streams with less than 64 KiB buffered are never reset. Eight classes by powers of two from there: whole bodies of
# 4 MiB and more are in the last but one.
RESET_MIN_POWER_OF_TWO = 16

TOO_LARGE = bad_request(
    "message", f"has more than {ENVOY_BUFFER_BYTES} bytes; at most {MESSAGE_MAX_BYTES} bytes are accepted"
)


def overload_manager(memory_limit_bytes: int) -> dict[str, Any]:
    heap = "envoy.resource_monitors.fixed_heap"

    def at(share: float) -> dict[str, Any]:
        return {"name": heap, "threshold": {"value": share}}

    return {
        "refresh_interval": REFRESH,
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": memory_limit_bytes - NOT_HEAP_BYTES,
                },
            }
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": [at(SHRINK_AT)]},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [at(REFUSE_AT)]},
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [
                    {
                        "name": heap,
                        "scaled": {"scaling_threshold": RESET_FROM, "saturation_threshold": RESET_ALL_AT},
                    }
                ],
            },
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": RESET_MIN_POWER_OF_TWO},
    }


def too_large_reply() -> dict[str, Any]:
    """Envoy's own 413 would be UNKNOWN in gRPC; so it is the picker's INVALID_ARGUMENT, with the field."""
    full = status(TOO_LARGE)
    encoded = base64.b64encode(full.SerializeToString()).decode().rstrip("=")
    pairs = (("grpc-status", str(full.code)), ("grpc-status-details-bin", encoded))
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {
                    "op": "EQ",
                    "value": {"default_value": 413, "runtime_key": "moefleet.too_large"},
                }
            }
        },
        "headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in pairs
        ],
        "body_format_override": {"text_format_source": {"inline_string": TOO_LARGE.message}},
    }
