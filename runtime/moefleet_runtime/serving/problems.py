"""What goes wrong, as gRPC tells it: a status, a sentence, and google.rpc details that a program can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "moefleet.io"
# When a client may try again. Full: about a request's time in the queue. Draining, starting or dead: about the time
# in which a gateway learns of it.
RETRY_FULL_S: Final = 1.0
RETRY_ELSEWHERE_S: Final = 0.2
# Of one problem's sentence, and of all its violations together. A status travels as metadata, twice and encoded: with these it stays
# below the 8 KiB beyond which clients see a broken call instead of it. Client text is quoted in both, and may be megabytes.
MAX_MESSAGE_BYTES: Final = 1024
MAX_VIOLATION_BYTES: Final = 2048

Refused = Literal["draining", "wrong-pod", "wrong-model", "not-serving", "full"]

REFUSED_HEADER: Final = "x-moefleet-refused"


@dataclass(frozen=True, slots=True)
class Violation:
    field: str
    description: str


# Not frozen: the interpreter and contextlib write tracebacks into exceptions.
@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 - it is what the client is told, not a fault of the server
    code: grpc.StatusCode
    # UPPER_SNAKE_CASE, of google.rpc.ErrorInfo.
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None
    # Quota subject and description.
    quota: tuple[str, str] | None = None
    # Sent as a header of its own: a gateway retries exactly that on another replica.
    refused: Refused | None = None

    def __post_init__(self) -> None:
        self.message = shortened(self.message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)

    def details(self) -> list[Message]:
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        details: list[Message] = [info]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                        for v in self.violations
                    ]
                )
            )
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            details.append(retry)
        if self.quota is not None:
            subject, description = self.quota
            failure = error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)
            details.append(error_details_pb2.QuotaFailure(violations=[failure]))
        return details

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details():
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
        if self.refused is not None:
            trailers.append((REFUSED_HEADER, self.refused))
        return tuple(trailers)


# grpc.aio.ServicerContext; grpc brings no types.
Context: TypeAlias = Any


async def answer_with(
    context: Context, problem: Problem, more: tuple[tuple[str, str | bytes], ...] = ()
) -> NoReturn:
    """Ends the call with the problem. Nothing was sent before: then it is one trailers-only frame."""
    await context.abort(problem.code, problem.message, (*problem.trailers(), *more))
    raise AssertionError("abort returned")


def invalid(*violations: Violation, reason: str = "INVALID_REQUEST") -> Problem:
    told, left_bytes = [], MAX_VIOLATION_BYTES
    for violation in violations:
        one = Violation(shortened(violation.field, 256), shortened(violation.description, MAX_MESSAGE_BYTES))
        left_bytes -= len(f"{one.field}{one.description}".encode())
        if left_bytes < 0:
            break
        told.append(one)
    text = "; ".join(f"{v.field}: {v.description}" for v in told)
    if more := len(violations) - len(told):
        text = f"{shortened(text, MAX_MESSAGE_BYTES - 32)}; and {more} more"
    return Problem(grpc.StatusCode.INVALID_ARGUMENT, reason, text, violations=tuple(told))


def shortened(text: str, most_bytes: int) -> str:
    """At most so many bytes of UTF-8, cut between characters."""
    data = text[: most_bytes + 1].encode("utf-8", "replace")
    if len(data) <= most_bytes:
        return text
    return data[: most_bytes - 3].decode("utf-8", "ignore") + "..."


def refusal(
    refused: Refused, text: str, *, retry_after_s: float = RETRY_ELSEWHERE_S, **metadata: str
) -> Problem:
    """UNAVAILABLE before the first byte: this replica does not take it, another one may."""
    return Problem(
        grpc.StatusCode.UNAVAILABLE,
        refused.upper().replace("-", "_"),
        text,
        metadata={"safeToRetry": "true", "generatedTokens": "0", **metadata},
        retry_after_s=retry_after_s,
        refused=refused,
    )


def full(text: str, limit: int) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        text,
        metadata={"queuedRequests": str(limit)},
        retry_after_s=RETRY_FULL_S,
        quota=("limits.queuedRequests", text),
        refused="full",
    )


def unimplemented(what: str) -> Problem:
    return Problem(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", f"{what} is not served by this replica")
