"""One request through `InferenceService.Generate`, and what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

import grpc
import grpc.aio
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc

# Larger than any answer or prompt of a test; the default of 4 MiB would hide a server's own limit.
MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024


class End(StrEnum):
    OK = "ok"
    FAILED = "failed"
    CUT = "cut"


@dataclass(slots=True)
class Outcome:
    """Times are seconds of the event loop's clock; `ttft_s` and `tpot_s` are None when there was no first or second token."""

    request_id: str
    began_s: float
    ended_s: float = 0.0
    end: End = End.FAILED
    code: str = "OK"
    detail: str = ""
    ttft_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    messages: int = 0
    finish_reason: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pod_uid: str = ""

    @property
    def tpot_s(self) -> float | None:
        if self.ttft_s is None or len(self.tokens) < 2:
            return None
        return (self.ended_s - self.began_s - self.ttft_s) / (len(self.tokens) - 1)


def channel(address: str, authority: str | None = None) -> grpc.aio.Channel:
    """A channel with a connection of its own: gRPC would otherwise share one among equal channels, and a Service
    balances connections, not requests."""
    options: list[tuple[str, int | str]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
    ]
    if authority:
        options.append(("grpc.default_authority", authority))
    return grpc.aio.insecure_channel(address, options=options)


def token_request(
    request_id: str, model: str, prompt_tokens: int, max_tokens: int, vocabulary: int = 2000
) -> pb.GenerateRequest:
    """Distinct ids per request, so that a prefix cache gives nothing away for free."""
    salt = sum(request_id.encode()) * 7919
    ids = [3 + (salt + i * 31) % (vocabulary - 3) for i in range(max(1, prompt_tokens))]
    return pb.GenerateRequest(
        request_id=request_id,
        model=model,
        token_ids=pb.TokenIds(ids=ids),
        stopping=pb.Stopping(max_tokens=max(1, max_tokens), ignore_eos=True),
    )


async def generate(
    open_channel: grpc.aio.Channel,
    request: pb.GenerateRequest,
    deadline_s: float = 300.0,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Outcome:
    """Runs the request to its end; never raises for what the server did."""
    outcome = Outcome(request.request_id, time.monotonic())
    finished = False
    try:
        call = rpc.InferenceServiceStub(open_channel).Generate(request, timeout=deadline_s, metadata=metadata)
        async for message in call:
            outcome.messages += 1
            if message.token_ids and outcome.ttft_s is None:
                outcome.ttft_s = time.monotonic() - outcome.began_s
            outcome.tokens.extend(message.token_ids)
            outcome.text += message.text
            if message.finish_reason:
                finished = True
                outcome.finish_reason = message.finish_reason
                outcome.prompt_tokens = message.usage.prompt_tokens
                outcome.completion_tokens = message.usage.completion_tokens
        initial = await call.initial_metadata()
        outcome.pod_uid = next((str(v) for k, v in initial if k == "x-moefleet-pod"), "")
        outcome.end = End.OK if finished else End.CUT
        if not finished:
            outcome.detail = "the stream ended without a finish reason"
    except grpc.aio.AioRpcError as error:
        outcome.code = error.code().name
        outcome.detail = error.details() or ""
        outcome.end = End.CUT if outcome.tokens else End.FAILED
    outcome.ended_s = time.monotonic()
    return outcome
