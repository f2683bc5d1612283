"""Both generating services of one replica in this process, before an engine that answers at once: for requests by the thousand."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from moefleet_runtime.engine.base import OPTIONS, EngineRequest, Finish, TokenDelta, TokenLogprob
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.host.stream import TokenStream
from moefleet_runtime.life import Life
from moefleet_runtime.metrics import ServerMetrics
from moefleet_runtime.serving.admission import Admission
from moefleet_runtime.serving.checks import ModelLimits
from moefleet_runtime.serving.generation import Generation
from moefleet_runtime.serving.inference import InferenceService, Served
from moefleet_runtime.serving.trtllm import ReplicaView, TrtllmService
from moefleet_runtime.tokenizer import SyllableTokenizer

VOCABULARY, LONGEST = 400, 64


class Ended(Exception):  # noqa: N818 - what abort() does to a handler
    pass


class Call:
    """One call: what it was answered with."""

    def __init__(self, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._metadata = metadata
        self.written: list[Any] = []
        self.code = grpc.StatusCode.OK
        self.fields: list[str] = []
        self.said = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None: ...

    async def send_initial_metadata(self, metadata: object) -> None: ...

    async def write(self, message: Any) -> None:
        self.written.append(type(message).FromString(message.SerializeToString()))

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> NoReturn:
        self.code, self.said = code, message
        status = status_pb2.Status.FromString(dict(trailers)["grpc-status-details-bin"])
        for detail in status.details:
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(bad):
                self.fields = [v.field for v in bad.field_violations]
        raise Ended


class InstantEngine:
    """Answers at once with every token that it was asked for, and remembers what that was."""

    streams = 1

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []

    def submit(self, request: EngineRequest) -> TokenStream:
        self.requests.append(request)
        stream = TokenStream(request.request_id)
        tokens = tuple(3 + i % 250 for i in range(request.max_tokens))
        logprobs = (TokenLogprob(-1.0, ((5, -1.0),)),) * len(tokens) if request.logprobs is not None else ()
        stream.feed(TokenDelta(request.request_id, tokens, 0, Finish.LENGTH, "", logprobs), now_s=0.0)
        return stream

    def abort(self, stream: TokenStream) -> None: ...


class AnsweringReplica:
    def __init__(self, supports: frozenset[str] = OPTIONS) -> None:
        self.engine = InstantEngine()
        served = Served(names=("m",), fleet="ns/m", engine="Torch", pod_uid="u")
        served.limits = ModelLimits(LONGEST, VOCABULARY, LONGEST, (1,), supports)
        served.tokenizer = SyllableTokenizer(VOCABULARY)
        admission = Admission(
            pod_uid="u",
            model_name="m",
            queued_requests=9,
            life=lambda: cast(Life, Working()),
            on_change=lambda inside: None,
        )
        admission.places = 9
        metrics = ServerMetrics(model="m", kv_block_tokens=16)
        generation = Generation(cast(EngineClient, self.engine), admission, metrics, stream_duration_s=3600.0)
        self.inference = InferenceService(served, admission, generation, ThreadPoolExecutor(1))
        self.trtllm = TrtllmService(served, admission, generation, ReplicaView(cast(Life, Working()), 1))
        self.admission = admission

    def ask(self, service: Any, request: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Call:
        context = Call(metadata)

        async def call() -> None:
            try:
                await service.Generate(request, context)
            except Ended:
                return

        asyncio.run(call())
        assert self.admission.inside == 0
        return context


class Working:
    takes_work = True
