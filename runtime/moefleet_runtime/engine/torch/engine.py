"""The Torch engine behind the engine protocol: one thread that steps, an inbox, and what others may see of it.

An error in a step fails exactly the requests of that step, whose blocks go back unpublished; it is counted, so that the
server can turn readiness off and try its canary. Errors that leave the device or our own books in doubt, or that
come step after step, end the engine: a new process is the only honest repair.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch

from moefleet_runtime.engine.base import (
    EngineDead,
    EngineFull,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSettings,
    Finish,
    RequestInvalid,
    Sink,
    StartFailed,
    StepSumsAccumulator,
    TokenDelta,
    TokenLogprob,
)
from moefleet_runtime.engine.prefixes import PrefixChanges, PrefixLog
from moefleet_runtime.engine.torch.checking import checked
from moefleet_runtime.engine.torch.guides import GuideBroken, Guides
from moefleet_runtime.engine.torch.requests import Generation, Row
from moefleet_runtime.engine.torch.runner import Runner
from moefleet_runtime.engine.torch.scheduler import Scheduler
from moefleet_runtime.engine.torch.starting import Started, start

# A step that fails once may be one request's fault; so many in a row, with no step between that worked, are not.
MAX_FAILED_STEPS_IN_A_ROW = 8
# Messages name errors, they do not carry them: some of torch's are pages long.
MAX_ERROR_CHARACTERS = 500


class TorchEngine:
    """Public methods may be called from any thread; those with an underscore and `now` run in the step thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        # Under `_changed`: what has come in since the last step, and every request that is not yet ended.
        self._inbox: deque[tuple[Literal["begin", "abort"], Generation]] = deque()
        self._live: dict[str, Generation] = {}
        self._stopping = False
        self._dead = "it was not started"
        self._thread: threading.Thread | None = None
        # Only the step thread changes these; `load` reads single numbers of them.
        self._scheduler: Scheduler | None = None
        self._prefixes = PrefixLog()
        self._sums = StepSumsAccumulator()
        self._output_tokens_total = 0
        self._failed_steps_total = 0
        self._failed_in_a_row = 0
        self._progress_at_s = 0.0

    def start(self, sink: Sink) -> EngineInfo:
        """Loads the checkpoint in the calling thread. Raises StartFailed."""
        return self.start_with(start(self._settings), sink)

    def start_with(self, started: Started, sink: Sink) -> EngineInfo:
        """From parts made elsewhere: how tests put a runner that fails in."""
        if self._thread is not None:
            raise StartFailed("EngineUnavailable", "the engine was started already", permanent=True)
        self._info = started.info
        self._runner: Runner = started.runner
        self._scheduler = started.scheduler
        self._guides: Guides | None = started.guides
        self._prefixes = started.prefixes
        self._sink = sink
        self._threads = started.threads
        self._progress_at_s = time.monotonic()
        self._dead = ""
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self._thread.start()
        return self._info

    def submit(self, request: EngineRequest) -> None:
        self._check_alive()
        generation = checked(request, self._info, self._guides)
        with self._changed:
            self._check_alive()
            if request.request_id in self._live:
                raise RequestInvalid(f"request {request.request_id}: this id runs already")
            # Not only what waits: a burst at an idle engine would be refused although it all fits the next step.
            most = self._info.max_batch_size + self._settings.max_queued
            if len(self._live) >= most:
                raise EngineFull(
                    f"request {request.request_id}: {len(self._live)} requests run or wait, at most {most} may "
                    f"({self._info.max_batch_size} in the batch, {self._settings.max_queued} waiting)"
                )
            if not self._live:
                self._progress_at_s = time.monotonic()
            self._live[request.request_id] = generation
            self._inbox.append(("begin", generation))
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        with self._changed:
            generation = self._live.get(request_id)
            if generation is not None:
                self._inbox.append(("abort", generation))
                self._changed.notify()

    def load(self) -> EngineLoad:
        scheduler = self._scheduler
        if scheduler is None:
            return EngineLoad()
        # list() of a dict and len() of a list are one operation each: no lock, so never a wait.
        live, active = list(self._live.values()), len(scheduler.running)
        pool = scheduler.pool
        return EngineLoad(
            active=active,
            queued=max(0, len(live) - active),
            outstanding_prefill_tokens=sum(g.pending for g in live if not g.decodes),
            outstanding_decode_tokens=sum(max(0, g.length_limit - len(g.tokens)) for g in live),
            kv_used_tokens=pool.used * pool.block_tokens,
            kv_max_tokens=self._info.kv_max_tokens,
            kv_reusable_tokens=pool.reusable * pool.block_tokens,
            prompt_tokens_total=scheduler.prompt_tokens_total,
            cached_tokens_total=scheduler.cached_tokens_total,
            output_tokens_total=self._output_tokens_total,
            failed_steps_total=self._failed_steps_total,
            preempted_total=scheduler.preempted_total,
            progress_at_s=self._progress_at_s,
            steps=self._sums.freeze(),
        )

    def prefix_changes(self) -> PrefixChanges | None:
        return self._prefixes.drain() if self._settings.kv_reuse else None

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _check_alive(self) -> None:
        if self._dead or self._stopping:
            raise EngineDead(f"the engine takes no requests: {self._dead or 'it was stopped'}")

    def _run(self) -> None:
        # The number of threads is a property of the calling thread too.
        torch.set_num_threads(self._threads)
        reason = ""
        try:
            while self._wait_for_work():
                self._step()
        except _Doubtful as error:
            reason = str(error)
        except BaseException as error:
            reason = f"the step thread ended: {_said(error)}"
        self._end_all(reason)

    def _wait_for_work(self) -> bool:
        """False when it is time to end. Takes in what has come: new requests wait, aborted ones are gone."""
        assert self._scheduler is not None
        with self._changed:
            while not (self._stopping or self._inbox or self._scheduler.has_work):
                self._changed.wait()
            if self._stopping:
                return False
            arrived = list(self._inbox)
            self._inbox.clear()
        deltas = []
        for what, generation in arrived:
            if what == "begin":
                self._scheduler.add(generation)
            elif self._live.get(generation.request.request_id) is generation:
                # Otherwise it ended since the abort was sent, and its id may even be another's by now.
                self._scheduler.remove(generation)
                deltas.append(self._ended(generation, (), Finish.CANCELLED))
        for generation in self._scheduler.late(time.monotonic()):
            self._scheduler.remove(generation)
            deltas.append(self._ended(generation, (), Finish.LATE, "its deadline passed"))
        self._deliver(deltas)
        return True

    def _step(self) -> None:
        assert self._scheduler is not None
        began_s = time.perf_counter()
        rows = self._scheduler.plan()
        if not rows:
            # Only when every request was aborted or late.
            if self._scheduler.has_work:
                raise _Doubtful("the scheduler has work and plans no step")
            return
        prefill = sum(row.count for row in rows if not row.decodes)
        kv = sum(row.start + row.count for row in rows if row.decodes)
        sequences = sum(row.decodes for row in rows)
        try:
            made = self._runner.run(rows)
        except Exception as error:
            self._fail(rows, error)
            return
        self._failed_in_a_row = 0
        self._scheduler.advance(rows)
        deltas = [self._made(*one) for one in made]
        self._progress_at_s = time.monotonic()
        # All that a step costs us, but not how long the reader of the sink takes: that says nothing of the model.
        self._sums.add(time_s=time.perf_counter() - began_s, prefill=prefill, sequences=sequences, kv=kv)
        self._deliver(deltas)

    def _made(self, generation: Generation, token: int, logprob: TokenLogprob | None) -> TokenDelta:
        assert self._scheduler is not None
        self._output_tokens_total += 1
        try:
            finish = generation.append(token)
        except GuideBroken as error:
            # This request's own grammar: the step and its other requests are sound.
            self._scheduler.remove(generation)
            return self._ended(generation, (), Finish.REFUSED, str(error))
        logprobs = () if logprob is None else (logprob,)
        if finish is not None:
            self._scheduler.remove(generation)
            return self._ended(generation, (token,), finish, logprobs=logprobs)
        return self._delta(generation, (token,), logprobs=logprobs)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        assert self._scheduler is not None
        self._failed_steps_total += 1
        self._failed_in_a_row += 1
        said = f"the step that held this request failed: {_said(error)}"
        deltas = []
        for row in rows:
            self._scheduler.remove(row.generation)
            deltas.append(self._ended(row.generation, (), Finish.FAILED, said))
        self._progress_at_s = time.monotonic()
        self._deliver(deltas)
        if isinstance(error, torch.AcceleratorError):
            # A CUDA error sticks to the context: every later step of this process would fail.
            raise _Doubtful(f"the device failed: {_said(error)}")
        if self._failed_in_a_row >= MAX_FAILED_STEPS_IN_A_ROW:
            raise _Doubtful(f"{self._failed_in_a_row} steps in a row failed, the last: {_said(error)}")

    def _delta(
        self,
        generation: Generation,
        tokens: tuple[int, ...],
        finish: Finish | None = None,
        error: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenDelta:
        cached = 0 if generation.told else generation.cached
        generation.told = True
        return TokenDelta(generation.request.request_id, tokens, cached, finish, error, logprobs)

    def _ended(
        self,
        generation: Generation,
        tokens: tuple[int, ...],
        finish: Finish,
        error: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenDelta:
        with self._changed:
            del self._live[generation.request.request_id]
        return self._delta(generation, tokens, finish, error, logprobs)

    def _deliver(self, deltas: Sequence[TokenDelta]) -> None:
        if deltas:
            self._sink.deltas(deltas)

    def _end_all(self, reason: str) -> None:
        """Every accepted request gets its last delta, whatever happened; then, with a reason, the engine is dead."""
        with self._changed:
            self._dead = reason or "it was stopped"
            left = list(self._live.values())
            self._live.clear()
            self._inbox.clear()
        finish = Finish.FAILED if reason else Finish.CANCELLED
        try:
            self._deliver([self._delta(g, (), finish, reason) for g in left])
        except Exception as error:
            # Often the very reason: then nobody can be told, but the host must still learn that it is over.
            reason = reason or f"the last answers could not be delivered: {_said(error)}"
        if reason:
            self._sink.died(reason)


class _Doubtful(Exception):  # noqa: N818 - what the engine has become
    """The engine can no longer answer for what it does."""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
