"""Refusals in OpenAI's words: an HTTP status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import math
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from moefleet_gateway.picking.refusals import Refusal

RETRY_AFTER = "retry-after"
_HTTP = {
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "PERMISSION_DENIED": (403, "invalid_request_error"),
    "NOT_FOUND": (404, "invalid_request_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "UNAVAILABLE": (503, "server_error"),
    "UNIMPLEMENTED": (501, "invalid_request_error"),
}
# The codes that OpenAI's clients know, where one says the same.
_CODES = {"MODEL_NOT_FOUND": "model_not_found", "QUEUE_FULL": "rate_limit_exceeded"}


def error_json(message: str, kind: str, code: str, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def seconds(retry_after_s: float) -> str:
    """HTTP knows whole seconds; sooner than asked would be refused again."""
    return str(max(1, math.ceil(retry_after_s)))


def immediate(refusal: Refusal) -> Any:
    """The answer to Envoy that ends the HTTP request with this refusal."""
    status, kind = _HTTP[refusal.status]
    param = refusal.violations[0].field if refusal.violations else None
    code = _CODES.get(refusal.reason, refusal.reason.lower())
    out = ext_proc.ImmediateResponse(details=f"moefleet_{refusal.reason.lower()}")
    out.status.code = status
    out.body = error_json(refusal.message, kind, code, param).encode()
    pairs = [("content-type", "application/json")]
    if refusal.retry_after_s is not None:
        pairs.append((RETRY_AFTER, seconds(refusal.retry_after_s)))
    for name, value in pairs:
        set_header(out.headers, name, value)
    return ext_proc.ProcessingResponse(immediate_response=out)


def set_header(mutation: Any, name: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.header.key, option.header.raw_value = name, value.encode()
    option.append_action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
