"""A gateway as a consumer sees it: one channel, the answer as it comes, the failure as one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc

from .exits import Exit, exit_of

# Prompts of a whole context fit; the gateway has a limit of its own and says it.
MESSAGE_MAX_BYTES = 64 * 1024 * 1024
LIST_LIMIT_S = 10.0


class GatewayError(Exception):
    """What went wrong, for a person, and the exit code for a script."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    target: str
    tls: bool = False
    ca_file: Path | None = None


@dataclass(slots=True)
class Answer:
    """Times are seconds since the request was sent."""

    model: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    replica: str = ""
    ttft_s: float | None = None
    total_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        if self.ttft_s is None or self.total_s <= self.ttft_s or len(self.token_ids) < 2:
            return None
        return (len(self.token_ids) - 1) / (self.total_s - self.ttft_s)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


@contextmanager
def opened(address: Address) -> Iterator[rpc.InferenceServiceStub]:
    options = [
        ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
        ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ]
    if address.tls:
        try:
            roots = address.ca_file.read_bytes() if address.ca_file else None
        except OSError as error:
            raise GatewayError(f"cannot read {address.ca_file}: {error.strerror}", Exit.USAGE) from error
        channel = grpc.secure_channel(address.target, grpc.ssl_channel_credentials(roots), options)
    else:
        channel = grpc.insecure_channel(address.target, options)
    with channel:
        yield rpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def generate(
    address: Address, request: pb.GenerateRequest, limit_s: float, on_text: Callable[[str], None]
) -> Answer:
    """Hands each piece of text to `on_text` as it comes. Raises GatewayError; what had come is already handed over."""
    answer = Answer(request.model)
    begin = time.monotonic()
    with opened(address) as stub:
        call = stub.Generate(request, timeout=limit_s)
        try:
            for message in call:
                if message.token_ids and answer.ttft_s is None:
                    answer.ttft_s = time.monotonic() - begin
                answer.token_ids.extend(message.token_ids)
                if message.text:
                    answer.text += message.text
                    on_text(message.text)
                if message.finish_reason:
                    _finish(answer, message)
            answer.replica = next((str(v) for k, v in call.initial_metadata() if k == "x-moefleet-pod"), "")
        except grpc.RpcError as error:
            raise failure(address, error, tokens=len(answer.token_ids)) from error
        except KeyboardInterrupt:
            # The replica frees the request's memory within one step.
            call.cancel()
            raise
    answer.total_s = time.monotonic() - begin
    if not answer.finish_reason:
        raise GatewayError(
            f"{address.target}: the stream ended after {len(answer.token_ids)} tokens without a finish reason",
            Exit.CUT,
        )
    return answer


def models(address: Address) -> list[pb.Model]:
    with opened(address) as stub:
        try:
            return list(stub.ListModels(pb.ListModelsRequest(), timeout=LIST_LIMIT_S).models)
        except grpc.RpcError as error:
            raise failure(address, error) from error


def failure(address: Address, error: grpc.RpcError, *, tokens: int = 0) -> GatewayError:
    status: grpc.StatusCode = error.code()
    after = f" after {tokens} tokens" if tokens else ""
    return GatewayError(
        f"{address.target}: {status.name}{after}: {error.details()}", exit_of(status, begun=tokens > 0)
    )


def _finish(answer: Answer, message: pb.GenerateResponse) -> None:
    answer.finish_reason = pb.FinishReason.Name(message.finish_reason).removeprefix("FINISH_REASON_").lower()
    answer.prompt_tokens = message.usage.prompt_tokens
    answer.completion_tokens = message.usage.completion_tokens
    answer.cached_prompt_tokens = message.usage.cached_prompt_tokens
