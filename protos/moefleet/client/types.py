"""What goes in and what comes out, as plain frozen dataclasses: no caller needs to touch protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, TypedDict


class FinishReason(Enum):
    # A stop token, the end-of-text token, a stop text, or the end of what a guide allows.
    STOP = "stop"
    # max_tokens or the context length.
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Fields, ranges and defaults are those of inference.proto's Sampling; temperature 0 is greedy.

    With a temperature and no seed the client draws one, so that an answer that goes on elsewhere is still the one that began;
    `Answer.seed` says which."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Pairs of token id and what is added to its logit.
    logit_bias: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Stopping:
    """As inference.proto's Stopping. max_tokens None: what the context leaves, at most 4096."""

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Guide:
    """What the answer's text must be. `text`: the schema or the expression; empty for json_object."""

    form: Literal["json_schema", "regex", "json_object"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How hard to try when an answer breaks off. Never beyond the deadline of the call."""

    # How often one answer may break off and go on; 0: not at all.
    most: int = 4
    # Calls in a row that bring nothing new, with growing waits between them.
    attempts: int = 10
    # Calls that may end with the death of an engine: more, and the request itself is taken for the cause.
    deaths: int = 2
    first_wait_s: float = 0.05
    longest_wait_s: float = 2.0


class Options(TypedDict, total=False):
    """Of `generate`; each may be left out."""

    sampling: Sampling
    stopping: Stopping
    guide: Guide | None
    # Log-probabilities of each token and of so many most likely ones beside it.
    logprobs: int | None
    # Higher is served first.
    priority: int
    # Separates prefix caches of tenants.
    cache_salt: str
    # Unique among requests that run; None: the server makes one.
    request_id: str | None
    # Seconds for the whole answer, resumptions included; None: the client's own.
    timeout_s: float | None
    # Sent with each call.
    metadata: Sequence[tuple[str, str]]
    resume: ResumePolicy


class TokenLogprob(NamedTuple):
    """Natural logarithms; `top`: the most likely tokens, the best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the one before."""

    token_ids: tuple[int, ...]
    # A character that needs more tokens waits for them, so this may be empty while token_ids is not.
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the whole answer, whichever replicas made it: one request."""

    prompt_tokens: int
    completion_tokens: int
    # Of prompt_tokens, those that the last replica found in its prefix cache.
    cached_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything so far; complete when `finish_reason` is set."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    usage: Usage | None
    request_id: str
    # How often the answer broke off and went on at another replica.
    resumed: int
    # With which the tokens were drawn; None: greedy.
    seed: int | None
    # The stop text or the token that ended it.
    stopped_by: str | int | None


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    # namespace/name
    fleet: str
    # TensorRTLLM, Torch or Simulated.
    engine: str
    context_length: int
    vocabulary_size: int
