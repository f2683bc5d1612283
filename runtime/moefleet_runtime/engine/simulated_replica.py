"""What the Simulated engine does when, without a clock: the caller says what time it is.

The scheduling (who is in which step, when the cache is full, how a long prompt is cut) is `moefleet_perf.VirtualReplica`,
the same object that the replay runs. This adds what makes it an engine: tokens, stops, prefix reuse, aborts, a bounded queue.
A token is arithmetic over the request, so that the same request gives the same tokens everywhere.
"""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

import moefleet_perf as perf
from moefleet_perf.prefixes import MARK_UNITS, token_marks

from moefleet_runtime.engine.base import (
    EngineFull,
    EngineLoad,
    EngineRequest,
    Finish,
    RequestInvalid,
    StepSumsAccumulator,
    TokenDelta,
)
from moefleet_runtime.engine.prefixes import PrefixLog
from moefleet_runtime.tokenizer import END, FIRST_WORD

# Granularity of prefix reuse, as TensorRT-LLM's default tokens_per_block.
BLOCK_TOKENS: Final = 32
# A wake-up that is later than this, and than the step itself, is a process that was stopped, not a busy machine: what
# it missed is lost. 12 steps of 20 ms; threads of machines with ten times as many of them as cores wake up sooner.
STALL_S: Final = 0.25
_MASK: Final = (1 << 64) - 1


@dataclass(slots=True)
class _Running:
    request: EngineRequest
    cached_tokens: int
    hashes: tuple[bytes, ...]
    # Where its tokens come from, and which of them is the end-of-text token (0: none).
    seed: int
    end_at: int
    # Tokens of the answer, those of another replica included: how many there are, the number of the first one made here, and of the
    # last one at most.
    produced: int
    first: int
    last: int
    stops: frozenset[int]
    # Its next tokens, the next one last.
    ahead: list[int] = field(default_factory=list)


