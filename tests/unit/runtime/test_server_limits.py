"""Limits of a replica's server that are not about one field: whole statuses, calls at once, clients that do not read."""

from __future__ import annotations

import asyncio
import importlib
import re
from pathlib import Path

import grpc
import moefleet_runtime.serving
import pytest
from moefleet_runtime.host.stream import StreamFault, TokenStream
from moefleet_runtime.life import Life
from moefleet_runtime.serving.admission import MAX_LAST_WRITE_S, MAX_WRITE_S, Admission, Guest, Places
from moefleet_runtime.serving.problems import (
    MAX_MESSAGE_BYTES,
    MAX_VIOLATION_BYTES,
    Problem,
    Violation,
    invalid,
    shortened,
)

# What a client takes of a status by default; beyond it, it sees RESOURCE_EXHAUSTED or a broken call.
CLIENT_METADATA_BYTES = 8 << 10
TABLE = Path(*moefleet_runtime.serving.__path__) / "README.md"
ROW = re.compile(r"\| ([^|]+) \| (\d+) \| `(\w+)\.([A-Z_]+)` \|")


def documented() -> list[tuple[str, int, str, str]]:
    return [(what, int(value), module, name) for what, value, module, name in ROW.findall(TABLE.read_text())]


@pytest.mark.parametrize(("what", "value", "module", "name"), documented(), ids=str)
def test_the_table_says_what_the_code_says(what: str, value: int, module: str, name: str) -> None:
    package = {"batches": "host.", "guides": "engine.torch."}.get(module, "serving.")
    found = getattr(importlib.import_module(f"moefleet_runtime.{package}{module}"), name)
    assert value == found * (1000 if what.startswith("milliseconds") else 1)


def test_the_table_has_the_limits_that_requests_meet() -> None:
    named = {f"{module}.{name}" for _, _, module, name in documented()}
    for module in ("asking", "checks"):
        limits = vars(importlib.import_module(f"moefleet_runtime.serving.{module}"))
        wanted = {f"{module}.{name}" for name in limits if name.startswith("MAX_")}
        assert {name for name in wanted if name.split(".")[1] not in _ELSEWHERE} <= named


# Imported there, and a row of the module that they are of.
_ELSEWHERE = {"MAX_TOKEN_BYTES"}


def wire_bytes(problem: Problem) -> int:
    """As HTTP/2 counts: percent-encoded sentence, base64 details, 32 bytes a header."""
    sentence = sum(1 if 0x20 <= b <= 0x7E and b != 0x25 else 3 for b in problem.message.encode())
    trailers = sum(
        32 + len(name) + (len(value) * 4 // 3 + 4 if isinstance(value, bytes) else len(value))
        for name, value in problem.trailers()
    )
    return sentence + trailers + 100


@pytest.mark.parametrize(
    "violations",
    [
        [Violation("a", "is wrong")],
        [
            Violation(f"sampling.logit_bias[{i}]", "token ids of this model are 0 to 102399")
            for i in range(1024)
        ],
        [Violation("guide", "x" * 100_000)],
        [Violation("field" * 1000, "\u00e9" * 100_000), Violation("b", "is wrong")],
        [Violation("a", "\U0001f600" * 5000)],
    ],
    ids=["one", "many", "long", "long names", "four bytes each"],
)
def test_a_status_is_never_more_than_a_client_takes(violations: list[Violation]) -> None:
    problem = invalid(*violations)
    assert wire_bytes(problem) < CLIENT_METADATA_BYTES
    assert len(problem.message.encode()) <= MAX_MESSAGE_BYTES
    told = problem.violations
    assert sum(len(f"{v.field}{v.description}".encode()) for v in told) <= MAX_VIOLATION_BYTES
    assert told, "the first is told whatever its length"
    assert told[0].field[:1] == violations[0].field[:1]
    left = len(violations) - len(told)
    assert problem.message.endswith(f"; and {left} more") is (left > 0)


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "..."),
        ("abcdefgh", 7, "abcd..."),
        # No half of a character.
        ("\u00e9\u00e9\u00e9\u00e9", 7, "\u00e9\u00e9..."),
        ("\u00e9\u00e9\u00e9\u00e9", 6, "\u00e9..."),
    ],
)
def test_a_text_is_cut_between_characters(text: str, most: int, short: str) -> None:
    assert shortened(text, most) == short


def test_places_are_taken_and_given_back() -> None:
    places = Places(2, "CountTokens calls")
    with places.one(), places.one():
        with pytest.raises(Problem) as third:
            with places.one():
                raise AssertionError("let in")
        assert (third.value.code, third.value.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS",
        )
        assert "2 CountTokens calls run already" in third.value.message
        assert third.value.retry_after_s
    with pytest.raises(ValueError), places.one():
        raise ValueError
    with places.one(), places.one():
        pass


def ended() -> TokenStream:
    stream = TokenStream("r")
    stream.end(StreamFault("late", "it is late"))
    return stream


@pytest.mark.parametrize(
    ("stream", "writing_s", "stalls"),
    [
        (TokenStream("r"), None, False),
        (TokenStream("r"), MAX_WRITE_S - 1, False),
        (TokenStream("r"), MAX_WRITE_S + 1, True),
        (ended(), None, False),
        (ended(), MAX_LAST_WRITE_S - 1, False),
        (ended(), MAX_LAST_WRITE_S + 1, True),
        # Not submitted yet: nothing is written either.
        (None, None, False),
    ],
)
async def test_who_does_not_read_is_sent_away(
    stream: TokenStream | None, writing_s: float | None, stalls: bool
) -> None:
    admission = Admission(
        pod_uid="u",
        model_name="m",
        queued_requests=1,
        life=lambda: Life(0.0),
        on_change=lambda inside: None,
    )
    now_s = 1000.0

    async def call(guest: Guest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            admission.leave(guest)

    guest = admission.enter("r")
    guest.stream = stream
    guest.writing_since_s = None if writing_s is None else now_s - writing_s
    guest.task = asyncio.ensure_future(call(guest))
    await asyncio.sleep(0)
    assert admission.end_stalled(now_s) == (["r"] if stalls else [])
    await asyncio.wait({guest.task}, timeout=0)
    assert guest.task.done() is stalls
    assert admission.inside == (0 if stalls else 1)
    guest.task.cancel()
