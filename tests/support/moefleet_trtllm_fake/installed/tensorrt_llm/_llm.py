"""LLM and RequestOutput: the calls, the refusals and the lies of the real ones."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import pickle
import signal
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ._behaviour import behaviour
from ._executor import Executor, Response, Work
from ._generated import FACTS, CompletionOutput, SamplingParams, TorchLlmArgs
from ._workers import spawn
from .executor.utils import RequestError

_THROUGH_GENERATE = object()
_GENERATE = {p["name"] for p in FACTS["classes"]["LLM"]["methods"]["generate_async"]["parameters"]}
_ARGUMENTS = {p["name"] for p in FACTS["classes"]["LLM"]["constructor"]["parameters"]} - {"kwargs"}


class LLM:
    def __init__(self, model: str | Path, tokenizer: Any = None, **kwargs: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and not os.environ.get(
            "MOEFLEET_TRTLLM_ANY_THREAD"
        ):
            raise RuntimeError("create the LLM in the main thread (notes 7)")
        fields = TorchLlmArgs.model_fields
        for name in kwargs:
            if name not in fields and name not in _ARGUMENTS | {"_mpi_session", "backend", "executor_cls"}:
                raise ValueError(f"LLM got invalid argument: {name}")
        self.args: Any = TorchLlmArgs(model=model, tokenizer=tokenizer, **kwargs)
        # None becomes these (snapshot: notes of the fields).
        self.args.max_batch_size = self.args.max_batch_size or 2048
        self.args.max_num_tokens = self.args.max_num_tokens or 8192
        self.tokenizer = None
        self._how = how = behaviour()
        self._shut_down = False
        self._requests = 0
        self._live: dict[int, RequestOutput] = {}
        while how.start == "hang":
            # There is no start-up time-out (notes 8).
            time.sleep(3600)
        config = json.loads((Path(model) / "config.json").read_text())
        self.args.max_seq_len = self.args.max_seq_len or config["max_position_embeddings"]
        self._workers = spawn(self.args.tensor_parallel_size)
        try:
            self.model = self._build(config, how.start)
        except Exception:
            # On a failed build the MPI session is shut down and the error is raised again (snapshot, constructor notes).
            self._end_workers()
            raise
        self._executor = Executor(self.args, config["vocab_size"], how, self._kill_worker)
        atexit.register(self.shutdown)

    def _build(self, config: dict[str, Any], fault: str) -> Any:
        if fault == "worker-died":
            raise RuntimeError("Executor worker died during initialization")
        if fault == "worker-error":
            raise RuntimeError("Executor worker returned error") from ValueError(
                "missing weight model.norm.weight"
            )
        if fault == "oom":
            raise RuntimeError("Executor worker returned error") from MemoryError(
                "CUDA out of memory. Tried to allocate"
            )
        from ._torch.models.modeling_utils import MODEL_CLASS_MAPPING

        # As it reaches the workers: classes by reference, so that they can import them (notes 2, option A).
        mapping = pickle.loads(pickle.dumps(MODEL_CLASS_MAPPING))
        architecture = config["architectures"][0]
        if architecture not in mapping:
            error = ValueError(f"Unknown architecture for AutoModelForCausalLM: {architecture}")
            raise RuntimeError("Executor worker returned error") from error
        return mapping[architecture](
            SimpleNamespace(
                pretrained_config=SimpleNamespace(**config),
                moe_backend=self.args.moe_config.backend,
                _frozen=True,
            )
        )

    def generate_async(self, inputs: Any, sampling_params: Any = None, **keywords: Any) -> RequestOutput:
        if unknown := sorted(set(keywords) - _GENERATE):
            raise TypeError(f"generate_async() got an unexpected keyword argument {unknown[0]!r}")
        cache_salt = keywords.get("cache_salt")
        self._raise_fatal()
        if self._shut_down:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(inputs, list) or not all(isinstance(t, int) for t in inputs):
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        if sampling_params is None:
            sampling_params = SamplingParams()
        if not isinstance(sampling_params, SamplingParams):
            raise TypeError(
                f"The sampling_params must be type SamplingParams, but got {type(sampling_params)}"
            )
        if cache_salt is not None and not isinstance(cache_salt, str):
            raise TypeError("cache_salt must be a string")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required, or end_id has to be given (notes 7)")
        if self._how.refuses_token in inputs:
            raise ValueError("the parameters of this request are not supported")
        # The object is the engine's from here on (snapshot, SamplingParams rules).
        sampling_params.pad_id = (
            sampling_params.end_id if sampling_params.pad_id is None else sampling_params.pad_id
        )
        sampling_params._stream_interval = self.args.stream_interval
        sampling_params.return_perf_metrics = self.args.return_perf_metrics
        if not self.args.enable_chunked_prefill and len(inputs) > self.args.max_num_tokens:
            # notes 1.8
            raise RequestError(
                f"The prompt length ({len(inputs)}) should not exceed max_num_tokens ({self.args.max_num_tokens})"
            )
        loop = asyncio.get_running_loop()
        self._requests += 1
        output = RequestOutput(
            key=_THROUGH_GENERATE,
            llm=self,
            number=self._requests,
            prompt=list(inputs),
            params=sampling_params,
            loop=loop,
        )
        self._live[output.id] = output
        if self._requests in self._how.late_refusals or len(inputs) >= self.args.max_seq_len:
            output._send(Response(error="the request is longer than max_seq_len", done=True))
            return output
        self._executor.submit(Work(output.id, list(inputs), sampling_params, cache_salt or "", output._send))
        return output

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        if self._how.statistics_fail:
            raise RuntimeError("RPC: no route to the worker")
        with self._executor.news:
            if not self._executor.statistics:
                self._executor.news.wait(timeout)
            out = list(self._executor.statistics)
            self._executor.statistics.clear()
        return out

    def get_kv_cache_events(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        events = self._executor.events
        if not events:
            time.sleep(min(timeout or 0, 0.05))
        return [events.popleft() for _ in range(len(events))]

    def shutdown(self) -> None:
        if self._shut_down and not self._how.shutdown_hangs:
            return
        self._shut_down = True
        # Aborts what is in flight, does not drain (notes 1.4 and 4).
        for output in list(self._live.values()):
            output.abort()
        while self._how.shutdown_hangs:
            time.sleep(3600)
        self._executor.stop()
        self._end_workers()

    def _check_health(self) -> bool:
        # All it knows (notes 1.5): a dead or stalled engine is healthy.
        return not self._shut_down

    def _raise_fatal(self) -> None:
        if self._executor.fatal is not None:
            # The executor is shut down first (snapshot, errors of generate_async).
            self._shut_down = True
            raise self._executor.fatal

    def _kill_worker(self) -> None:
        os.kill(self._workers[0].pid, signal.SIGKILL)
        self._workers[0].wait()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()


class RequestOutput:
    """Yields itself, with cumulative outputs; ends with StopAsyncIteration when done."""

    def __init__(self, *, key: object = None, **parts: Any) -> None:
        if key is not _THROUGH_GENERATE:
            raise RuntimeError("RequestOutput is constructed by generate_async only")
        self.id = self.request_id = parts["number"]
        self.prompt = None
        self.prompt_token_ids = parts["prompt"]
        self.sampling_params = parts["params"]
        self.outputs = [CompletionOutput(0)]
        self.cached_tokens = 0
        self.finished = False
        self._llm = parts["llm"]
        self._loop = parts["loop"]
        self._aborted = False
        self._queue: deque[Response | Exception] = deque()
        self._arrived = asyncio.Event()

    def abort(self) -> None:
        assert self._llm._executor is not None
        # Queues a cancel and returns at once (notes 3).
        self._aborted = True
        self._llm._executor.cancel(self.id)

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        response = self._queue.popleft()
        if isinstance(response, Exception):
            self._llm._shut_down = True
            raise response
        self.cached_tokens = response.cached or self.cached_tokens
        self.finished = response.done
        if response.done:
            self._llm._live.pop(self.id, None)
        if response.error:
            raise RequestError(response.error)
        output = self.outputs[0]
        output.token_ids = [*output.token_ids, *response.tokens]
        output.finish_reason = response.finish
        output.stop_reason = response.stop_reason
        return self

    def _send(self, response: Response | Exception) -> None:
        def arrive() -> None:
            self._queue.append(response)
            self._arrived.set()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(arrive)
