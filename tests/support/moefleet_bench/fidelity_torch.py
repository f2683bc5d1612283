"""Records one real Torch replica under an open-loop load, for moefleet_replay.fidelity.

The clock is the processor time of the thread that steps, so that a machine that is busy with something else records the same engine:
the engine, its thread, scheduler, model and books are the real ones, but seconds in which the thread did not run do not pass, and
when nothing is in the engine the clock jumps to the next arrival. A request comes in between the two steps in which its time falls.
Each pass of the model is made REPEATS times (it writes the same cache slots each time) and counts as its quickest: a neighbour that
takes cache and execution units makes passes slower, for the engine and not for the simulator. What making requests costs, which in a
pod another process pays, is taken off. A block for the fit stands beside each that is judged, so that both see the same machine.
"""

from __future__ import annotations

import math
import os
import platform
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from moefleet_perf import TINY_CPU, ReplicaLimits
from moefleet_replay.fidelity import Block, Recording, requests_per_s
from moefleet_runtime.engine.base import EngineRequest, EngineSettings, TokenDelta
from moefleet_runtime.engine.torch.engine import TorchEngine
from moefleet_runtime.engine.torch.requests import Row as EngineRow
from moefleet_runtime.engine.torch.runner import Made, Runner
from moefleet_runtime.engine.torch.starting import start
from rich.console import Console

LOADS = (0.3, 0.6, 0.8, 0.95)
# Seconds of the engine's clock in each block; at each load so many pairs of blocks, one for the fit and one that is judged.
BLOCK_S = 5.0
PAIRS = 2
SATURATING = 250
REPEATS = 3
# Lognormal by median and sigma, cut off: chat in the size of the tiny model.
PROMPT, PROMPT_SIGMA, MOST_PROMPT = 40, 0.7, 200
ANSWER, ANSWER_SIGMA, MOST_ANSWER = 24, 0.7, 120
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    at_ns: int
    prompt: tuple[int, ...]
    answer: int


def traffic(chance: random.Random, rate: float | None, vocabulary: int) -> list[Asked]:
    """Poisson arrivals for BLOCK_S, or SATURATING requests at once."""
    asked: list[Asked] = []
    at_s = 0.0
    while True:
        if rate is None:
            if len(asked) == SATURATING:
                return asked
        else:
            at_s += chance.expovariate(rate)
            if at_s >= BLOCK_S:
                return asked
        prompt = _length(chance, PROMPT, PROMPT_SIGMA, MOST_PROMPT)
        tokens = tuple(chance.randrange(3, vocabulary) for _ in range(prompt))
        asked.append(Asked(round(at_s * 1e9), tokens, _length(chance, ANSWER, ANSWER_SIGMA, MOST_ANSWER)))


def _length(chance: random.Random, median: float, sigma: float, most: int) -> int:
    return min(max(round(chance.lognormvariate(math.log(median), sigma)), 1), most)


