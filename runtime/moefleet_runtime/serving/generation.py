"""From a checked request to a stream of pieces: what both generating services share.

A piece is what has come since the last one. Tokens have waited for each other in the engine host already (`host.batches`); a client
that takes its messages slowly finds more in each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple, assert_never

import grpc

from moefleet_runtime.engine.base import EngineRequest, Finish, TokenLogprob
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.host.stream import StreamFault
from moefleet_runtime.metrics import ServerMetrics
from moefleet_runtime.serving.admission import Admission, Guest
from moefleet_runtime.serving.outcomes import OutcomeSums
from moefleet_runtime.serving.problems import (
    RETRY_ELSEWHERE_S,
    Problem,
    Violation,
    invalid,
)
from moefleet_runtime.serving.request_log import RequestLog
from moefleet_runtime.serving.stopping import AnswerText

NO_NAMES: Final[Mapping[str, str]] = {}


class Usage(NamedTuple):
    """As Piece no dataclass: one of each is made for every message."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def trailers(self) -> tuple[tuple[str, str], ...]:
        return (
            ("x-usage-prompt-tokens", str(self.prompt_tokens)),
            ("x-usage-completion-tokens", str(self.completion_tokens)),
            ("x-usage-cached-tokens", str(self.cached_tokens)),
        )


class Piece(NamedTuple):
    tokens: list[int]
    usage: Usage
    # Set in the last piece.
    finish: Finish | None = None
    # Where the reader wants text.
    text: str = ""
    # One for each of the tokens, if the request asked for them.
    logprobs: Sequence[TokenLogprob] = ()
    # The stop text that ended the answer.
    stop: str | None = None


class EndedError(Exception):
    """A stream that ended otherwise than by its own finish, with what it had used."""

    def __init__(self, problem: Problem, usage: Usage) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.usage = usage


class Generation:
    def __init__(
        self,
        client: EngineClient,
        admission: Admission,
        metrics: ServerMetrics,
        *,
        stream_duration_s: float,
    ) -> None:
        self._client = client
        self._admission = admission
        self._metrics = metrics
        self._stream_duration_s = stream_duration_s
        self._numbers = count()
        self.outcomes = OutcomeSums()
        self.log = RequestLog()

    def new_request_id(self) -> str:
        """For a client that chose none; and the engine's own ids, which no client can collide with."""
        return f"r{next(self._numbers)}"

    async def run(
        self,
        guest: Guest,
        request: EngineRequest,
        text: AnswerText | None = None,
        names: Mapping[str, str] = NO_NAMES,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces until the last, which has a finish. Raises EndedError. Leaving it early frees the engine.

        `text` says what the tokens spell, and may end the answer before the engine does: the engine is told then.
        `names`: the service's names of fields of EngineRequest, for what the engine refuses."""
        began_s = guest.entered_s
        prompt_tokens, before = len(request.prompt), len(request.generated)
        stream = self._client.submit(request)
        guest.stream = stream
        # The engine and the pipe have it now; a queue of long prompts must not be held twice.
        del request
        last_chance = asyncio.get_running_loop().call_later(
            max(began_s + self._stream_duration_s - time.monotonic(), 0.0),
            stream.end,
            StreamFault(
                "late",
                f"streams of this fleet end after {self._stream_duration_s:g} s (limits.streamDuration)",
            ),
        )
        outcome, problem = "cancelled", None
        used = Usage(prompt_tokens, before, 0)
        try:
            while True:
                await stream.wait()
                if stream.fault is not None:
                    outcome = stream.fault.kind
                    used = Usage(prompt_tokens, before + stream.produced, stream.cached_tokens)
                    problem = self._problem(stream.fault, names, used)
                    raise EndedError(problem, used)
                logprobs, tokens, finish = stream.take_logprobs(), stream.take(), stream.finish
                if text is None:
                    used = Usage(prompt_tokens, before + stream.produced, stream.cached_tokens)
                    piece = Piece(tokens, used, finish, "", logprobs)
                else:
                    said = text.push(tokens, logprobs, last=finish is not None)
                    if said.stop is not None:
                        finish = Finish.STOP
                    # Up to a stop text, not what the engine made since.
                    used = Usage(prompt_tokens, text.used, stream.cached_tokens)
                    piece = Piece(said.tokens, used, finish, said.text, said.logprobs, said.stop)
                if finish is not None:
                    outcome = finish.name.lower()
                if finish is not None or piece.tokens or piece.text:
                    yield piece
                if finish is not None:
                    return
        finally:
            last_chance.cancel()
            self._client.abort(stream)
            first_s = None if stream.first_at_s is None else stream.first_at_s - began_s
            spread_s = stream.last_at_s - (stream.first_at_s or 0.0)
            self._metrics.ended(outcome, first_s, spread_s, stream.produced)
            self.outcomes.add(outcome, first_s, spread_s, stream.produced)
            now_s = time.monotonic()
            self.log.ended(
                now_s,
                guest.request_id,
                outcome,
                problem,
                prompt_tokens=used.prompt_tokens,
                cached_tokens=used.cached_tokens,
                output_tokens=used.completion_tokens,
                first_token_s=first_s,
                took_s=now_s - began_s,
            )

    def _problem(self, fault: StreamFault, names: Mapping[str, str], used: Usage) -> Problem:
        # Not the request's fault: again from the beginning, or on from here with `resume`, is safe elsewhere.
        again = {"safeToRetry": "true", "generatedTokens": str(used.completion_tokens)}
        match fault.kind:
            case "full":
                return self._admission.refuse_full(fault.message)
            case "invalid":
                return invalid(Violation(names.get(fault.field, fault.field) or "request", fault.message))
            case "step":
                return Problem(
                    grpc.StatusCode.INTERNAL,
                    "STEP_FAILED",
                    f"the step with this request failed: {fault.message}",
                    metadata=again,
                )
            case "dead":
                return Problem(
                    grpc.StatusCode.UNAVAILABLE,
                    "ENGINE_DIED",
                    f"the engine is gone: {fault.message}",
                    metadata=again,
                    retry_after_s=RETRY_ELSEWHERE_S,
                )
            case "cut":
                return Problem(
                    grpc.StatusCode.UNAVAILABLE,
                    "STREAM_CUT",
                    fault.message,
                    metadata=again,
                    retry_after_s=RETRY_ELSEWHERE_S,
                )
            case "late":
                return Problem(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "STREAM_DURATION_EXCEEDED",
                    fault.message,
                    metadata={"streamDurationS": f"{self._stream_duration_s:g}"},
                )
            case "deadline":
                return Problem(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", fault.message)
            case _:
                assert_never(fault.kind)
