"""Requests, and whole answers read to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from moefleet.inference.v1 import inference_pb2
from smg_grpc_proto.generated import trtllm_service_pb2


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    messages: list[Any] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    reason: str = ""
    details: dict[type[Message], Message] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    trailers: dict[str, Any] = field(default_factory=dict)

    def violations(self) -> dict[str, str]:
        bad = self.details.get(error_details_pb2.BadRequest)
        assert isinstance(bad, error_details_pb2.BadRequest), f"no BadRequest in {self}"
        return {v.field: v.description for v in bad.field_violations}


def generate_request(
    prompt: str | Sequence[int] = (300, 301, 302), max_tokens: int | None = 8, **fields: Any
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(**{"model": "chat-model", **fields})
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
    if max_tokens is not None:
        request.stopping.max_tokens = max_tokens
    return request


def trtllm_request(
    prompt: Sequence[int] = (300, 301, 302), max_tokens: int = 8, *, streaming: bool = True, **fields: Any
) -> Any:
    return trtllm_service_pb2.GenerateRequest(
        tokenized=trtllm_service_pb2.TokenizedInput(input_token_ids=prompt),
        max_tokens=max_tokens,
        streaming=streaming,
        **fields,
    )


async def ask(stub: Any, request: Any, **call: Any) -> Answer:
    answer = await _collect(stub.Generate(request, **call))
    for message in answer.messages:
        answer.tokens.extend(message.token_ids)
        answer.text += message.text
    return answer


async def ask_trtllm(stub: Any, request: Any, **call: Any) -> Answer:
    answer = await _collect(stub.Generate(request, **call))
    for message in answer.messages:
        if message.HasField("chunk"):
            answer.tokens.extend(message.chunk.token_ids)
    return answer


async def _collect(call: Any) -> Answer:
    answer = Answer()
    try:
        async for message in call:
            answer.messages.append(message)
    except grpc.aio.AioRpcError as error:
        answer.code, answer.message = error.code(), error.details() or ""
        status = rpc_status.from_call(error)
        for packed in status.details if status else ():
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.RetryInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.QuotaFailure,
            ):
                if packed.Is(kind.DESCRIPTOR):
                    detail = kind()
                    packed.Unpack(detail)
                    answer.details[kind] = detail
        info = answer.details.get(error_details_pb2.ErrorInfo)
        if isinstance(info, error_details_pb2.ErrorInfo):
            assert info.domain == "moefleet.io"
            answer.reason = info.reason
        answer.initial = dict(error.initial_metadata() or ())
        answer.trailers = dict(error.trailing_metadata() or ())
        return answer
    answer.initial = dict(await call.initial_metadata() or ())
    answer.trailers = dict(await call.trailing_metadata() or ())
    return answer
