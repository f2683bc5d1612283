"""A started engine, a spy on its API, and everything that it delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from moefleet_runtime.engine.base import EngineInfo, EngineRequest, EngineSettings, Finish, TokenDelta
from moefleet_runtime.engine.tensorrt_llm import engine as adapter
from moefleet_runtime.engine.tensorrt_llm.contract.spy import Seen, spied_connect
from moefleet_runtime.engine.tensorrt_llm.starting import prepare


class BrokenError(AssertionError):
    """The contract does not hold."""


def require(holds: object, message: str) -> None:
    if not holds:
        raise BrokenError(message)


@dataclass(slots=True)
class Answered:
    tokens: list[int] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    cached_tokens: int = 0
    error: str = ""
    deltas: int = 0


class Rig:
    """Also the engine's sink."""

    def __init__(self, settings: EngineSettings, *, patience_s: float) -> None:
        self.settings = settings
        self.patience_s = patience_s
        self.seen = Seen()
        self.answers: dict[str, Answered] = {}
        self.died_of = ""
        self._news = threading.Condition()
        self._numbers = count(1)
        # From the module at this moment: tests plant mistakes in it.
        self.engine: Any = adapter.TensorRTLLMEngine(
            prepare(settings), connect=lambda prepared: spied_connect(prepared, self.seen)
        )
        self.info: EngineInfo = self.engine.start(self)

    # -- Sink

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        with self._news:
            for delta in batch:
                answer = self.answers.setdefault(delta.request_id, Answered())
                if not answer.deltas:
                    answer.cached_tokens = delta.cached_tokens
                answer.deltas += 1
                answer.tokens.extend(delta.tokens)
                if delta.finish is not None:
                    answer.finishes.append(delta.finish)
                    answer.error = delta.error
            self._news.notify_all()

    def died(self, reason: str) -> None:
        with self._news:
            self.died_of = reason
            self._news.notify_all()

    # -- for checks

    def prompt(self, length: int) -> tuple[int, ...]:
        """Token ids that no other check has used in this order."""
        number, usable = next(self._numbers), self.info.vocabulary_size - 3
        return tuple(2 + (number * 7919 + i * (number + 13)) % usable for i in range(length))

    def submit(self, prompt: tuple[int, ...], max_tokens: int, **fields: Any) -> str:
        request_id = f"c{next(self._numbers)}"
        self.engine.submit(EngineRequest(request_id, prompt, max_tokens, **{"ignore_eos": True, **fields}))
        return request_id

    def ask(self, prompt: tuple[int, ...], max_tokens: int, **fields: Any) -> Answered:
        return self.ended(self.submit(prompt, max_tokens, **fields))

    def ended(self, request_id: str) -> Answered:
        self.until(lambda: self.answers.get(request_id, Answered()).finishes, f"{request_id} has not ended")
        return self.answers[request_id]

    def begun(self, request_id: str) -> None:
        self.until(lambda: self.answers.get(request_id, Answered()).tokens, f"{request_id} got no token")

    def until(self, holds: Callable[[], object], otherwise: str) -> None:
        """News come as deltas; numbers that change without one are looked at a few times a second."""
        give_up_s = time.monotonic() + self.patience_s
        with self._news:
            while not holds():
                require(not self.died_of, f"the engine died: {self.died_of}")
                left_s = give_up_s - time.monotonic()
                require(left_s > 0, f"{otherwise} within {self.patience_s:g} s")
                self._news.wait(min(left_s, 0.05))
