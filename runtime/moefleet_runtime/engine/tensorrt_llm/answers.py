"""From the LLM API's cumulative outputs to new tokens and one finish.

`RequestOutput` yields itself, each time with every token so far; a cancelled request ends without a finish reason. An end that
cannot be explained is a failure, never an answer: this version is known to end requests early without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moefleet_runtime.engine.base import EngineRequest, Finish
from moefleet_runtime.engine.tensorrt_llm.sampling import Stops


@dataclass(slots=True)
class Answer:
    """One accepted request until its last delta. Owned by the loop's thread, but for `request`."""

    request: EngineRequest
    stops: Stops
    max_tokens: int
    # Failures of the engine when it was submitted: those that fail together have the same.
    epoch: int
    # The RequestOutput, once the engine has it.
    result: Any = None
    delivered: int = 0
    last_token: int | None = None
    abort_wanted: bool = False
    ended: bool = False
    cached_tokens: int = field(default=0)

    def new_tokens(self, output: Any) -> tuple[int, ...]:
        """What `output.token_ids` has that was not delivered."""
        tokens = tuple(output.token_ids[self.delivered :])
        if tokens:
            self.delivered += len(tokens)
            self.last_token = tokens[-1]
        return tokens

    def missing_stop(self, output: Any) -> tuple[int, ...]:
        """The token that stopped the answer, where the engine kept it for itself: it was generated, and is delivered."""
        if output.finish_reason != "stop" or not self.delivered or self.last_token in self.stops.all:
            return ()
        reason = output.stop_reason
        token = reason if isinstance(reason, int) else self.stops.end_id
        self.delivered += 1
        self.last_token = token
        return (token,)

    def finish(self, output: Any, *, aborted: bool) -> tuple[Finish, str]:
        """How it ended, and why if it failed. Call when the engine has nothing more to say."""
        reason = output.finish_reason
        match reason:
            case "stop" | "length" if not self.delivered:
                return Finish.FAILED, f"the engine ended the request ({reason}) without a token"
            case "stop":
                return Finish.STOP, ""
            case "length":
                return Finish.LENGTH, ""
            case "cancelled":
                return Finish.CANCELLED, ""
            case None if aborted or self.abort_wanted:
                return Finish.CANCELLED, ""
            case None:
                return (
                    Finish.FAILED,
                    f"the engine ended the request after {self.delivered} tokens without a reason",
                )
            case _:
                return Finish.FAILED, f"the engine ended the request: {reason}"
