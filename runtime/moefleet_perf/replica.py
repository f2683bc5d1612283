"""One replica with continuous batching in virtual time, request by request.

The reference for what `capacity` claims, for the fidelity of the Simulated engine, and for the replay. The caller owns
the clock: `run_step(now_s)` says what one step that starts now does and when it ends. Scheduling as TensorRT-LLM does it
with chunked prefill and guaranteed no eviction: first come first served; a request is admitted when a slot is free and its
whole context (prompt and longest answer) fits the cache; running sequences decode first, prompts fill the rest of the chunk.
With `preempting` as with its maximum utilisation: only what is there now must fit, and when the next tokens do not, the
youngest sequence leaves, waits at the head of the queue and computes its context again.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from moefleet_perf.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Arrival:
    request_id: str
    at_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was in it, when it ends, and what is there at its end."""

    start_s: float
    end_s: float
    prefill_tokens: int
    sequences: int
    kv_tokens: int
    # Requests that get their next token at end_s; a prompt that is done gives its first one with it.
    tokens: tuple[str, ...]
    # Of these, the ones whose last token it is. They hold no slot and no cache from end_s on.
    finished: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request saw."""

    arrival: Arrival
    first_token_s: float
    last_token_s: float

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; 0 for one token."""
        more = self.arrival.output_tokens - 1
        return (self.last_token_s - self.first_token_s) / more if more > 0 else 0.0


@dataclass(slots=True)
class _Sequence:
    arrival: Arrival
    prefill_left: int
    cached_tokens: int = 0
    produced: int = 0

    @property
    def reserved_tokens(self) -> int:
        return self.arrival.input_tokens + self.arrival.output_tokens

    @property
    def done_tokens(self) -> int:
        """Of the context, what is in the cache."""
        return self.context_tokens - self.prefill_left

    @property
    def context_tokens(self) -> int:
        return self.arrival.input_tokens + self.produced


