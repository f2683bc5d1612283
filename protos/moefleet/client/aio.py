"""The asynchronous client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from moefleet.client.connecting import CHANNEL_OPTIONS, UNARY_TIMEOUT_S
from moefleet.client.course import Run, model_of, new_run
from moefleet.client.errors import Failure, error_of, failure_of
from moefleet.client.resuming import INCOMPLETE
from moefleet.client.types import Answer, Delta, Model, Options
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as services


class AsyncStream:
    """One answer: iterate over its deltas, or `collect` it. Leaving it early with `aclose` frees the replica at once.

    Iterating raises MoefleetError when the answer cannot go on; `answer` then still has what came."""

    def __init__(self, run: Run, deltas: Callable[[Run], Any]) -> None:
        self._run = run
        self._deltas = deltas(run)

    @property
    def answer(self) -> Answer:
        """So far; complete after the last delta."""
        return self._run.answer

    async def collect(self) -> Answer:
        """Waits for the end."""
        async for _ in self:
            pass
        return self.answer

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        delta: Delta = await anext(self._deltas)
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()


class AsyncClient:
    """`target`: a gateway's address (or a replica's, or any gRPC target). `credentials` None: no TLS.

    Not bound to a task; any number of answers at once share one connection."""

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        options = (*CHANNEL_OPTIONS, *channel_options)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        self._stub: Any = services.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = tuple(metadata)
        self._timeout_s = timeout_s

    def generate(self, model: str, prompt: str | Sequence[int], **options: Unpack[Options]) -> AsyncStream:
        """Nothing is sent before the first delta is asked for; the time of the call runs from then."""
        run = new_run(model, prompt, options)
        timeout_s = options.get("timeout_s", self._timeout_s)
        metadata = (*self._metadata, *options.get("metadata", ()))
        return AsyncStream(run, lambda run: self._deltas(run, timeout_s, metadata))

    async def count_tokens(self, model: str, text: str) -> int:
        """Tokens of the text, by the model's own tokenizer."""
        answer = await self._unary(self._stub.CountTokens, pb.CountTokensRequest(model=model, text=text))
        return int(answer.tokens)

    async def get_model(self, model: str) -> Model:
        return model_of((await self._unary(self._stub.GetModel, pb.GetModelRequest(model=model))).model)

    async def list_models(self) -> list[Model]:
        answer = await self._unary(self._stub.ListModels, pb.ListModelsRequest())
        return [model_of(one) for one in answer.models]

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _deltas(
        self, run: Run, timeout_s: float | None, metadata: Sequence[tuple[str, str]]
    ) -> AsyncIterator[Delta]:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not run.over:
            left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
            failure: Failure = INCOMPLETE
            try:
                async with aclosing(self._messages(run, left_s, metadata)) as messages:
                    async for message in messages:
                        if (delta := run.take(message)) is not None:
                            yield delta
            except grpc.aio.AioRpcError as error:
                failure = _failure(error)
            if not run.over:
                left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
                await asyncio.sleep(run.broke(failure, left_s=left_s, chance=random.random()))

    async def _messages(self, run: Run, left_s: float | None, metadata: Sequence[tuple[str, str]]) -> Any:
        call = self._stub.Generate(run.next_request(), timeout=left_s, metadata=metadata)
        try:
            async for message in call:
                yield message
        finally:
            # Nothing when it has ended; else the replica is freed now and not when garbage is collected.
            call.cancel()

    async def _unary(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        timeout_s = UNARY_TIMEOUT_S if self._timeout_s is None else self._timeout_s
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of(_failure(error)) from error


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    return failure_of(error.code(), error.details(), error.trailing_metadata())
