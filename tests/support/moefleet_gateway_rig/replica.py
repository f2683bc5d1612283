"""A replica as the gateway sees one: the real services on real sockets, with behaviour that a test sets."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.inference.v1 import inference_pb2_grpc as inf_rpc
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet.replica.v1 import replica_pb2_grpc as rep_rpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import trtllm_service_pb2 as trt
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as trt_rpc

# Addresses of one test process: 127.<pid>.<pid>.<n>, so that runs beside each other do not meet.
_NUMBERS = count(1)
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
)


def new_ip() -> str:
    pid = os.getpid()
    return f"127.{pid % 250 + 2}.{pid // 250 % 250}.{next(_NUMBERS) % 250 + 1}"


@dataclass(slots=True)
class Seen:
    """One request as it arrived."""

    method: str
    headers: dict[str, str]
    request: Any
    remaining_s: float | None


@dataclass
class FakeReplica:
    uid: str
    model: str = "tiny"
    fleet: str = "default/tiny"
    ip: str = field(default_factory=new_ip)
    grpc_port: int = 0
    control_port: int = 0
    # behaviour
    messages: int = 3
    message_s: float = 0.0
    first_s: float = 0.0
    output_tokens: int = 3
    cached_tokens: int = 0
    refuse: str = ""  # the reason, then every request is refused with it
    check: bool = True  # refuses strangers' requests, as the contract says
    state: int = rep.REPLICA_STATE_SERVING
    queued: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    report_work: bool = True
    token: str = ""
    tokenizer: bytes = b""  # the archive that GetTokenizer gives, none when empty
    complete: bool = False  # trtllm answers end with a whole one, as SMG wants it
    answer: tuple[int, ...] = ()  # their tokens, one a message; empty: any
    # what happened
    seen: list[Seen] = field(default_factory=list)
    active: int = 0
    sent: int = 0  # messages of answers, over all requests
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    aborted: list[str] = field(default_factory=list)
    _servers: list[grpc.aio.Server] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.grpc_port}"

    @property
    def control(self) -> str:
        return f"{self.ip}:{self.control_port}"

    def entry(self, **more: Any) -> dict[str, Any]:
        """Its line in the file that the picker reads."""
        return {
            "uid": self.uid,
            "fleet": self.fleet,
            "address": self.address,
            "control": self.control,
            **more,
        }

    async def start(self) -> FakeReplica:
        data, control = grpc.aio.server(options=_OPTIONS), grpc.aio.server(options=_OPTIONS)
        inf_rpc.add_InferenceServiceServicer_to_server(_Inference(self), data)
        trt_rpc.add_TrtllmServiceServicer_to_server(_Trtllm(self), data)
        # On the data port too: if the gateway ever routed it, a test would reach it.
        rep_rpc.add_ReplicaServiceServicer_to_server(_Control(self), data)
        rep_rpc.add_ReplicaServiceServicer_to_server(_Control(self), control)
        self.grpc_port = data.add_insecure_port(f"{self.ip}:{self.grpc_port}")
        self.control_port = control.add_insecure_port(f"{self.ip}:{self.control_port}")
        assert min(self.grpc_port, self.control_port) > 0, f"cannot listen on {self.ip}"
        await data.start()
        await control.start()
        self._servers = [data, control]
        return self

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop(None) for server in self._servers))
        self._servers = []

    async def stop_data(self) -> None:
        """The data port is dead, the control port lives: as a process that hangs up new connections."""
        await self._servers[0].stop(None)

    def change(self, **values: Any) -> None:
        """Sets behaviour and sends a LoadSample at once."""
        for name, value in values.items():
            setattr(self, name, value)
        self._changed.set()

    async def gate(self, method: str, request: Any, context: Any) -> None:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        self.seen.append(Seen(method, headers, request, context.time_remaining()))
        reason = self.refuse
        if not reason and self.check:
            if self.uid not in headers.get("x-moefleet-pod-uids", "").split(","):
                reason = "wrong-pod"
            elif headers.get("x-moefleet-model") != self.model:
                reason = "wrong-model"
        if reason:
            self.refused += 1
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"{self.uid} refuses: {reason}",
                (("x-moefleet-refused", reason),),
            )

    async def stream(self, context: Any, prompt_tokens: int) -> AsyncIterator[int]:
        self.active += 1
        try:
            await asyncio.sleep(self.first_s)
            for number in range(self.messages):
                if number:
                    await asyncio.sleep(self.message_s)
                yield number
                self.sent += 1
            context.set_trailing_metadata(
                (
                    ("x-usage-prompt-tokens", str(prompt_tokens)),
                    ("x-usage-completion-tokens", str(self.output_tokens)),
                    ("x-usage-cached-tokens", str(self.cached_tokens)),
                )
            )
            self.finished += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.active -= 1


class _Inference(inf_rpc.InferenceServiceServicer):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.replica.gate("Generate", request, context)
        prompt_tokens = len(request.token_ids.ids) or len(request.prompt.split())
        async for number in self.replica.stream(context, prompt_tokens):
            # The text says who answered.
            yield inf.GenerateResponse(token_ids=[number], text=self.replica.uid)

    async def CountTokens(self, request: Any, context: Any) -> Any:
        await self.replica.gate("CountTokens", request, context)
        return inf.CountTokensResponse(tokens=len(request.text.split()))

    async def GetModel(self, request: Any, context: Any) -> Any:
        await self.replica.gate("GetModel", request, context)
        return inf.GetModelResponse(model=inf.Model(name=self.replica.model, fleet=self.replica.fleet))


class _Trtllm(trt_rpc.TrtllmServiceServicer):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        replica = self.replica
        await replica.gate("trtllm.Generate", request, context)
        prompt_tokens = len(request.tokenized.input_token_ids)
        # Tokens with text: the first of a vocabulary are begin, end and padding.
        first = 300 if replica.complete else 0
        answer = replica.answer or tuple(range(first, first + replica.messages))
        async for number in replica.stream(context, prompt_tokens):
            if request.request_id in replica.aborted:
                break
            if request.streaming or not replica.complete:
                yield trt.GenerateResponse(
                    request_id=replica.uid, chunk=trt.GenerateStreamChunk(token_ids=[answer[number]])
                )
        if replica.complete:
            yield trt.GenerateResponse(
                request_id=replica.uid,
                complete=trt.GenerateComplete(
                    output_token_ids=answer,
                    finish_reason="stop",
                    prompt_tokens=prompt_tokens,
                    completion_tokens=replica.output_tokens,
                ),
            )

    async def Abort(self, request: Any, context: Any) -> Any:
        await self.replica.gate("Abort", request, context)
        self.replica.aborted.append(request.request_id)
        return trt.AbortResponse(success=True)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.replica.gate("GetTokenizer", request, context)
        if not self.replica.tokenizer:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no tokenizer to give")
        data = self.replica.tokenizer
        yield common_pb2.GetTokenizerChunk(data=data[:100])
        yield common_pb2.GetTokenizerChunk(data=data[100:], sha256=hashlib.sha256(data).hexdigest())

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        await self.replica.gate("GetModelInfo", request, context)
        return trt.GetModelInfoResponse()


class _Control(rep_rpc.ReplicaServiceServicer):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[Any]:
        replica = self.replica
        if replica.token:
            sent = dict(context.invocation_metadata()).get("authorization")
            if sent != f"Bearer {replica.token}":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")
        seq = 0
        while True:
            seq += 1
            replica._changed.clear()
            yield rep.WatchLoadResponse(
                sample=rep.LoadSample(
                    pod_uid=replica.uid,
                    incarnation="1",
                    seq=seq,
                    state=replica.state,
                    active=replica.active,
                    queued=replica.queued,
                    outstanding_prefill_tokens=replica.prefill_tokens,
                    outstanding_decode_tokens=replica.decode_tokens
                    or (replica.active * 256 if replica.report_work else 0),
                )
            )
            try:
                await asyncio.wait_for(replica._changed.wait(), request.interval_ms / 1000)
            except TimeoutError:
                continue

    async def Drain(self, request: Any, context: Any) -> Any:
        return rep.DrainResponse(state=replica_state(self.replica))


def replica_state(replica: FakeReplica) -> int:
    return replica.state
