"""One request's tokens on the server's side: what has come and was not taken yet."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from moefleet_runtime.engine.base import Finish, TokenDelta, TokenLogprob

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

    def feed(self, delta: TokenDelta, now_s: float) -> None:
        if self.ended:
            return
        if delta.tokens:
            self.pending.extend(delta.tokens)
            self.logprobs.extend(delta.logprobs)
            self.produced += len(delta.tokens)
            self.last_at_s = now_s
            if self.first_at_s is None:
                self.first_at_s = now_s
                self.cached_tokens = delta.cached_tokens
        if delta.finish is Finish.FAILED:
            self.fault = StreamFault("step", delta.error or "the engine gave no reason")
        elif delta.finish is Finish.REFUSED:
            self.fault = StreamFault("invalid", delta.error or "the engine gave no reason")
        elif delta.finish is Finish.LATE:
            self.fault = StreamFault("deadline", delta.error or "the deadline of the request passed")
        elif delta.finish is not None:
            self.finish = delta.finish
        if self.ended or len(self.pending) >= self._need:
            self._wake()

    def end(self, fault: StreamFault) -> None:
        """From outside of the engine: refused, dead, cut or late. The first end counts."""
        if not self.ended:
            self.fault = fault
            self._wake()

    def cancel(self) -> None:
        if not self.ended:
            self.finish = Finish.CANCELLED
            self._wake()

    async def wait(self, need: int, until_s: float | None = None) -> None:
        """Until `need` tokens are pending, the stream has ended, or the time (monotonic) has come."""
        if self.ended or len(self.pending) >= need:
            return
        loop = asyncio.get_running_loop()
        self._need = need
        waiter = self._waiter = loop.create_future()
        timer = None
        if until_s is not None:
            timer = loop.call_later(max(until_s - time.monotonic(), 0.0), self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def take(self) -> list[int]:
        """What has come; take `logprobs` first."""
        tokens, self.pending = self.pending, []
        return tokens

    def take_logprobs(self) -> list[TokenLogprob]:
        """Of the tokens that the next `take` gives."""
        logprobs, self.logprobs = self.logprobs, []
        return logprobs

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
