"""One line a request: what it says, and what it leaves out when there are too many."""

from __future__ import annotations

from typing import Any

import grpc
from moefleet_runtime.serving.problems import Problem, refusal
from moefleet_runtime.serving.request_log import ID_MAX, LINES_PER_S, MESSAGE_MAX, RequestLog

USED: dict[str, Any] = {
    "prompt_tokens": 17,
    "cached_tokens": 16,
    "output_tokens": 24,
    "first_token_s": 0.01234,
    "took_s": 1.00004,
}


def lines() -> tuple[RequestLog, list[dict[str, Any]]]:
    out: list[dict[str, Any]] = []
    return RequestLog(lambda event, **fields: out.append({"event": event, **fields})), out


def test_a_line_says_how_a_request_ended_and_what_it_used() -> None:
    log, out = lines()
    log.ended(1.0, "mine", "stop", None, **USED)
    assert out == [
        {
            "event": "request ended",
            "request_id": "mine",
            "outcome": "stop",
            **USED,
            "first_token_s": 0.0123,
            "took_s": 1.0,
        }
    ]
    dead = Problem(grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED", "the engine is gone: " + "x" * 1000)
    log.ended(1.0, "y" * 1000, "dead", dead, **{**USED, "first_token_s": None})
    assert (out[1]["status"], out[1]["reason"]) == ("UNAVAILABLE", "ENGINE_DIED")
    assert (len(out[1]["message"]), len(out[1]["request_id"])) == (MESSAGE_MAX, ID_MAX)
    assert out[1]["first_token_s"] is None
    log.refused(1.0, "", refusal("draining", "this replica drains"))
    assert (out[2]["outcome"], out[2]["reason"]) == ("refused", "DRAINING")


def test_too_many_lines_a_second_are_left_out_counted_and_failures_last() -> None:
    log, out = lines()
    for _ in range(LINES_PER_S + 30):
        log.ended(5.2, "a", "length", None, **USED)
    assert len(out) == LINES_PER_S
    for _ in range(LINES_PER_S + 30):
        log.refused(5.9, "b", refusal("full", "full"))
    assert len(out) == 2 * LINES_PER_S
    assert out[LINES_PER_S]["left_out"] == 30
    log.ended(6.0, "a", "length", None, **USED)
    assert out[-1]["left_out"] == 30
    log.ended(6.0, "a", "length", None, **USED)
    assert "left_out" not in out[-1]