class VirtualReplica:
    """Mutable, single-threaded, without a clock of its own."""

    def __init__(self, calibration: Calibration, *, preempting: bool = False) -> None:
        self.calibration = calibration
        self.preempting = preempting
        self.preemptions = 0
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: deque[_Sequence] = deque()
        self._decoding: dict[str, _Sequence] = {}
        # What holds a slot, in the order of admission.
        self._admitted: dict[str, _Sequence] = {}
        # Of the cache: whole contexts (or, when preempting, those of now with the first token that a prompt will give).
        self._kv_reserved_tokens = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def active(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        decoding = sum(s.context_tokens for s in self._decoding.values())
        return decoding + sum(s.done_tokens for s in self._prefilling)

    @property
    def outstanding_prefill_tokens(self) -> int:
        return sum(s.prefill_left for s in (*self._waiting, *self._prefilling))

    @property
    def outstanding_decode_tokens(self) -> int:
        running = (*self._waiting, *self._prefilling, *self._decoding.values())
        return sum(s.arrival.output_tokens - s.produced for s in running)

    def submit(self, arrival: Arrival) -> None:
        if arrival.output_tokens < 1 or arrival.input_tokens < 1:
            raise ValueError(
                f"request {arrival.request_id}: wanted at least 1 token in and out, found {arrival}"
            )
        room = self.calibration.limits.kv_max_tokens
        if arrival.input_tokens + arrival.output_tokens > room:
            raise ValueError(
                f"request {arrival.request_id}: {arrival.input_tokens} tokens in and {arrival.output_tokens} out"
                f" never fit a cache of {room} tokens"
            )
        cached = min(arrival.cached_tokens, arrival.input_tokens - 1)
        self._waiting.append(_Sequence(arrival, arrival.input_tokens - cached, cached))

    def cancel(self, request_id: str) -> bool:
        """Frees slot and cache at once; False when the request is not here (any more)."""
        if sequence := self._decoding.pop(request_id, None):
            self._release(sequence, sequence.context_tokens)
            return True
        for queue in (self._prefilling, self._waiting):
            for sequence in queue:
                if sequence.arrival.request_id == request_id:
                    queue.remove(sequence)
                    if queue is self._prefilling:
                        self._release(sequence, sequence.context_tokens + 1)
                    return True
        return False

    def run_step(self, now_s: float) -> Step | None:
        """The step that starts now, None when nothing is to do. Call again at its end, not before."""
        if self.preempting:
            self._make_room()
        self._admit()
        if not (self._prefilling or self._decoding):
            return None
        sequences = len(self._decoding)
        kv_tokens = sum(s.context_tokens for s in self._decoding.values())
        # Decode never waits for prefill; if decode alone fills the chunk, prompts still get one token, or they would starve.
        room = max(self.calibration.limits.max_batch_tokens - sequences, 1 if self._prefilling else 0)
        prefilled, prefill_tokens, prefill_context = self._prefill(room)
        took_s = self.calibration.step.step_time_s(prefill_tokens, sequences, kv_tokens, prefill_context)
        if self.preempting:
            self._kv_reserved_tokens += sequences
        got_token = [*self._decoding.values(), *prefilled]
        for sequence in prefilled:
            self._decoding[sequence.arrival.request_id] = sequence
        finished: list[str] = []
        for sequence in got_token:
            sequence.produced += 1
            if sequence.produced >= sequence.arrival.output_tokens:
                finished.append(sequence.arrival.request_id)
                del self._decoding[sequence.arrival.request_id]
                self._release(sequence, sequence.context_tokens)
        return Step(
            start_s=now_s,
            end_s=now_s + took_s,
            prefill_tokens=prefill_tokens,
            sequences=sequences,
            kv_tokens=kv_tokens,
            tokens=tuple(s.arrival.request_id for s in got_token),
            finished=tuple(finished),
        )

    def _admit(self) -> None:
        limits = self.calibration.limits
        while self._waiting and self.active < limits.max_sequences:
            first = self._waiting[0]
            need = first.context_tokens + 1 if self.preempting else first.reserved_tokens
            soon = len(self._decoding) if self.preempting else 0
            if self._kv_reserved_tokens + soon + need > limits.kv_max_tokens:
                return
            self._waiting.popleft()
            self._kv_reserved_tokens += need
            self._prefilling.append(first)
            self._admitted[first.arrival.request_id] = first

    def _release(self, sequence: _Sequence, held_tokens: int) -> None:
        """`held_tokens` is what it holds when preempting."""
        del self._admitted[sequence.arrival.request_id]
        self._kv_reserved_tokens -= held_tokens if self.preempting else sequence.reserved_tokens

    def _make_room(self) -> None:
        """For one more token of everything that decodes. One sequence alone always fits: `submit` saw to that."""
        while self._kv_reserved_tokens + len(self._decoding) > self.calibration.limits.kv_max_tokens:
            youngest = next(reversed(self._admitted.values()))
            if self._decoding.pop(youngest.arrival.request_id, None) is None:
                self._prefilling.remove(youngest)
                held = youngest.context_tokens + 1
            else:
                held = youngest.context_tokens
            self._release(youngest, held)
            youngest.prefill_left = youngest.context_tokens - youngest.cached_tokens
            self._waiting.appendleft(youngest)
            self.preemptions += 1

    def _prefill(self, room: int) -> tuple[list[_Sequence], int, float]:
        """Prompts that are done, tokens, and the sum over the chunks of tokens times the mean context that they attend to."""
        done: list[_Sequence] = []
        used = 0
        context = 0.0
        while self._prefilling and used < room:
            first = self._prefilling[0]
            chunk = min(first.prefill_left, room - used)
            context += chunk * (first.done_tokens + 0.5 * chunk)
            first.prefill_left -= chunk
            used += chunk
            if first.prefill_left == 0:
                done.append(self._prefilling.popleft())
        return done, used, context


def simulate(
    calibration: Calibration, arrivals: Iterable[Arrival], *, preempting: bool = False
) -> list[Outcome]:
    """Runs arrivals (ascending in time) through one replica to the last token."""
    replica = VirtualReplica(calibration, preempting=preempting)
    waiting = deque(arrivals)
    by_id: dict[str, Arrival] = {}
    first_s: dict[str, float] = {}
    outcomes: list[Outcome] = []
    now_s = 0.0
    while waiting or not replica.idle:
        while waiting and waiting[0].at_s <= now_s:
            arrival = waiting.popleft()
            by_id[arrival.request_id] = arrival
            replica.submit(arrival)
        step = replica.run_step(now_s)
        if step is None:
            now_s = max(now_s, waiting[0].at_s)
            continue
        now_s = step.end_s
        for request_id in step.tokens:
            first_s.setdefault(request_id, now_s)
        outcomes.extend(Outcome(by_id[r], first_s.pop(r), now_s) for r in step.finished)
    return outcomes