class SimulatedReplica:
    """Not safe across threads: the engine holds its lock around every call."""

    def __init__(
        self,
        calibration: perf.Calibration,
        *,
        vocabulary_size: int,
        max_queued: int = 1000,
        kv_reuse: bool = True,
        mean_output_tokens: int = 0,
        step_error_every: int = 0,
    ) -> None:
        self.calibration = calibration
        self.vocabulary_size = vocabulary_size
        # Which prefixes are in the cache, for those who route by it.
        self.prefixes = PrefixLog()
        self._max_queued = max_queued
        self._mean_output_tokens = mean_output_tokens
        self._step_error_every = step_error_every
        self._replica = perf.VirtualReplica(calibration)
        self._prefixes = _Prefixes(
            calibration.limits.kv_max_tokens // BLOCK_TOKENS if kv_reuse else 0, self.prefixes
        )
        self._running: dict[str, _Running] = {}
        # Arrivals with their times, and aborts: both wait for the end of the step that runs.
        self._inbox: deque[tuple[float, EngineRequest, tuple[bytes, ...]]] = deque()
        self._aborts: set[str] = set()
        self._step: perf.Step | None = None
        self._sums = StepSumsAccumulator()
        self._prompt_tokens = self._cached_tokens = 0
        self._steps = self._failed_steps = 0
        self._progress_at_s = 0.0
        self.output_tokens_total = 0

    def submit(self, request: EngineRequest, hashes: tuple[bytes, ...], now_s: float) -> None:
        """`hashes` are `block_hashes(request)`: the caller makes them outside of its lock."""
        limits = self.calibration.limits
        if not request.prompt or request.max_tokens < 1:
            raise RequestInvalid("wanted at least one token in and one out")
        if len(request.generated) >= request.max_tokens:
            raise RequestInvalid(
                f"max_tokens is {request.max_tokens}, and there are so many tokens", "generated"
            )
        if len(request.prompt) + request.max_tokens > limits.kv_max_tokens:
            raise RequestInvalid(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate never fit a cache of"
                f" {limits.kv_max_tokens} tokens"
            )
        queued = self._replica.queued
        free = max(0, limits.max_sequences - self._replica.active - queued)
        # Aborted ones make room at the end of the step that runs, before anybody is let in.
        if queued + max(0, len(self._inbox) + 1 - free) - len(self._aborts) > self._max_queued:
            raise EngineFull(f"{self._max_queued} requests wait already")
        if not self._running and not self._inbox:
            self._progress_at_s = now_s
        self._inbox.append((now_s, request, hashes))

    def abort(self, request_id: str) -> None:
        if request_id in self._running or any(r.request_id == request_id for _, r, _ in self._inbox):
            self._aborts.add(request_id)

    def due_s(self) -> float | None:
        """When to call `catch_up`; None: not before something is submitted."""
        if self._step is not None:
            return self._step.end_s
        return self._inbox[0][0] if self._inbox else None

    def catch_up(self, now_s: float) -> list[TokenDelta]:
        """All steps that have ended by now, each followed by the next at the very time that it ended.

        After a stall the step that was running ends now, and the next one takes its full time.
        """
        out = _Collected()
        if self._step is None and self._inbox:
            self._step = self._begin(_resumed_s(self._inbox[0][0], now_s, STALL_S), out)
        while self._step is not None and self._step.end_s <= now_s:
            ended = self._step
            self._finish(ended, out)
            self._progress_at_s = now_s
            stall_s = max(STALL_S, ended.end_s - ended.start_s)
            self._step = self._begin(_resumed_s(ended.end_s, now_s, stall_s), out)
            if self._step is None and self._inbox:
                self._step = self._begin(_resumed_s(self._inbox[0][0], now_s, STALL_S), out)
        return out.deltas()

    def end_all(self) -> list[TokenDelta]:
        ids = [*self._running, *(request.request_id for _, request, _ in self._inbox)]
        self._running.clear()
        self._inbox.clear()
        self._step = None
        return [TokenDelta(request_id, (), 0, Finish.CANCELLED) for request_id in ids]

    def load(self) -> EngineLoad:
        replica = self._replica
        waiting = [request for _, request, _ in self._inbox]
        return EngineLoad(
            active=replica.active,
            queued=replica.queued + len(waiting),
            outstanding_prefill_tokens=replica.outstanding_prefill_tokens
            + sum(len(request.prompt) + len(request.generated) for request in waiting),
            outstanding_decode_tokens=replica.outstanding_decode_tokens
            + sum(request.max_tokens - len(request.generated) for request in waiting),
            kv_used_tokens=replica.kv_used_tokens,
            kv_max_tokens=self.calibration.limits.kv_max_tokens,
            prompt_tokens_total=self._prompt_tokens,
            cached_tokens_total=self._cached_tokens,
            output_tokens_total=self.output_tokens_total,
            failed_steps_total=self._failed_steps,
            progress_at_s=self._progress_at_s,
            steps=self._sums.freeze(),
        )

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
            perf.Arrival(
                request.request_id,
                at_s,
                len(request.prompt) + len(request.generated),
                request.max_tokens - len(request.generated),
                cached,
            )
        )
        seed = _seed(request)
        end_at = 0 if request.ignore_eos else _end_at(seed, self._mean_output_tokens)
        made = len(request.generated)
        self._running[request.request_id] = _Running(
            *(request, cached, hashes, seed, end_at, made, made + 1),
            last=request.max_tokens,
            stops=request.stop_token_ids,
        )
        self._prompt_tokens += len(request.prompt)
        self._cached_tokens += cached

    def _finish(self, step: perf.Step, out: _Collected) -> None:
        self._steps += 1
        every = self._step_error_every
        if every and self._steps % every == 0:
            self._fail_step(step, out)
            return
        self._sums.add(
            time_s=step.end_s - step.start_s,
            prefill=step.prefill_tokens,
            sequences=step.sequences,
            kv=step.kv_tokens,
        )
        # Once a token, of which a rehearsed pod makes tens of thousands a second: everything is looked up outside.
        words = self.vocabulary_size - FIRST_WORD
        running_by_id, aborts, tokens = self._running, self._aborts, out.tokens
        made = 0
        for request_id in step.tokens:
            running = running_by_id.get(request_id)
            if running is None or request_id in aborts:
                continue
            made += 1
            running.produced = produced = running.produced + 1
            if produced == running.first:
                self._prefixes.publish(running.hashes, running.request)
                out.cached[request_id] = running.cached_tokens
            stops = produced == running.end_at
            if not running.ahead:
                running.ahead = [FIRST_WORD + x % words for x in _mixed(running.seed, produced)]
            token = running.ahead.pop()
            if stops:
                token = END
            tokens[request_id] = (*tokens[request_id], token) if request_id in tokens else (token,)
            if stops or produced >= running.last or token in running.stops:
                stops = stops or token in running.stops
                out.end(request_id, Finish.STOP if stops else Finish.LENGTH)
                del running_by_id[request_id]
                # It may have hoped for more: frees what was kept for that.
                self._replica.cancel(request_id)
        self.output_tokens_total += made

    def _fail_step(self, step: perf.Step, out: _Collected) -> None:
        """Fails whom the step would have given a token; a step of nothing but prompt fails the oldest without one."""
        self._failed_steps += 1
        hit = (
            step.tokens
            or tuple(r for r, s in self._running.items() if s.produced == len(s.request.generated))[:1]
        )
        for request_id in hit:
            if self._running.pop(request_id, None) is not None:
                self._replica.cancel(request_id)
                out.end(request_id, Finish.FAILED, f"step {self._steps} failed (faults.stepErrorEvery)")


