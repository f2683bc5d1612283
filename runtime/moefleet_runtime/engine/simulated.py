"""The Simulated engine: the tokens and the pace of a calibrated replica in real time, without its work.

The scheduling (who is in which step, when a cache is full, how a long prompt is cut) is `moefleet_perf.VirtualReplica`, the
same object that the replay runs; here it is held against the clock. Each step ends when the calibration says, whatever the
machine was doing: after a late wake-up, the steps that are over are caught up with, each at its own time, so a busy machine
makes tokens late but never makes the replica slower. A token is arithmetic over the request, so that the same request gives
the same tokens everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from array import array
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import moefleet_perf as perf

from moefleet_runtime.engine.arguments import SimulatedArguments
from moefleet_runtime.engine.base import (
    Engine,
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
)
from moefleet_runtime.tokenizer import END, FIRST_WORD

# At most this often a second does the thread wake: steps of a few ms are handed over several at a time.
WAKE_S: Final = 0.005
# Granularity of prefix reuse, as TensorRT-LLM's default tokens_per_block.
BLOCK_TOKENS: Final = 32
DEFAULT_VOCABULARY: Final = 102400
_MASK: Final = (1 << 64) - 1


def make_engine(settings: EngineSettings) -> Engine:
    arguments = settings.arguments
    assert isinstance(arguments, SimulatedArguments)
    try:
        calibration = perf.load_calibration(arguments.calibration)
    except perf.CalibrationError as error:
        raise StartFailed("EngineArgumentInvalid", f"engine.args.calibration: {error}") from error
    # The fleet's limits bind where they are tighter; they cannot make the replica larger than it was calibrated.
    ranks = settings.tensor_parallel if settings.attention_data_parallel else 1
    limits = calibration.limits
    calibration = perf.with_limits(
        calibration,
        max_sequences=min(limits.max_sequences, (settings.max_batch_size or 1 << 30) * ranks),
        max_batch_tokens=min(limits.max_batch_tokens, settings.max_batch_tokens or 1 << 30),
    )
    return SimulatedEngine(perf.scaled(calibration, arguments.speed), settings, arguments)


@dataclass(slots=True)
class _Running:
    request: EngineRequest
    cached_tokens: int
    hashes: tuple[bytes, ...]
    # Where its tokens come from, and which of them is the end-of-text token (0: none).
    seed: int
    end_at: int
    produced: int = 0


class SimulatedEngine:
    def __init__(
        self, calibration: perf.Calibration, settings: EngineSettings, arguments: SimulatedArguments
    ) -> None:
        self._calibration = calibration
        self._settings = settings
        self._arguments = arguments
        self._vocabulary = arguments.vocabulary_size or _vocabulary(settings.model_path)
        self._replica = perf.VirtualReplica(calibration)
        self._prefixes = _Prefixes(
            calibration.limits.kv_max_tokens // BLOCK_TOKENS if settings.kv_reuse else 0
        )
        self._running: dict[str, _Running] = {}
        # Arrivals with their times, and aborts: both wait for the end of the step that runs. Guarded, like the rest,
        # by `_change`, which is never held while a step passes.
        self._inbox: deque[tuple[float, EngineRequest, tuple[bytes, ...]]] = deque()
        self._aborts: set[str] = set()
        self._change = threading.Condition()
        self._step: perf.Step | None = None
        self._sums = StepSumsAccumulator()
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._steps = self._failed_steps = 0
        self._progress_at_s = 0.0
        self._hung = False
        self._sink: Sink | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self, sink: Sink) -> EngineInfo:
        time.sleep(self._arguments.start_seconds)
        if self._arguments.faults.fail_start:
            raise StartFailed("EngineStartFailed", self._arguments.faults.fail_start)
        limits = self._calibration.limits
        self._sink = sink
        self._progress_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="steps", daemon=True)
        self._thread.start()
        return EngineInfo(
            model_name=self._settings.model_name,
            context_length=min(self._settings.context_length, limits.kv_max_tokens),
            vocabulary_size=self._vocabulary,
            eos_token_ids=(END,),
            kv_max_tokens=limits.kv_max_tokens,
            max_batch_size=limits.max_sequences,
            max_batch_tokens=limits.max_batch_tokens,
            engine_version=f"{self._calibration.name} at speed {self._arguments.speed:g}",
            device="simulated",
        )

    def submit(self, request: EngineRequest) -> None:
        limits = self._calibration.limits
        needed = len(request.prompt) + request.max_tokens
        if not request.prompt or request.max_tokens < 1:
            raise RequestInvalid("wanted at least one token in and one out")
        if needed > limits.kv_max_tokens:
            raise RequestInvalid(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate never fit a cache of"
                f" {limits.kv_max_tokens} tokens"
            )
        hashes = _block_hashes(request) if self._settings.kv_reuse else ()
        with self._change:
            if self._stopped or self._sink is None:
                raise EngineDead("the engine is stopped")
            queued = self._replica.queued
            free = max(0, limits.max_sequences - self._replica.active - queued)
            if queued + max(0, len(self._inbox) + 1 - free) > self._settings.max_queued:
                raise EngineFull(f"{self._settings.max_queued} requests wait already")
            now_s = time.monotonic()
            if not self._running and not self._inbox:
                self._progress_at_s = now_s
            self._inbox.append((now_s, request, hashes))
            if self._step is None:
                self._change.notify()

    def abort(self, request_id: str) -> None:
        with self._change:
            if request_id in self._running or any(r.request_id == request_id for _, r, _ in self._inbox):
                self._aborts.add(request_id)

    def load(self) -> EngineLoad:
        with self._change:
            replica = self._replica
            waiting = [request for _, request, _ in self._inbox]
            return EngineLoad(
                active=replica.active,
                queued=replica.queued + len(waiting),
                outstanding_prefill_tokens=replica.outstanding_prefill_tokens
                + sum(len(request.prompt) for request in waiting),
                outstanding_decode_tokens=replica.outstanding_decode_tokens
                + sum(request.max_tokens for request in waiting),
                kv_used_tokens=replica.kv_used_tokens,
                kv_max_tokens=self._calibration.limits.kv_max_tokens,
                prompt_tokens_total=self._prompt_tokens,
                cached_tokens_total=self._cached_tokens,
                output_tokens_total=self._output_tokens,
                failed_steps_total=self._failed_steps,
                progress_at_s=self._progress_at_s,
                steps=self._sums.freeze(),
            )

    def stop(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    # -- the thread that steps

    def _loop(self) -> None:
        sink = self._sink
        assert sink is not None
        try:
            while not self._stopped:
                if out := self._wake():
                    sink.deltas(out)
            sink.deltas(self._end_all())
        except Exception as error:
            # Without this thread nothing steps any more, and nobody would know.
            sink.died(f"{type(error).__name__}: {error}")

    def _wake(self) -> list[TokenDelta]:
        """Sleeps until the step that runs is over, then does what the time until now asks for."""
        with self._change:
            woke_s = time.monotonic()
            while not self._stopped:
                wait_s = self._until_due_s(woke_s)
                if wait_s is not None and wait_s <= 0:
                    break
                self._change.wait(wait_s)
            return self._catch_up(time.monotonic())

    def _until_due_s(self, woke_s: float) -> float | None:
        """None: nothing to do until somebody notifies."""
        if self._step is not None:
            return max(self._step.end_s, woke_s + WAKE_S) - time.monotonic()
        return 0.0 if self._inbox else None

    def _catch_up(self, now_s: float) -> list[TokenDelta]:
        """All steps that have ended by now, each followed by the next at the very time that it ended."""
        out = _Collected()
        if self._step is None and self._inbox:
            self._step = self._begin(self._inbox[0][0], out)
        while self._step is not None and self._step.end_s <= now_s and not self._stopped:
            ended = self._step
            self._finish(ended, out)
            self._progress_at_s = now_s
            if self._faulty():
                break
            self._step = self._begin(ended.end_s, out)
            if self._step is None and self._inbox:
                self._step = self._begin(self._inbox[0][0], out)
        return out.deltas()

    def _begin(self, at_s: float, out: _Collected) -> perf.Step | None:
        for request_id in self._aborts:
            if self._running.pop(request_id, None) is not None:
                self._replica.cancel(request_id)
                out.end(request_id, Finish.CANCELLED)
        while self._inbox and self._inbox[0][0] <= at_s:
            _, request, hashes = self._inbox.popleft()
            if request.request_id in self._aborts:
                out.end(request.request_id, Finish.CANCELLED)
                continue
            self._admit(at_s, request, hashes)
        self._aborts.intersection_update(request.request_id for _, request, _ in self._inbox)
        return self._replica.run_step(at_s)

    def _admit(self, at_s: float, request: EngineRequest, hashes: tuple[bytes, ...]) -> None:
        cached = min(self._prefixes.match(hashes) * BLOCK_TOKENS, len(request.prompt) - 1)
        self._replica.submit(
            perf.Arrival(request.request_id, at_s, len(request.prompt), request.max_tokens, cached)
        )
        seed = _seed(request)
        end_at = 0 if request.ignore_eos else _end_at(seed, self._arguments.mean_output_tokens)
        self._running[request.request_id] = _Running(request, cached, hashes, seed, end_at)
        self._prompt_tokens += len(request.prompt)
        self._cached_tokens += cached

    def _finish(self, step: perf.Step, out: _Collected) -> None:
        self._steps += 1
        every = self._arguments.faults.step_error_every
        if every and self._steps % every == 0:
            self._fail_step(step, out)
            return
        self._sums.add(
            time_s=step.end_s - step.start_s,
            prefill=step.prefill_tokens,
            sequences=step.sequences,
            kv=step.kv_tokens,
        )
        words = self._vocabulary - FIRST_WORD
        for request_id in step.tokens:
            running = self._running.get(request_id)
            if running is None or request_id in self._aborts:
                continue
            request = running.request
            running.produced += 1
            produced = running.produced
            if produced == 1:
                self._prefixes.publish(running.hashes)
                out.cached[request_id] = running.cached_tokens
            token = END if produced == running.end_at else FIRST_WORD + _mix(running.seed, produced) % words
            out.tokens.setdefault(request_id, []).append(token)
            self._output_tokens += 1
            stops = produced == running.end_at or token in request.stop_token_ids
            if stops or produced >= request.max_tokens:
                out.end(request_id, Finish.STOP if stops else Finish.LENGTH)
                del self._running[request_id]
                # It may have hoped for more: frees what was kept for that.
                self._replica.cancel(request_id)

    def _fail_step(self, step: perf.Step, out: _Collected) -> None:
        """Fails whom the step would have given a token; a step of nothing but prompt fails the oldest without one."""
        self._failed_steps += 1
        hit = step.tokens or tuple(r for r, s in self._running.items() if not s.produced)[:1]
        for request_id in hit:
            if self._running.pop(request_id, None) is not None:
                self._replica.cancel(request_id)
                out.end(request_id, Finish.FAILED, f"step {self._steps} failed (faults.stepErrorEvery)")

    def _faulty(self) -> bool:
        """Whether a rehearsed fault has come: true is a hang."""
        faults = self._arguments.faults
        if faults.die_after_tokens and self._output_tokens >= faults.die_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if faults.hang_after_tokens and self._output_tokens >= faults.hang_after_tokens:
            self._hung = True
            self._step = perf.Step(math.inf, math.inf, 0, 0, 0, (), ())
        return self._hung

    def _end_all(self) -> list[TokenDelta]:
        with self._change:
            ids = [*self._running, *(request.request_id for _, request, _ in self._inbox)]
            self._running.clear()
            self._inbox.clear()
            return [TokenDelta(request_id, (), 0, Finish.CANCELLED) for request_id in ids]


class _Collected:
    """What one wake-up hands over: the tokens of several steps, once a request."""

    __slots__ = ("cached", "ends", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.ends: dict[str, tuple[Finish, str]] = {}

    def end(self, request_id: str, finish: Finish, error: str = "") -> None:
        self.tokens.setdefault(request_id, [])
        self.ends[request_id] = (finish, error)

    def deltas(self) -> list[TokenDelta]:
        cached, ends = self.cached, self.ends
        going_on: tuple[Finish | None, str] = (None, "")
        return [
            TokenDelta(request_id, tuple(tokens), cached.get(request_id, 0), *ends.get(request_id, going_on))
            for request_id, tokens in self.tokens.items()
        ]


class _Prefixes:
    """Blocks of prompt whose keys and values are still there: as many as the cache holds, the longest unused go first.

    Simple where a real cache is not: blocks of running requests take nothing away from these.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def match(self, hashes: tuple[bytes, ...]) -> int:
        """How many blocks from the beginning are known."""
        count = 0
        for block in hashes:
            if block not in self._known:
                break
            self._known.move_to_end(block)
            count += 1
        return count

    def publish(self, hashes: tuple[bytes, ...]) -> None:
        for block in hashes:
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._blocks:
            self._known.popitem(last=False)


