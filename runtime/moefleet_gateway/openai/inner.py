"""Reads what SMG sends to the inner listener: requests and aborts whose ids the edge gave out, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from google.protobuf.message import DecodeError
from smg_grpc_proto.generated import trtllm_service_pb2

from moefleet_gateway import headers as names
from moefleet_gateway import methods
from moefleet_gateway.openai.ids import mark, verify
from moefleet_gateway.picking.core import Ask
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.refusals import Refusal, bad_request, unknown_fleet
from moefleet_gateway.requests import Read, trtllm_generate, unframe

NOT_OURS = Refusal(
    "PERMISSION_DENIED",
    "REQUEST_ID_NOT_OURS",
    "the request id is not one that this gateway gave out; leave the field rid out",
)


class Reader:
    """A `requests.read` for the inner listener."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(
        self, path: str, headers: Mapping[str, str], body: bytes, models: ModelTable
    ) -> Read | Refusal:
        message = unframe(body, headers.get("grpc-encoding", "identity"))
        if isinstance(message, Refusal):
            return message
        try:
            if path == methods.TRTLLM_GENERATE:
                request = trtllm_service_pb2.GenerateRequest.FromString(message)
            elif path == methods.TRTLLM_ABORT:
                request = trtllm_service_pb2.AbortRequest.FromString(message)
            else:
                return Refusal("UNIMPLEMENTED", "METHOD_NOT_SERVED", f"no method {path[:200]} here")
        except DecodeError:
            return bad_request("message", f"not a valid request of {path}")
        signed = verify(self._key, request.request_id)
        if signed is None:
            return NOT_OURS
        fleet = _fleet(signed.fleet, models)
        if fleet is None:
            return unknown_fleet(
                "of this id, which was here when the request began", tuple(sorted(models.by_key))
            )
        request_id = headers.get("x-request-id", "")
        if path == methods.TRTLLM_ABORT:
            return Read(fleet, Ask(request_id, kind="info"), abort_of=request.request_id)
        found = trtllm_generate(request, fleet, request_id, signed.retried)
        if isinstance(found, Refusal):
            return found
        if signed.seed is not None:
            found = replace(found, headers=((names.SEED, str(signed.seed)),))
        if signed.open_ended:
            more = (*found.headers, (names.OPEN_ENDED, "1"))
            found = replace(found, ask=replace(found.ask, max_tokens=None), headers=more)
        return found

    def edge_id(self, engine_request_id: str) -> str:
        """The id at the edge of a request that was read here; empty when it is none of ours."""
        signed = verify(self._key, engine_request_id)
        return signed.edge_id if signed is not None else ""


def _fleet(marked: str, models: ModelTable) -> Fleet | None:
    """Fleets are tens; a fleet that was deleted meanwhile is not there."""
    return next((fleet for key, fleet in models.by_key.items() if mark(key) == marked), None)