@dataclass(slots=True)
class _Recorder:
    """Sink and runner of an engine whose clock it is; everything but `record` happens in the engine's own thread."""

    engine: TorchEngine
    inner: Runner
    done: threading.Event = field(default_factory=threading.Event)
    deaths: list[str] = field(default_factory=list)
    _waiting: deque[tuple[int, Asked]] = field(default_factory=deque)
    _asked: list[Asked] = field(default_factory=list)
    _times: list[list[int]] = field(default_factory=list)
    _steps: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    # Requests in the engine; processor time that is not the engine's, and time that passed without it.
    _live: int = 0
    _off_ns: int = 0
    _boundary_ns: int = 0
    _step: tuple[int, int, int] | None = None
    _block: int = 0

    def record(self, asked: Sequence[Asked]) -> tuple[list[list[int]], list[tuple[int, int, int, int, int]]]:
        """First and last token by request, and steps; from and to an idle engine."""
        self._block += 1
        self._asked, self._waiting = list(asked), deque(enumerate(asked))
        self._times = [[-1, -1] for _ in asked]
        self._steps, self._live, self._step = [], 0, None
        self.done.clear()
        # Its end is the beginning of the block, in the engine's own thread.
        self.engine.submit(EngineRequest(f"kick-{self._block}", (5,) * 8, 4, ignore_eos=True))
        if not self.done.wait(PATIENCE_S) or self.deaths:
            raise RuntimeError(
                f"block {self._block}: {self.deaths or f'not at its end after {PATIENCE_S:g} s'}"
            )
        return self._times, self._steps

    def run(self, rows: Sequence[EngineRow]) -> list[Made]:
        prefill = sum(row.count for row in rows if not row.decodes)
        kv = sum(row.start + row.count for row in rows if row.decodes)
        self._step = (prefill, sum(row.decodes for row in rows), kv)
        begin_ns = time.thread_time_ns()
        took_ns = []
        for _ in range(REPEATS):
            before_ns = time.thread_time_ns()
            made = self.inner.run(rows)
            took_ns.append(time.thread_time_ns() - before_ns)
        self._off_ns += time.thread_time_ns() - begin_ns - min(took_ns)
        if not made:
            # No answer gets on, so nobody will call `deltas`.
            self._between_steps()
        return made

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        kicked = any(d.request_id.startswith("kick-") for d in batch)
        if kicked:
            if all(d.finish is None for d in batch):
                return
            self._off_ns = time.thread_time_ns()
            self._boundary_ns = 0
            self._step = None
            self._take_in()
            return
        self._between_steps(batch)
        if not self._waiting and self._live == 0:
            self.done.set()

    def died(self, reason: str) -> None:
        self.deaths.append(reason)
        self.done.set()

    def _between_steps(self, batch: Sequence[TokenDelta] = ()) -> None:
        now = time.thread_time_ns() - self._off_ns
        if self._step is not None:
            self._steps.append((self._boundary_ns, now - self._boundary_ns, *self._step))
            self._step = None
        self._boundary_ns = now
        for delta in batch:
            times = self._times[int(delta.request_id.partition("-")[2])]
            if times[0] < 0:
                times[0] = now
            times[1] = now
            self._live -= delta.finish is not None
        self._take_in()

    def _take_in(self) -> None:
        if self._live == 0 and self._waiting and self._waiting[0][1].at_ns > self._boundary_ns:
            self._boundary_ns = self._waiting[0][1].at_ns
        while self._waiting and self._waiting[0][1].at_ns <= self._boundary_ns:
            number, asked = self._waiting.popleft()
            self._live += 1
            self.engine.submit(
                EngineRequest(f"{self._block}-{number}", asked.prompt, asked.answer, ignore_eos=True)
            )
        # What this took, and what was jumped over, is not the engine's.
        self._off_ns = time.thread_time_ns() - self._boundary_ns


def record(settings: EngineSettings, *, seed: int = 0, told: Console | None = None) -> Recording:
    """Minutes of processor time. Rates come from the last saturated block before them, one of those for the fit."""
    chance = random.Random(seed)
    parts = start(settings)
    engine = TorchEngine(settings)
    recorder = _Recorder(engine, parts.runner)
    info = engine.start_with(replace(parts, runner=recorder), recorder)
    try:
        # Caches, allocators and the branch predictor learn before anything counts.
        _block(recorder, traffic(chance, None, info.vocabulary_size)[:100], 0.0, fit=True)
        blocks: list[Block] = []
        capacity = 0.0
        for number, load, fit in product(range(PAIRS), (0.0, *LOADS), (True, False)):
            asked = traffic(chance, load * capacity if load else None, info.vocabulary_size)
            blocks.append(_block(recorder, asked, load, fit=fit))
            if fit and not load:
                capacity = requests_per_s(blocks[-1])
            if told is not None:
                step_ms = blocks[-1].steps[:, 1].mean() / 1e6
                told.log(f"pair {number + 1} of {PAIRS}, load {load or 1:.0%}{', fit' if fit else ''}: {len(asked)} requests, {len(blocks[-1].steps)} steps of {step_ms:.2f} ms")  # fmt: skip
    finally:
        engine.stop()
    limits = ReplicaLimits(info.max_batch_size, info.kv_max_tokens, info.max_batch_tokens)
    what = (
        f"{info.engine_version}, {info.device}, {platform.machine()}, one thread; the checkpoint tiny-deepseek-v2; clock: processor"
        f" time of the step thread, quickest of {REPEATS} passes; load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores; {time.strftime('%Y-%m-%d', time.gmtime())}, seed {seed}"
    )
    return Recording(what, TINY_CPU, limits, tuple(blocks))


def _block(recorder: _Recorder, asked: Sequence[Asked], load: float, *, fit: bool) -> Block:
    times, steps = recorder.record(asked)
    requests = [(a.at_ns, len(a.prompt), a.answer, *t) for a, t in zip(asked, times, strict=True)]
    return Block(load, fit, np.array(requests, np.int64), np.array(steps, np.int64))


def settings() -> EngineSettings:
    from moefleet_testing.torch_engine import settings as tiny

    return tiny(blocks=4096)
