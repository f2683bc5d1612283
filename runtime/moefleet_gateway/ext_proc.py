"""Envoy's external processor: one stream a request, asked for headers and body, never for the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from moefleet_gateway import headers as names
from moefleet_gateway.aborts import Aborts
from moefleet_gateway.errors import immediate
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.core import Pick
from moefleet_gateway.picking.refusals import Refusal, bad_request
from moefleet_gateway.requests import Read, read

log = structlog.get_logger()

# Added to limits.streamDuration: the replica ends a stream at its limit with a clear status; this is for the
# replica that does not.
STREAM_GRACE_S = 5.0
# A client ends its call itself, with a clear status, when its deadline comes. Envoy and the replica count from later
# on and could only reset the stream; they end it this much after, for a client that is gone without a word.
DEADLINE_MARGIN_S = 5.0
_GO_ON = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_SERVICE = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
_TIMEOUT_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Picker:
    """Registered as a method with one response: gRPC then sends the last answer and the end of the stream in one batch,
    which is a tenth of what a pick costs. On the wire nothing tells it from the stream that Envoy expects; the first
    answer is written by hand, as bytes, because such a method's context has no serializer."""

    def __init__(self, gateway: Gateway, aborts: Aborts) -> None:
        self._gateway = gateway
        self._aborts = aborts

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        process = grpc.stream_unary_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"Process": process})

    async def _process(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        headers: dict[str, str] = {}
        while (message := await context.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("request")
            if kind == "request_headers":
                headers = {
                    h.key: (h.raw_value or h.value.encode()).decode("utf-8", "replace")
                    for h in message.request_headers.headers.headers
                }
                if message.request_headers.end_of_stream:
                    return immediate(bad_request("message", "the request has no message"))
                await context.write(_GO_ON)
            elif kind == "request_body":
                # Ending it here is what frees the request of this process: Envoy itself keeps the stream open as
                # long as the answer runs, and would reset the answer with it when the picker dies.
                body = message.request_body.body
                asked = read(headers.get(":path", ""), headers, body, self._gateway.core.models)
                # A held request may wait for minutes: of its body nothing is needed any more.
                del message, body
                return await self._answer(asked, headers.get("grpc-timeout", ""))
        return pb.ProcessingResponse()  # Envoy left before it asked; nobody reads this

    async def _answer(self, asked: Read | Refusal, grpc_timeout: str) -> Any:
        gateway = self._gateway
        if isinstance(asked, Refusal):
            return immediate(asked)
        answer: Pick | Refusal
        if asked.abort_of:
            answer, known = gateway.core.abort(asked.fleet, asked.abort_of)
            if not known and isinstance(answer, Pick):
                await self._aborts.everywhere(asked.fleet, asked.abort_of, but=answer.targets[0].uid)
        else:
            answer = await gateway.pick(asked.fleet, asked.ask)
        if isinstance(answer, Refusal):
            return immediate(answer)
        return routed(answer, grpc_timeout)


def routed(pick: Pick, grpc_timeout: str) -> Any:
    """The headers that take the request to its replicas in order."""
    common = pb.CommonResponse(clear_route_cache=True)
    add = common.header_mutation.set_headers.add
    pairs = [
        (names.CLUSTER, pick.fleet.key),
        (names.DESTINATION, ",".join(t.address for t in pick.targets)),
        (names.POD_UIDS, ",".join(t.uid for t in pick.targets)),
        (names.MODEL, pick.fleet.model),
    ]
    # Envoy counts the header from the arrival, so the time held is added.
    limit_s = pick.fleet.limits.stream_duration_s + STREAM_GRACE_S + pick.held_s
    asked_s = timeout_s(grpc_timeout)
    allowed_s = limit_s if asked_s is None else min(limit_s, asked_s + DEADLINE_MARGIN_S)
    # At most 8 digits.
    pairs.append(("grpc-timeout", f"{min(int(allowed_s * 1000), 99_999_999)}m"))
    for name, value in pairs:
        option = add()
        option.header.key, option.header.raw_value = name, value.encode()
        option.append_action = _OVERWRITE
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))


def timeout_s(text: str) -> float | None:
    """`grpc-timeout`: up to 8 digits and a unit."""
    unit = _TIMEOUT_UNITS_S.get(text[-1:])
    if unit is None or not text[:-1].isdigit():
        return None
    return int(text[:-1]) * unit
