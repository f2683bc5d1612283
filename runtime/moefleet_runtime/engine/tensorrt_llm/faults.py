"""What goes wrong in the engine, sorted by what has to follow: refuse one request, fail it, or end the process.

A failed forward pass fails every request that was in the engine, and the engine goes on; a CUDA error sticks, so that every
later pass fails as well. An engine is never made again in the same process: ending it is the only honest repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moefleet_runtime.engine.base import StartFailed

# Failed steps with no token in between: then it is not the requests.
MAX_FAILED_STEPS_IN_A_ROW: Final = 3
# After these words no later step can succeed.
_STICKY: Final = (
    "cuda error",
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "nccl error",
    "unhandled cuda",
)
_OUT_OF_MEMORY: Final = ("out of memory", "outofmemory", "cudaerrormemoryallocation")
MEMORY_ADVICE: Final = "the same configuration will fail again: lower engine.kvCache.memoryFraction (0.7) or engine.limits.maxBatchTokens"
# Some errors of torch are pages long.
MAX_ERROR_CHARACTERS: Final = 500


def said(error: BaseException) -> str:
    """The error and what caused it, shortened, with advice where there is some."""
    words = f"{type(error).__name__}: {error}"
    if error.__cause__ is not None:
        words += f" (caused by {type(error.__cause__).__name__}: {error.__cause__})"
    words = words[:MAX_ERROR_CHARACTERS]
    return f"{words}; {MEMORY_ADVICE}" if is_out_of_memory(error) else words


def is_out_of_memory(error: BaseException) -> bool:
    return _names(error, _OUT_OF_MEMORY) or isinstance(error, MemoryError)


def is_sticky(error: BaseException) -> bool:
    return _names(error, _STICKY)


def _names(error: BaseException, words: tuple[str, ...]) -> bool:
    texts = [str(error), type(error).__name__]
    if error.__cause__ is not None:
        texts += [str(error.__cause__), type(error.__cause__).__name__]
    joined = " ".join(texts).lower()
    return any(word in joined for word in words)


def start_failure(error: Exception) -> StartFailed:
    """What the constructor of the LLM raised, as a reason that a person can act on."""
    if isinstance(error, StartFailed):
        return error
    words = said(error)
    if is_out_of_memory(error):
        return StartFailed("OutOfMemory", f"the engine does not fit: {words}")
    if isinstance(error, ValueError | TypeError | FileNotFoundError):
        # pydantic.ValidationError is a ValueError.
        return StartFailed("EngineArgumentInvalid", f"the LLM API refused its arguments: {words}")
    # A worker that died while it loaded may have better luck on the next try (a node's memory, a driver).
    return StartFailed("EngineStartFailed", f"the engine did not start: {words}", permanent=False)


@dataclass(slots=True)
class Breaker:
    """Counts failed steps. Requests that were in the engine together fail together: that is one step."""

    in_a_row: int = 0
    total: int = 0
    epoch: int = 0

    def worked(self) -> None:
        self.in_a_row = 0

    def failed(self, submitted_in: int) -> bool:
        """A request failed that was submitted in this epoch. True when that is news and not the rest of a known failure."""
        if submitted_in < self.epoch:
            return False
        self.epoch += 1
        self.total += 1
        self.in_a_row += 1
        return True

    @property
    def open(self) -> bool:
        return self.in_a_row >= MAX_FAILED_STEPS_IN_A_ROW
