"""Python client of a fleet: one answer is one answer, also when the replica that makes it dies.

    async with AsyncClient("gateway.moefleet:8080") as client:
        stream = client.generate("deepseek-v2", "Once upon a time", stopping=Stopping(max_tokens=200), timeout_s=60)
        async for delta in stream:
            print(delta.text, end="")
        print(stream.answer.usage, stream.answer.resumed)

When a stream breaks off, the client asks again with what has come and goes on: no token twice, none lost, and with greedy or
seeded sampling (it draws a seed where none is given) the very tokens of an undisturbed answer. `ResumePolicy` bounds it. What
cannot go on raises MoefleetError with the status, its reason, when to retry, and what had come (`partial`).

Belongs here: what a program of a consumer imports, and nothing of how fleets are run. Needs grpcio, protobuf and
googleapis-common-protos (extra `client`).
"""

from moefleet.client.aio import AsyncClient, AsyncStream
from moefleet.client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MoefleetError,
    NotFound,
    Overloaded,
    Unavailable,
)
from moefleet.client.sync import Client, Stream
from moefleet.client.types import (
    Answer,
    Delta,
    FinishReason,
    Guide,
    Model,
    Options,
    ResumePolicy,
    Sampling,
    Stopping,
    TokenLogprob,
    Usage,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "DeadlineExceeded",
    "Delta",
    "FinishReason",
    "Guide",
    "InvalidRequest",
    "Model",
    "MoefleetError",
    "NotFound",
    "Options",
    "Overloaded",
    "ResumePolicy",
    "Sampling",
    "Stopping",
    "Stream",
    "TokenLogprob",
    "Unavailable",
    "Usage",
]
