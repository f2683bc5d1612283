"""One request's tokens on the server's side: what has come and was not taken yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from moefleet_runtime.engine.base import Finish, TokenLogprob
from moefleet_runtime.host.batches import Fields

# full: the engine's queue is full; invalid: the engine cannot ever serve it; step: the step that held it failed;
# dead: the engine is gone; cut: this process ends and could not wait; late: the stream lasted too long; deadline: the
# client's own time is over.
FaultKind = Literal["full", "invalid", "step", "dead", "cut", "late", "deadline"]


@dataclass(frozen=True, slots=True)
class StreamFault:
    kind: FaultKind
    message: str
    # Of EngineRequest, where an invalid one is to blame.
    field: str = ""


class TokenStream:
    """Filled by the engine client, taken by one reader. Bounded by max_tokens of the request, so it needs no other limit."""

    __slots__ = (
        "_need",
        "_waiter",
        "cached_tokens",
        "fault",
        "finish",
        "first_at_s",
        "last_at_s",
        "logprobs",
        "pending",
        "produced",
        "request_id",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.pending: list[int] = []
        # One for each of `pending`, or none.
        self.logprobs: list[TokenLogprob] = []
        self.produced = 0
        self.cached_tokens = 0
        self.finish: Finish | None = None
        self.fault: StreamFault | None = None
        self.first_at_s: float | None = None
        self.last_at_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._need = 1

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.fault is not None

    def feed(self, delta: Fields, now_s: float) -> None:
        """`delta`: a TokenDelta, or its fields as they crossed the socket."""
        if self.ended:
            return
        _, tokens, cached_tokens, finish, error, logprobs = delta
        if tokens:
            self.pending.extend(tokens)
            if logprobs:
                self.logprobs.extend(logprobs)
            self.produced += len(tokens)
            self.last_at_s = now_s
            if self.first_at_s is None:
                self.first_at_s = now_s
                self.cached_tokens = cached_tokens
        if finish is not None:
            self._finished(finish, error)
        if finish is not None or len(self.pending) >= self._need:
            self._wake()

    def _finished(self, finish: Finish, error: str) -> None:
        match finish:
            case Finish.FAILED:
                self.fault = StreamFault("step", error or "the engine gave no reason")
            case Finish.REFUSED:
                self.fault = StreamFault("invalid", error or "the engine gave no reason")
            case Finish.LATE:
                self.fault = StreamFault("deadline", error or "the deadline of the request passed")
            case _:
                self.finish = finish

    def end(self, fault: StreamFault) -> None:
        """From outside of the engine: refused, dead, cut or late. The first end counts."""
        if not self.ended:
            self.fault = fault
            self._wake()

    def cancel(self) -> None:
        if not self.ended:
            self.finish = Finish.CANCELLED
            self._wake()

    async def wait(self, need: int = 1) -> None:
        """Until `need` tokens are pending, or the stream has ended."""
        if self.ended or len(self.pending) >= need:
            return
        self._need = need
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def take(self) -> list[int]:
        """What has come; take `logprobs` first."""
        tokens, self.pending = self.pending, []
        return tokens

    def take_logprobs(self) -> list[TokenLogprob]:
        """Of the tokens that the next `take` gives."""
        if not self.logprobs:
            return []
        logprobs, self.logprobs = self.logprobs, []
        return logprobs

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
