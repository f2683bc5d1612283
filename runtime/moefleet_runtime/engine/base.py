"""The one small protocol behind which every engine sits, and the types that cross it.

An engine is made and started in the main thread of the engine host process. From then on it makes its
own threads; `submit`, `abort` and `load` come from other threads than the one that steps and return at
once. Tokens leave through the `Sink`, one call a step, so that a step of a thousand sequences costs one
message to the server process and not a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from moefleet_runtime.engine.arguments import EngineArguments


class Finish(IntEnum):
    """How a request ended. The engine owes exactly one delta with a finish for each accepted request."""

    STOP = 1  # an end-of-text or stop token, which is delivered
    LENGTH = 2  # max_tokens or the context length
    CANCELLED = 3  # abort() or stop()
    FAILED = 4  # the step that held it failed; `TokenDelta.error` says why
    REFUSED = 5  # as RequestInvalid, found out only after submit() had returned; `TokenDelta.error` says why
    LATE = 6  # `EngineRequest.deadline_s` passed, waiting or running


class TokenLogprob(NamedTuple):
    """Natural logarithms of the model's own distribution: before temperature, penalties, bias and guide."""

    logprob: float
    # The most likely tokens, the best first.
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(NamedTuple):
    """New tokens of one request. A NamedTuple, not a dataclass: tens of thousands are made and pickled a second."""

    request_id: str
    tokens: tuple[int, ...]
    # Prompt tokens whose keys and values came from the prefix cache; meaningful in the first delta.
    cached_tokens: int = 0
    finish: Finish | None = None
    error: str = ""
    # One for each of `tokens` where the request asked for them, else none.
    logprobs: tuple[TokenLogprob, ...] = ()


class Sink(Protocol):
    """Where an engine puts what it made. Both may be called from any one thread at a time, and may block
    for a moment when the server process is slow to read: that is the back-pressure, do not buffer around it."""

    def deltas(self, batch: Sequence[TokenDelta]) -> None: ...

    def died(self, reason: str) -> None:
        """The engine cannot go on (its step thread ended). The host process ends, the server answers every stream."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is made from: the checked configuration, with the model source already a local folder."""

    model_name: str
    # Local folder of the checkpoint; None for an engine that needs none (Simulated).
    model_path: Path | None
    # Most tokens of prompt and answer together that the fleet promises; the checkpoint may allow less (then refuse).
    context_length: int
    arguments: EngineArguments
    precision: str = "Auto"
    kv_precision: str = "Auto"
    kv_memory_fraction: float = 0.8
    kv_reuse: bool = True
    # Sequences and tokens of one step.
    max_batch_size: int = 64
    max_batch_tokens: int = 256
    # Requests that may wait in the engine; the next one gets EngineFull. Bounds the time a request can wait.
    max_queued: int = 1000
    tensor_parallel: int = 1
    expert_parallel: int = 1
    attention_data_parallel: bool = False
    # Processors that the pod may use (from its CPU limit): no engine may start more compute threads.
    cpus: int = 1


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine is: constant while the process lives."""

    model_name: str
    context_length: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    # Tokens whose keys and values fit; a request that needs more than this alone is RequestInvalid.
    kv_max_tokens: int
    max_batch_size: int
    max_batch_tokens: int
    engine_version: str
    hidden_size: int = 0
    layers: int = 0
    heads: int = 0
    device: str = "cpu"
    # Of its start, what went into autotuning and capturing graphs. None: the engine does not tell it from loading.
    tune_s: float | None = None
    # Of OPTIONS, those that this engine honours: a request that sets another one is refused before it comes here.
    supports: frozenset[str] = frozenset()


# Fields of EngineRequest that an engine may lack. An answer that silently left one out would be wrong.
OPTIONS: Final = frozenset(
    {
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "min_tokens",
        "logprobs",
        "priority",
        "guide",
    }
)


@dataclass(frozen=True, slots=True)
class Guide:
    """What the text of an answer must be. `text`: the schema or the expression; empty for json_object."""

    form: Literal["json_schema", "regex", "json_object"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    # Made by the server, unique in this process; not the client's request_id.
    request_id: str
    prompt: tuple[int, ...]
    # Of the whole answer, `generated` included.
    max_tokens: int
    # 0 is greedy.
    temperature: float = 0.0
    # 0 keeps all.
    top_k: int = 0
    # (0, 1]
    top_p: float = 1.0
    # Same seed, prompt and model: same tokens, alone or in a batch. None: any seed.
    seed: int | None = None
    # The engine adds its own eos unless `ignore_eos`. A stop token is delivered, then the request ends.
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    # Separates prefix caches: goes into the hash of the first block.
    cache_salt: str = ""
    # time.monotonic() (one clock for all processes of a machine) after which nobody wants the answer any more. Every
    # engine may ignore it: the server ends the stream then in any case.
    deadline_s: float | None = None
    # The answer so far, made by another replica; fewer than max_tokens. It is context and not prompt: what counts tokens
    # of the answer (penalties, min_tokens, the position in a seed's sequence) counts these, and deltas have only new ones.
    generated: tuple[int, ...] = ()
    # From here on OPTIONS; each default means "off". Tokens less likely than this share of the best are dropped: [0, 1].
    min_p: float = 0.0
    # Over prompt and answer: logits are divided by it where positive, else multiplied. (0, 10]
    repetition_penalty: float = 1.0
    # Over the answer alone, subtracted once, and once for each time. [-2, 2]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Added to the logits of these tokens.
    logit_bias: tuple[tuple[int, float], ...] = ()
    # No eos and no stop token before the answer has so many tokens.
    min_tokens: int = 0
    # None: none. Else the chosen token's, and those of so many most likely tokens.
    logprobs: int | None = None
    # Higher is served first.
    priority: int = 0
    guide: Guide | None = None

    def __reduce__(self) -> tuple[type[EngineRequest], tuple[object, ...]]:
        # Each one crosses to the engine host; by itself a frozen dataclass looks up its fields by name at both ends.
        return EngineRequest, _request_values(self)


_request_values: Final = attrgetter(*(f.name for f in fields(EngineRequest)))


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over all steps, in the order of replica.v1.StepSums: what a fit of T = a + b*prefill + c*sequences + d*kv
    needs. `prefill`: prompt tokens computed in the step. `sequences`: rows that decoded one token from a token made
    before. `kv`: cached tokens that those rows read (sum of their context lengths). Steps that failed are left out."""

    count: int = 0
    time_s: float = 0.0
    prefill_tokens: float = 0.0
    sequences: float = 0.0
    kv_tokens: float = 0.0
    time_s_prefill: float = 0.0
    time_s_sequences: float = 0.0
    time_s_kv: float = 0.0
    prefill_prefill: float = 0.0
    prefill_sequences: float = 0.0
    prefill_kv: float = 0.0
    sequences_sequences: float = 0.0
    sequences_kv: float = 0.0
    kv_kv: float = 0.0