def _resumed_s(due_s: float, now_s: float, stall_s: float) -> float:
    """When the next step begins that was due at `due_s`: then, or now when the process stood still in between."""
    return now_s if now_s - due_s > stall_s else due_s


class _Collected:
    """What one wake-up hands over: the tokens of several steps, once a request."""

    __slots__ = ("cached", "ends", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.cached: dict[str, int] = {}
        self.ends: dict[str, tuple[Finish, str]] = {}

    def end(self, request_id: str, finish: Finish, error: str = "") -> None:
        self.tokens.setdefault(request_id, ())
        self.ends[request_id] = (finish, error)

    def deltas(self) -> list[TokenDelta]:
        cached, ends = self.cached, self.ends
        return [
            TokenDelta(request_id, tokens, cached.get(request_id, 0), *ends.get(request_id, ()))
            if request_id in cached or request_id in ends
            else TokenDelta(request_id, tokens)
            for request_id, tokens in self.tokens.items()
        ]


class _Prefixes:
    """Blocks of prompt whose keys and values are still there: as many as the cache holds, the longest unused go first.

    Simple where a real cache is not: blocks of running requests take nothing away from these.
    """

    def __init__(self, blocks: int, log: PrefixLog) -> None:
        self._blocks = blocks
        self._log = log
        # The prefix that ends with the block, as pickers name it; 0: none of the lengths that they look at.
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def match(self, hashes: tuple[bytes, ...]) -> int:
        """How many blocks from the beginning are known."""
        count = 0
        used = []
        for block in hashes:
            if block not in self._known:
                break
            self._known.move_to_end(block)
            if mark := self._known[block]:
                used.append(mark)
            count += 1
        self._log.stored(used)
        return count

    def publish(self, hashes: tuple[bytes, ...], request: EngineRequest) -> None:
        fresh = not all(block in self._known for block in hashes)
        # The end of a prefix is useless without its beginning, so the end goes first.
        for block in reversed(hashes):
            self._known.setdefault(block, 0)
            self._known.move_to_end(block)
        if fresh:
            marks = token_marks(request.prompt, request.cache_salt)
            for units, mark in zip(MARK_UNITS, marks, strict=False):
                self._known[hashes[units - 1]] = mark
            self._log.stored(marks)
        gone = []
        while len(self._known) > self._blocks:
            gone.append(self._known.popitem(last=False)[1])
        self._log.removed(gone)


def block_hashes(request: EngineRequest) -> tuple[bytes, ...]:
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


# As many numbers at once as lanes of 128 bits: a product of two numbers of 64 bits never leaves its lane.
_AT_ONCE: Final = 32
_ONES: Final = sum(1 << 128 * lane for lane in range(_AT_ONCE))
_LOW: Final = _MASK * _ONES
_STEPS: Final = sum((lane * 0x9E3779B97F4A7C15 & _MASK) << 128 * lane for lane in range(_AT_ONCE))


def _mixed(seed: int, index: int) -> list[int]:
    """`_mix` of this index and those after it, the last one first: a quarter of the time for each."""
    x = ((seed + index * 0x9E3779B97F4A7C15 & _MASK) * _ONES + _STEPS) & _LOW
    x = (((x ^ (x >> 30)) & _LOW) * 0xBF58476D1CE4E5B9) & _LOW
    x = (((x ^ (x >> 27)) & _LOW) * 0x94D049BB133111EB) & _LOW
    x = (x ^ (x >> 31)) & _LOW
    return array("Q", x.to_bytes(16 * _AT_ONCE, "little"))[-2::-2].tolist()


def _end_at(seed: int, mean_output_tokens: int) -> int:
    """Which token is the end-of-text token, geometrically distributed; 0: never."""
    if not mean_output_tokens:
        return 0
    share = (_mix(seed, 0) + 1) / (1 << 64)
    return 1 + int(-mean_output_tokens * math.log(share))
