"""The adapter: `tensorrt_llm.LLM` behind the engine protocol.

The LLM is made in the main thread and driven from one event loop in a thread of its own, which calls `generate_async` and reads
the answers; a second thread reads statistics, a third looks whether the engine still lives. The engine's own idea of its
health (`_check_health`) says only that nobody has shut it down: progress is measured by tokens and steps, workers are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from moefleet_runtime.engine.base import (
    EngineDead,
    EngineFull,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    Finish,
    Sink,
    StartFailed,
    TokenDelta,
)
from moefleet_runtime.engine.prefixes import PrefixChanges
from moefleet_runtime.engine.tensorrt_llm.answers import Answer
from moefleet_runtime.engine.tensorrt_llm.checking import check_request
from moefleet_runtime.engine.tensorrt_llm.faults import Breaker, is_sticky, said
from moefleet_runtime.engine.tensorrt_llm.kv_events import CacheView
from moefleet_runtime.engine.tensorrt_llm.loading import Connected, connect
from moefleet_runtime.engine.tensorrt_llm.prefixes import AskedPrefixes
from moefleet_runtime.engine.tensorrt_llm.prepared import Prepared
from moefleet_runtime.engine.tensorrt_llm.sampling import sampling_keywords, stops_of
from moefleet_runtime.engine.tensorrt_llm.statistics import Reader, Statistics
from moefleet_runtime.engine.tensorrt_llm.workers import Workers

# How often the engine is looked at for lost workers.
WATCH_S: Final = 0.25
# stop(): for aborted requests to end, and for the engine to shut down, which it may never do. Together below the time
# that the server gives the host process (host.client.STOP_WAIT_S).
ABORT_WAIT_S: Final = 2.0
SHUTDOWN_WAIT_S: Final = 6.0


class TensorRTLLMEngine:
    """Methods with an underscore run in the loop's thread unless they say otherwise."""

    def __init__(self, prepared: Prepared, *, connect: Callable[[Prepared], Connected] = connect) -> None:
        """`connect`: for a spy in between."""
        self._prepared = prepared
        self._connect = connect
        self._settings = prepared.settings
        self._ranks = prepared.ranks
        # Under `_changed`: every request that has not had its last delta.
        self._changed = threading.Condition()
        self._live: dict[str, Answer] = {}
        self._stopping = False
        self._dead = "it was not started"
        self._info: EngineInfo | None = None
        self._out: list[TokenDelta] = []
        self._breaker = Breaker()
        self._statistics = Statistics(self._ranks)
        self._workers = Workers()
        self._readers: list[Reader] = []
        self.cache = CacheView()
        # None: the engine tells nothing of its cache, and what was asked for would never be taken back.
        self._prefixes: AskedPrefixes | None = None
        self._prompt_tokens_total = 0
        self._cached_tokens_total = 0
        self._output_tokens_total = 0
        self._progress_at_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, sink: Sink) -> EngineInfo:
        if self._info is not None:
            raise StartFailed("EngineUnavailable", "the engine was started already")
        self._sink = sink
        # Minutes; without a time-out of its own, the fleet's start budget bounds it.
        self._api: Connected = self._connect(self._prepared)
        self._workers.remember()
        self._info = info = self._api.info
        self._progress_at_s = time.monotonic()
        self._dead = ""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run_loop, name="trtllm-loop", daemon=True).start()
        threading.Thread(target=self._watch, name="trtllm-watch", daemon=True).start()
        llm = self._api.llm
        self._readers.append(Reader("trtllm-statistics", llm.get_stats, self._take_record))
        if self._api.kv_events:
            self._prefixes = AskedPrefixes()
            self._readers.append(Reader("trtllm-kv-events", llm.get_kv_cache_events, self._take_event))
        for reader in self._readers:
            reader.start()
        return info

    def submit(self, request: EngineRequest) -> None:
        info = self._check_alive()
        limit = check_request(request, info, rank_tokens=self._rank_tokens())
        stops = stops_of(request, info.eos_token_ids)
        with self._changed:
            self._check_alive()
            most = info.max_batch_size + self._settings.max_queued
            if len(self._live) >= most:
                raise EngineFull(
                    f"request {request.request_id}: {len(self._live)} requests run or wait, at most {most} may "
                    f"({info.max_batch_size} in the batch, {self._settings.max_queued} waiting)"
                )
            if not self._live:
                self._progress_at_s = time.monotonic()
            answer = Answer(request, stops, limit, self._breaker.epoch)
            self._live[request.request_id] = answer
        self._loop.call_soon_threadsafe(self._begin, answer)

    def abort(self, request_id: str) -> None:
        if self._info is None or self._dead:
            return
        # Behind its begin, which went the same way.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._abort, request_id)

    def load(self) -> EngineLoad:
        info = self._info
        if info is None:
            return EngineLoad()
        # list() of a dict is one operation: no lock, so never a wait.
        live = list(self._live.values())
        waiting = [answer for answer in live if not answer.delivered]
        told = self._statistics
        queued = (
            max(0, len(live) - info.max_batch_size) if told.queued is None else min(told.queued, len(waiting))
        )
        return EngineLoad(
            active=len(live) - queued,
            queued=queued,
            outstanding_prefill_tokens=sum(len(a.request.prompt) + len(a.request.generated) for a in waiting),
            outstanding_decode_tokens=sum(max(0, a.max_tokens - a.delivered) for a in live),
            kv_used_tokens=self._kv_used_tokens(live),
            kv_max_tokens=told.kv_max_tokens or info.kv_max_tokens,
            prompt_tokens_total=self._prompt_tokens_total,
            cached_tokens_total=self._cached_tokens_total,
            output_tokens_total=self._output_tokens_total,
            failed_steps_total=self._breaker.total,
            preempted_total=told.preempted_total,
            progress_at_s=self._progress_at_s,
            steps=told.sums.freeze(),
        )

    def prefix_changes(self) -> PrefixChanges | None:
        return self._prefixes.drain() if self._prefixes is not None else None

    def stop(self) -> None:
        """Ends every request with CANCELLED. Returns within ABORT_WAIT_S + SHUTDOWN_WAIT_S, whatever the engine does."""
        if self._info is None:
            return
        with self._changed:
            first, self._stopping = not self._stopping, True
        if not first:
            return
        for reader in self._readers:
            reader.stop()
        if not self._dead:
            self._loop.call_soon_threadsafe(self._abort_all)
            with self._changed:
                self._changed.wait_for(lambda: not self._live, timeout=ABORT_WAIT_S)
        self._dead = self._dead or "it was stopped"
        self._loop.call_soon_threadsafe(self._cancel_left)
        # It waits for its workers without a time-out; a daemon thread does not hold up the end of the process.
        closing = threading.Thread(target=self._shut_down, name="trtllm-shutdown", daemon=True)
        closing.start()
        closing.join(SHUTDOWN_WAIT_S)
        self._loop.call_soon_threadsafe(self._close)

    # -- any thread

    def _check_alive(self) -> EngineInfo:
        if self._info is None or self._dead or self._stopping:
            raise EngineDead(f"the engine takes no requests: {self._dead or 'it was stopped'}")
        return self._info

    def _rank_tokens(self) -> int:
        """What the cache of one rank holds, as the engine says once it has said so."""
        most = self._statistics.kv_max_tokens
        return most // self._ranks if most else self._prepared.plan.rank_tokens

    def _kv_used_tokens(self, live: Sequence[Answer]) -> int:
        """Statistics under tensor parallelism. Rank 0 says nothing of the others, so then by what was begun."""
        told = self._statistics.kv_used_tokens
        if self._ranks == 1 and told is not None and live:
            return told
        return sum(
            len(a.request.prompt) + len(a.request.generated) + a.delivered for a in live if a.delivered
        )

    def _take_record(self, record: Mapping[str, Any]) -> None:
        """In the statistics thread."""
        if self._statistics.absorb(record):
            self._progress_at_s = time.monotonic()

    def _take_event(self, event: Mapping[str, Any]) -> None:
        """In the events' thread."""
        gap = self.cache.absorb(event)
        if self._prefixes is not None:
            self._prefixes.absorb(event, lost=gap)

    def _watch(self) -> None:
        """In a thread of its own: the loop may be what hangs."""
        while not self._stopping and not self._dead:
            if lost := self._workers.lost():
                self._die(f"{lost}; the engine does not say so itself")
            elif not self._api.llm._check_health():
                self._die("it was shut down from within")
            time.sleep(WATCH_S)

    def _die(self, reason: str) -> None:
        """Once. Streams are answered by the server, which learns of it at the same time."""
        with self._changed:
            if self._dead or self._stopping:
                return
            self._dead = reason
        self._sink.died(reason)

    def _shut_down(self) -> None:
        # Said by the process that ends anyway; it often fails with more than one GPU.
        with contextlib.suppress(Exception):
            self._api.llm.shutdown()

    # -- the loop's thread

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        except BaseException as error:
            self._die(f"the thread that reads answers ended: {said(error)}")

    def _begin(self, answer: Answer) -> None:
        if answer.ended:
            return
        request = answer.request
        keywords = sampling_keywords(request, answer.stops, max_tokens=answer.max_tokens)
        try:
            answer.result = self._api.llm.generate_async(
                [*request.prompt, *request.generated],
                sampling_params=self._api.sampling_params(**keywords),
                streaming=True,
                cache_salt=request.cache_salt or None,
            )
        except (self._api.request_error, ValueError, TypeError) as error:
            self._end(
                answer, Finish.REFUSED, f"request {request.request_id}: the engine refused it: {said(error)}"
            )
            return
        except Exception as error:
            self._die(f"it takes no requests any more: {said(error)}")
            return
        task = self._loop.create_task(self._read(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _abort(self, request_id: str) -> None:
        answer = self._live.get(request_id)
        if answer is None or answer.abort_wanted:
            return
        answer.abort_wanted = True
        if answer.result is not None:
            try:
                answer.result.abort()
            except Exception as error:
                # It asserts that an executor is attached.
                self._die(f"it cannot abort a request: {said(error)}")

    def _abort_all(self) -> None:
        for request_id in list(self._live):
            self._abort(request_id)

    def _cancel_left(self) -> None:
        for answer in list(self._live.values()):
            self._end(answer, Finish.CANCELLED)

    def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        # After they have heard of it.
        self._loop.call_soon(self._loop.stop)

    async def _read(self, answer: Answer) -> None:
        result = answer.result
        try:
            # To the very end, also after the finish: the engine frees what it holds only for a reader that comes.
            async for _ in result:
                output = result.outputs[0]
                tokens = answer.new_tokens(output)
                if output.finish_reason is not None and not answer.ended:
                    self._finish(answer, tokens)
                elif tokens:
                    self._deliver(answer, tokens)
            if not answer.ended:
                self._finish(answer, answer.new_tokens(result.outputs[0]))
        except self._api.request_error as error:
            self._step_failed(answer, error)
        except Exception as error:
            if not answer.ended:
                self._die(f"a worker failed: {said(error)}")

    def _finish(self, answer: Answer, tokens: tuple[int, ...]) -> None:
        output = answer.result.outputs[0]
        tokens += answer.missing_stop(output)
        finish, why = answer.finish(output, aborted=answer.result.aborted())
        if finish is Finish.FAILED:
            self._breaker.failed(answer.epoch)
        self._end(answer, finish, why, tokens)

    def _step_failed(self, answer: Answer, error: Exception) -> None:
        if answer.ended:
            return
        self._breaker.failed(answer.epoch)
        if is_sticky(error):
            self._die(f"the device failed: {said(error)}")
            return
        if self._breaker.open:
            self._die(f"{self._breaker.in_a_row} steps in a row failed, the last: {said(error)}")
            return
        self._progress_at_s = time.monotonic()
        self._end(answer, Finish.FAILED, f"the step that held this request failed: {said(error)}")

    def _deliver(
        self, answer: Answer, tokens: tuple[int, ...], finish: Finish | None = None, why: str = ""
    ) -> None:
        cached = 0
        if tokens:
            self._breaker.worked()
            self._progress_at_s = time.monotonic()
            self._output_tokens_total += len(tokens)
            if answer.delivered == len(tokens):
                cached = int(getattr(answer.result, "cached_tokens", 0) or 0)
                cached = min(cached, len(answer.request.prompt))
                self._prompt_tokens_total += len(answer.request.prompt)
                self._cached_tokens_total += cached
                if self._prefixes is not None:
                    self._prefixes.asked(answer.request.prompt, answer.request.cache_salt)
        if not self._out:
            # Everything that this turn of the loop brings goes out together.
            self._loop.call_soon(self._flush)
        self._out.append(TokenDelta(answer.request.request_id, tokens, cached, finish, why))

    def _end(self, answer: Answer, finish: Finish, why: str = "", tokens: tuple[int, ...] = ()) -> None:
        if answer.ended:
            return
        answer.ended = True
        self._deliver(answer, tokens, finish, why)
        with self._changed:
            self._live.pop(answer.request.request_id, None)
            self._changed.notify_all()

    def _flush(self) -> None:
        """May block while the server is slow to read: that is the back-pressure."""
        out, self._out = self._out, []
        try:
            self._sink.deltas(out)
        except Exception as error:
            self._die(f"answers cannot be delivered: {said(error)}")
