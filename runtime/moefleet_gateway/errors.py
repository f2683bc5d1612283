"""Refusals in gRPC's words: status, message and google.rpc details, as an ext_proc answer or on a server call."""

from __future__ import annotations

import base64
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from moefleet_gateway.picking.refusals import Refusal

DOMAIN = "moefleet.io"
# What a client that ignores gRPC, and Envoy's statistics, see. Envoy sends 200 and grpc-status to gRPC clients.
_HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
}


def status(refusal: Refusal) -> Any:
    out = status_pb2.Status(code=code_pb2.Code.Value(refusal.status), message=refusal.message)
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.metadata))
    details: list[Any] = [info]
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        details.append(retry)
    if refusal.quota is not None:
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=refusal.quota.subject, description=refusal.quota.description)
        details.append(quota)
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for violation in refusal.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        details.append(bad)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail, deterministic=True)  # maps have no order of their own
        out.details.append(packed)
    return out


def immediate(refusal: Refusal) -> Any:
    """The answer to Envoy that ends the request with this refusal."""
    full = status(refusal)
    out = ext_proc.ImmediateResponse(details=f"moefleet_{refusal.reason.lower()}")
    out.status.code = _HTTP[refusal.status]
    out.grpc_status.status = full.code
    # Envoy percent-encodes the body into grpc-message.
    out.body = refusal.message.encode()
    encoded = base64.b64encode(full.SerializeToString()).decode().rstrip("=")
    pairs = [("grpc-status-details-bin", encoded)]
    if refusal.retry_after_s is not None:
        # Clients with a retry policy wait as long as we say instead of their own guess.
        pairs.append(("grpc-retry-pushback-ms", str(int(refusal.retry_after_s * 1000))))
    for name, value in pairs:
        option = out.headers.set_headers.add()
        option.header.key, option.header.raw_value = name, value.encode()
        option.append_action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return ext_proc.ProcessingResponse(immediate_response=out)
