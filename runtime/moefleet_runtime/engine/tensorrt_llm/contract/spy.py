"""Sits between the adapter and the LLM and writes down what goes through."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from moefleet_runtime.engine.tensorrt_llm.loading import Connected, connect
from moefleet_runtime.engine.tensorrt_llm.prepared import Prepared


@dataclass(slots=True)
class Call:
    """One generate_async."""

    prompt: list[int]
    keywords: dict[str, Any]
    # As it was before the engine had it.
    sampling: dict[str, Any]
    # The RequestOutput; None when the call raised.
    result: Any = None
    aborts: int = 0


@dataclass(slots=True)
class Seen:
    constructed: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    # Threads that read statistics.
    readers: set[int] = field(default_factory=set)
    shutdowns: int = 0

    def call(self, prompt: tuple[int, ...]) -> Call:
        """The last one with this prompt."""
        return next(c for c in reversed(self.calls) if c.prompt == list(prompt))


class SpyLlm:
    def __init__(self, inner: Any, seen: Seen) -> None:
        self._inner = inner
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate_async(self, inputs: Any, sampling_params: Any = None, **keywords: Any) -> Any:
        fields = [f.name for f in dataclasses.fields(sampling_params)] if sampling_params is not None else []
        sampling = {name: getattr(sampling_params, name, None) for name in fields}
        call = Call(list(inputs), {**keywords, "sampling_params": sampling_params}, sampling)
        self._seen.calls.append(call)
        call.result = self._inner.generate_async(inputs, sampling_params=sampling_params, **keywords)
        return _SpyResult(call)

    def get_stats(self, timeout: float | None = 2) -> Any:
        self._seen.readers.add(threading.get_ident())
        return self._inner.get_stats(timeout)

    def shutdown(self) -> None:
        self._seen.shutdowns += 1
        self._inner.shutdown()


class _SpyResult:
    def __init__(self, call: Call) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call.result, name)

    def __aiter__(self) -> Any:
        return self._call.result.__aiter__()

    def abort(self) -> None:
        self._call.aborts += 1
        self._call.result.abort()


def spied_connect(prepared: Prepared, seen: Seen) -> Connected:
    """As `loading.connect`."""
    import tensorrt_llm

    real = tensorrt_llm.LLM

    def construct(**keywords: Any) -> Any:
        seen.constructed = dict(keywords)
        return real(**keywords)

    with mock.patch.object(tensorrt_llm, "LLM", construct):
        connected = connect(prepared)
    return dataclasses.replace(connected, llm=SpyLlm(connected.llm, seen))