class StepSumsAccumulator:
    """Adds up steps; owned by the thread that steps. `freeze` may be called from another thread: it can then miss
    part of the step being added (one step's error in sums over millions), never more."""

    __slots__ = ("_s",)

    def __init__(self) -> None:
        self._s: list[float] = [0.0] * 14

    def add(self, *, time_s: float, prefill: int, sequences: int, kv: int) -> None:
        s = self._s
        s[0] += 1
        s[1] += time_s
        s[2] += prefill
        s[3] += sequences
        s[4] += kv
        s[5] += time_s * prefill
        s[6] += time_s * sequences
        s[7] += time_s * kv
        s[8] += float(prefill) * prefill
        s[9] += float(prefill) * sequences
        s[10] += float(prefill) * kv
        s[11] += float(sequences) * sequences
        s[12] += float(sequences) * kv
        s[13] += float(kv) * kv

    def freeze(self) -> StepSums:
        count, *sums = self._s
        return StepSums(int(count), *sums)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One look at a running engine. Totals count from the start of the engine."""

    # Requests that hold a place in the batch, and those that wait for one.
    active: int = 0
    queued: int = 0
    # Prompt tokens not yet computed (waiting ones too) and answer tokens not yet made (max_tokens less those made).
    outstanding_prefill_tokens: int = 0
    outstanding_decode_tokens: int = 0
    kv_used_tokens: int = 0
    kv_max_tokens: int = 0
    # Of finished prompts, and still there for prompts that begin the same way; not in kv_used_tokens. None: not known.
    kv_reusable_tokens: int | None = None
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    # Steps that raised; each failed the requests in it. A growing number makes the server run its canary again.
    failed_steps_total: int = 0
    preempted_total: int = 0
    # time.monotonic() when the last step ended, or work last arrived at an idle engine. With work in hand and this
    # older than the stall limit, the engine counts as hung.
    progress_at_s: float = 0.0
    steps: StepSums = field(default_factory=StepSums)


class EngineError(Exception):
    """Root of what an engine raises across the protocol."""


class RequestInvalid(EngineError):  # noqa: N818 - what happened, as callers say it
    """This request can never be served here (too long for the cache, token id unknown). The engine is untouched.
    `field`: of EngineRequest, where one is to blame."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class EngineFull(EngineError):  # noqa: N818 - what happened, as callers say it
    """`max_queued` requests wait already. The engine is untouched."""


class EngineDead(EngineError):  # noqa: N818 - what happened, as callers say it
    """The engine has died or was stopped."""


class StartFailed(EngineError):  # noqa: N818 - what happened, as callers say it
    """start() cannot succeed. `permanent`: trying again with the same pod cannot help."""

    def __init__(self, reason: str, message: str, *, permanent: bool = True) -> None:
        super().__init__(reason, message)
        # One CamelCase word, shown as the reason of a condition: ModelSourceMissing, CheckpointUnreadable,
        # CheckpointUnsupported, EngineUnavailable, EngineArgumentInvalid, OutOfMemory.
        self.reason = reason
        self.message = message
        self.permanent = permanent

    def __reduce__(self) -> tuple[object, ...]:
        return (_start_failed, (self.reason, self.message, self.permanent))


def _start_failed(reason: str, message: str, permanent: bool) -> StartFailed:
    return StartFailed(reason, message, permanent=permanent)


class Engine(Protocol):
    """Made by `make_engine(settings)` of its module; see `engine.registry`."""

    def start(self, sink: Sink) -> EngineInfo:
        """Loads and becomes able to step; may take minutes. In the main thread of the host. Raises StartFailed."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Takes the request or raises RequestInvalid, EngineFull or EngineDead. Any thread; never waits for a step."""
        ...

    def abort(self, request_id: str) -> None:
        """Frees the request within one step; its last delta is CANCELLED. Unknown ids are ignored. Any thread."""
        ...

    def load(self) -> EngineLoad:
        """Cheap (called several times a second) and never waits for a step. Any thread."""
        ...

    def stop(self) -> None:
        """Ends every request with CANCELLED and all threads. Idempotent. Returns when they have ended."""
        ...


class TextDecoder(Protocol):
    """Turns one answer's tokens into text, never splitting a character."""

    def push(self, tokens: Sequence[int]) -> str:
        """Text that is complete now; a character that needs more tokens waits for them."""
        ...

    def finish(self) -> str:
        """What is left; incomplete bytes become U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Lives in the server process; made from the model's folder, see `moefleet_runtime.tokenizer`."""

    @property
    def vocabulary_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decoder(self) -> TextDecoder: ...