def _vocabulary(folder: Path | None) -> int:
    """Of the model that is stood in for, when its configuration is there."""
    file = folder / "config.json" if folder else None
    if file is None or not file.exists():
        return DEFAULT_VOCABULARY
    try:
        return max(int(json.loads(file.read_text())["vocab_size"]), FIRST_WORD + 1)
    except (ValueError, KeyError, TypeError) as error:
        raise StartFailed("CheckpointUnreadable", f"{file}: vocab_size: {error!r}") from error


def _block_hashes(request: EngineRequest) -> tuple[bytes, ...]:
    """One hash a full block, each over everything before it and the salt."""
    chain = hashlib.blake2b(request.cache_salt.encode(), digest_size=16)
    tokens = memoryview(array("I", request.prompt).tobytes())
    hashes = []
    for end in range(BLOCK_TOKENS, len(request.prompt) + 1, BLOCK_TOKENS):
        chain.update(tokens[(end - BLOCK_TOKENS) * 4 : end * 4])
        hashes.append(chain.digest())
    return tuple(hashes)


def _seed(request: EngineRequest) -> int:
    """Greedy: of the prompt alone. Sampled with a seed: of both. Sampled without one: of chance."""
    chosen = b""
    if request.temperature > 0:
        chosen = os.urandom(8) if request.seed is None else request.seed.to_bytes(8, "little")
    digest = hashlib.blake2b(array("I", request.prompt).tobytes(), digest_size=8, key=chosen).digest()
    return int.from_bytes(digest, "little")


def _mix(seed: int, index: int) -> int:
    """splitmix64: the index-th number of the seed's sequence."""
    x = (seed + index * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _end_at(seed: int, mean_output_tokens: int) -> int:
    """Which token is the end-of-text token, geometrically distributed; 0: never."""
    if not mean_output_tokens:
        return 0
    share = (_mix(seed, 0) + 1) / (1 << 64)
    return 1 + int(-mean_output_tokens * math.log(share))
