"""The synchronous client: the same for code without an event loop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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


class Stream:
    """As AsyncStream. `close` may come from another thread; iterating then ends."""

    def __init__(
        self, run: Run, start: Callable[[pb.GenerateRequest, float | None], Any], until_s: Until
    ) -> None:
        self._run = run
        self._start = start
        self._until_s = until_s
        self._closed = threading.Event()
        self._call: Any = None
        self._deltas = self._all()

    @property
    def answer(self) -> Answer:
        """So far; complete after the last delta."""
        return self._run.answer

    def collect(self) -> Answer:
        """Waits for the end."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        self._closed.set()
        if (call := self._call) is not None:
            call.cancel()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        return next(self._deltas)

    def _all(self) -> Iterator[Delta]:
        run, until_s = self._run, self._until_s()
        while not (run.over or self._closed.is_set()):
            failure: Failure = INCOMPLETE
            self._call = self._start(run.next_request(), _left_s(until_s))
            try:
                for message in self._call:
                    if (delta := run.take(message)) is not None:
                        yield delta
            except grpc.RpcError as error:
                failure = _failure(error)
            finally:
                self._call.cancel()
            if not (run.over or self._closed.is_set()):
                left_s = _left_s(until_s)
                self._closed.wait(run.broke(failure, left_s=left_s, chance=random.random()))


class Client:
    """As AsyncClient. Threads may share it."""

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
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._stub: Any = services.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = tuple(metadata)
        self._timeout_s = timeout_s

    def generate(self, model: str, prompt: str | Sequence[int], **options: Unpack[Options]) -> Stream:
        """Nothing is sent before the first delta is asked for; the time of the call runs from then."""
        timeout_s = options.get("timeout_s", self._timeout_s)
        metadata = (*self._metadata, *options.get("metadata", ()))

        def start(request: pb.GenerateRequest, left_s: float | None) -> Any:
            return self._stub.Generate(request, timeout=left_s, metadata=metadata)

        def until_s() -> float | None:
            return None if timeout_s is None else time.monotonic() + timeout_s

        return Stream(new_run(model, prompt, options), start, until_s)

    def count_tokens(self, model: str, text: str) -> int:
        """Tokens of the text, by the model's own tokenizer."""
        return int(self._unary(self._stub.CountTokens, pb.CountTokensRequest(model=model, text=text)).tokens)

    def get_model(self, model: str) -> Model:
        return model_of(self._unary(self._stub.GetModel, pb.GetModelRequest(model=model)).model)

    def list_models(self) -> list[Model]:
        return [model_of(one) for one in self._unary(self._stub.ListModels, pb.ListModelsRequest()).models]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unary(self, method: Callable[..., Any], request: Any) -> Any:
        timeout_s = UNARY_TIMEOUT_S if self._timeout_s is None else self._timeout_s
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(_failure(error)) from error


Until = Callable[[], float | None]


def _left_s(until_s: float | None) -> float | None:
    return None if until_s is None else max(until_s - time.monotonic(), 0.0)


def _failure(error: Any) -> Failure:
    return failure_of(error.code(), error.details(), error.trailing_metadata())
