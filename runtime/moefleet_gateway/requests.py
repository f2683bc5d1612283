"""Reads a consumer's request as far as picking needs it: which fleet, how much work, what is plainly wrong."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from moefleet.inference.v1 import inference_pb2
from moefleet_perf.prefixes import text_marks, token_marks
from smg_grpc_proto.generated import trtllm_service_pb2

from moefleet_gateway import headers as names
from moefleet_gateway import methods
from moefleet_gateway.picking.core import Ask
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable, fleet_of_authority
from moefleet_gateway.picking.refusals import Refusal, bad_request, unknown_fleet, unknown_model
from moefleet_gateway.settings import MESSAGE_MAX_BYTES

# A request id is logged and kept for Abort; UUIDs have 36 characters.
REQUEST_ID_MAX = 256
GRPC_PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Read:
    fleet: Fleet
    ask: Ask
    abort_of: str = ""  # the request id that an Abort names
    headers: tuple[tuple[str, str], ...] = ()  # what else the replica is told


def read(path: str, headers: Mapping[str, str], body: bytes, models: ModelTable) -> Read | Refusal:
    message = unframe(body, headers.get("grpc-encoding", "identity"))
    if isinstance(message, Refusal):
        return message
    request_id = headers.get("x-request-id", "")
    retried = "grpc-previous-rpc-attempts" in headers
    try:
        if path == methods.GENERATE:
            return _generate(inference_pb2.GenerateRequest.FromString(message), request_id, retried, models)
        if path == methods.COUNT_TOKENS:
            return _info(inference_pb2.CountTokensRequest.FromString(message).model, request_id, models)
        if path == methods.GET_MODEL:
            return _info(inference_pb2.GetModelRequest.FromString(message).model, request_id, models)
        fleet = _addressed_fleet(headers, models)
        if isinstance(fleet, Refusal):
            return fleet
        if path == methods.TRTLLM_GENERATE:
            request = trtllm_service_pb2.GenerateRequest.FromString(message)
            return trtllm_generate(request, fleet, request_id, retried)
        if path == methods.TRTLLM_ABORT:
            asked = trtllm_service_pb2.AbortRequest.FromString(message).request_id
            return Read(fleet, Ask(request_id, kind="info"), abort_of=asked)
    except DecodeError:
        return bad_request("message", f"not a valid request of {path}")
    if path in methods.TRTLLM_INFO:
        return Read(fleet, Ask(request_id, kind="info"))
    return Refusal("UNIMPLEMENTED", "METHOD_NOT_SERVED", f"the gateway has no method {path[:200]}")


def unframe(body: bytes, encoding: str) -> bytes | Refusal:
    """The one message of a unary request, decompressed."""
    if len(body) < GRPC_PREFIX_BYTES:
        return bad_request("message", "the request has no message")
    size = int.from_bytes(body[1:GRPC_PREFIX_BYTES], "big")
    if size > MESSAGE_MAX_BYTES:  # before the length is compared: of such a body we have only a part
        return _too_large(size)
    if len(body) != GRPC_PREFIX_BYTES + size:
        return bad_request(
            "message", f"wanted one message of {size} bytes, found {len(body) - GRPC_PREFIX_BYTES} bytes"
        )
    message = body[GRPC_PREFIX_BYTES:]
    if body[0] == 0:
        return message
    if encoding not in ("gzip", "deflate"):
        return Refusal(
            "UNIMPLEMENTED",
            "COMPRESSION_NOT_SERVED",
            f"grpc-encoding {encoding[:40]!r}; use identity or gzip",
        )
    try:
        # 32 + MAX_WBITS takes gzip and zlib headers; the cap is for a small message that unpacks to gigabytes.
        plain = zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(message, MESSAGE_MAX_BYTES + 1)
    except zlib.error as error:
        return bad_request("message", f"not {encoding}: {error}")
    return _too_large(len(plain)) if len(plain) > MESSAGE_MAX_BYTES else plain


def _too_large(size: int) -> Refusal:
    return bad_request("message", f"has {size} bytes or more; at most {MESSAGE_MAX_BYTES} bytes are accepted")


def _model(asked: str, models: ModelTable) -> Fleet | Refusal:
    if not asked:
        known = ", ".join(models.names()[:5]) or "none"
        return bad_request("model", f"must name a model; known models: {known}")
    return models.find(asked) or unknown_model(asked, models.names())


def _info(asked: str, request_id: str, models: ModelTable) -> Read | Refusal:
    fleet = _model(asked, models)
    return fleet if isinstance(fleet, Refusal) else Read(fleet, Ask(request_id, kind="info"))


def _generate(request: Any, request_id: str, retried: bool, models: ModelTable) -> Read | Refusal:
    fleet = _model(request.model, models)
    if isinstance(fleet, Refusal):
        return fleet
    ids: int | None = None
    text: int | None = None
    marks: tuple[int, ...] = ()
    match request.WhichOneof("input"):
        case "token_ids":
            ids = len(request.token_ids.ids)
            marks = token_marks(request.token_ids.ids, request.cache_salt)
            field = "token_ids"
        case "prompt":
            prompt = request.prompt.encode()
            text = len(prompt)
            marks = text_marks(prompt, request.cache_salt)
            field = "prompt"
        case _:
            return bad_request("prompt", "must be set: the request has neither prompt nor token_ids")
    if not ids and not text:
        return bad_request(field, "must not be empty")
    max_tokens: int | None = None
    if request.stopping.HasField("max_tokens"):
        max_tokens = request.stopping.max_tokens
        if max_tokens < 1:
            return bad_request("stopping.max_tokens", f"must be at least 1, found {max_tokens}")
    return _checked(fleet, ids, field) or Read(
        fleet, Ask(request_id, "generate", ids, text, max_tokens, retried, marks=marks)
    )


def trtllm_generate(request: Any, fleet: Fleet, request_id: str, retried: bool) -> Read | Refusal:
    ids = len(request.tokenized.input_token_ids)
    if not ids:
        return bad_request("tokenized.input_token_ids", "must not be empty")
    if len(request.request_id) > REQUEST_ID_MAX:
        return bad_request(
            "request_id", f"has {len(request.request_id)} characters, at most {REQUEST_ID_MAX} are accepted"
        )
    # As the replica names the tenant (serving.trtllm).
    salt = str(request.cache_salt_id) if request.HasField("cache_salt_id") else ""
    marks = token_marks(request.tokenized.input_token_ids, salt)
    ask = Ask(
        request_id, "generate", ids, None, request.max_tokens or None, retried, request.request_id, marks
    )
    return _checked(fleet, ids, "tokenized.input_token_ids") or Read(fleet, ask)


def _checked(fleet: Fleet, ids: int | None, field: str) -> Refusal | None:
    if ids is not None and fleet.context_length and ids > fleet.context_length:
        return bad_request(
            field, f"has {ids} tokens, model {fleet.model} takes at most {fleet.context_length}"
        )
    return None


def _addressed_fleet(headers: Mapping[str, str], models: ModelTable) -> Fleet | Refusal:
    asked = headers.get(names.FLEET, "") or fleet_of_authority(headers.get(":authority", ""))
    fleet = models.by_key.get(asked)
    if fleet is not None:
        return fleet
    return unknown_fleet(asked or headers.get(":authority", ""), tuple(sorted(models.by_key)))
