"""What the engine made, as it crosses the socket: one entry a request, and nothing in it that Python has to make.

A step of 2 ms with 64 sequences makes 32,000 deltas a second. The server pays for each that it reads (a NamedTuple alone calls
Python at both ends), and it lets tokens wait for each other anyway: so what lies in the outbox is joined before it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from moefleet_runtime.engine.base import TokenDelta

# The fields of a TokenDelta in their order.
Fields = tuple[Any, ...]


def joined(deltas: Iterable[TokenDelta]) -> list[Fields]:
    """Tokens of one request that follow each other become one entry; the order within a request is kept."""
    out: dict[str, Fields] = {}
    for delta in deltas:
        before = out.get(delta.request_id)
        if before is None:
            out[delta.request_id] = tuple(delta)
            continue
        name, tokens, cached_tokens, _, _, logprobs = before
        out[name] = (
            name,
            tokens + delta.tokens,
            # Of the first delta, where it is meaningful.
            cached_tokens,
            delta.finish,
            delta.error,
            logprobs + delta.logprobs,
        )
    return list(out.values())


def deltas_of(batch: Iterable[Fields]) -> Iterator[TokenDelta]:
    return map(TokenDelta._make, batch)
