"""One line for each request that ended, with the reason where it did not end by itself. Never a word of its content.

A busy replica ends hundreds of requests a second: above LINES_PER_S the ordinary ones are left out and counted in the next
line; those that failed have as many lines again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog

from moefleet_runtime.serving.problems import Problem

# 20 kB/s, and less than a hundredth of a core.
LINES_PER_S: Final = 100
# An id is the client's own text.
ID_MAX: Final = 128
MESSAGE_MAX: Final = 300
ORDINARY: Final = frozenset({"stop", "length", "cancelled"})

_log = structlog.get_logger()


class RequestLog:
    def __init__(self, write: Callable[..., Any] | None = None) -> None:
        self._write = write or _log.info
        self._second = -1
        self._lines = 0
        self._left_out = 0

    def ended(
        self,
        now_s: float,
        request_id: str,
        outcome: str,
        problem: Problem | None,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        first_token_s: float | None,
        took_s: float,
    ) -> None:
        """`outcome`: a Finish or the kind of a StreamFault, in lower case; `problem`: what the client was told instead of a finish."""
        fields: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
            "first_token_s": None if first_token_s is None else round(first_token_s, 4),
            "took_s": round(took_s, 4),
        }
        self._line(now_s, request_id, outcome, problem, fields)

    def refused(self, now_s: float, request_id: str, problem: Problem) -> None:
        """It never came to the engine."""
        self._line(now_s, request_id, "refused", problem, {})

    def _line(
        self, now_s: float, request_id: str, outcome: str, problem: Problem | None, fields: dict[str, Any]
    ) -> None:
        if int(now_s) != self._second:
            self._second, self._lines = int(now_s), 0
        if self._lines >= (LINES_PER_S if outcome in ORDINARY else 2 * LINES_PER_S):
            self._left_out += 1
            return
        self._lines += 1
        if problem is not None:
            fields |= {
                "status": problem.code.name,
                "reason": problem.reason,
                "message": problem.message[:MESSAGE_MAX],
            }
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        self._write("request ended", request_id=request_id[:ID_MAX], outcome=outcome, **fields)
