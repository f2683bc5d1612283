"""What a call that failed raises: the gRPC status and the google.rpc details, as attributes.

Generating has no side effects, so a retry never does anything twice; it costs the work again. `safe_to_retry` says whether
the same request may succeed later or elsewhere. What had been delivered is in `partial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from moefleet.client.types import Answer

DETAILS_TRAILER: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Failure:
    """How one call ended; pure, so that plans can be made over it."""

    code: grpc.StatusCode
    message: str = ""
    # UPPER_SNAKE_CASE, of google.rpc.ErrorInfo; empty where nobody of ours could say.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Of google.rpc.RetryInfo.
    retry_after_s: float | None = None
    # Field and description, of google.rpc.BadRequest and QuotaFailure.
    violations: tuple[tuple[str, str], ...] = ()


class MoefleetError(Exception):
    """Root of what a call raises. The subclass follows the status."""

    def __init__(
        self, failure: Failure, why: str = "", partial: Answer | None = None, *, suspect: bool = False
    ) -> None:
        said = f"{failure.code.name} {failure.reason}".rstrip()
        super().__init__(f"{said}: {failure.message}" + (f" ({why})" if why else ""))
        self.code = failure.code
        self.reason = failure.reason
        self.message = failure.message
        self.metadata = failure.metadata
        self.violations = failure.violations
        self.retry_after_s = failure.retry_after_s
        # Why the client did not go on by itself.
        self.why = why
        # Of a stream: everything that was delivered before.
        self.partial = partial
        # Engines failed with this request in them, one after the other.
        self.suspect = suspect

    @property
    def safe_to_retry(self) -> bool:
        return self.code in _WORTH_A_RETRY and not self.suspect


class InvalidRequest(MoefleetError):  # noqa: N818 - what happened, as callers say it
    """INVALID_ARGUMENT: `violations` name each field and what is wrong with it."""


class NotFound(MoefleetError):  # noqa: N818 - what happened, as callers say it
    """No such model."""


class Overloaded(MoefleetError):  # noqa: N818 - what happened, as callers say it
    """RESOURCE_EXHAUSTED: full; `retry_after_s` says when to come back."""


class Unavailable(MoefleetError):  # noqa: N818 - what happened, as callers say it
    """No replica could be reached, or the one that answered is gone."""


class DeadlineExceeded(MoefleetError):  # noqa: N818 - what happened, as callers say it
    """The time of the call, or what a stream may take at all, is over."""


_CLASSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
# UNKNOWN and INTERNAL are also what a connection that breaks in mid-stream looks like.
_WORTH_A_RETRY: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)

# Statuses that gRPC makes up when the other side is gone.
_BARE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})


def error_of(
    failure: Failure, why: str = "", partial: Answer | None = None, *, suspect: bool = False
) -> MoefleetError:
    return _CLASSES.get(failure.code, MoefleetError)(failure, why, partial, suspect=suspect)


def in_the_middle(failure: Failure) -> Failure:
    """Of a call that had brought something. A replica or gateway that dies then can say nothing, and Envoy only resets the
    stream, a bare INTERNAL: what that means is said here. Whoever could speak has a reason."""
    if failure.reason or failure.code not in _BARE:
        return failure
    message = f"the replica of this answer, or the gateway, is gone; asking again is safe ({failure.message or 'it said nothing'})"
    return replace(failure, reason="BROKEN_OFF", message=message)


def failure_of(code: grpc.StatusCode, message: str | None, trailers: Iterable[Any] | None) -> Failure:
    """`trailers`: pairs of name and value. Details that cannot be read are left out: the status still counts."""
    reason, metadata, retry_after_s = "", {}, None
    violations: list[tuple[str, str]] = []
    for detail in _details(trailers):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = _unpacked(detail, error_details_pb2.ErrorInfo())
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = _unpacked(detail, error_details_pb2.RetryInfo()).retry_delay
            retry_after_s = delay.seconds + delay.nanos * 1e-9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = _unpacked(detail, error_details_pb2.BadRequest())
            violations += [(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = _unpacked(detail, error_details_pb2.QuotaFailure())
            violations += [(v.subject, v.description) for v in quota.violations]
    return Failure(code, message or "", reason, metadata, retry_after_s, tuple(violations))


def _details(trailers: Iterable[Any] | None) -> list[Any]:
    for name, value in trailers or ():
        if name == DETAILS_TRAILER:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except Exception:  # DecodeError has two homes, of which each protobuf raises one
                return []
    return []


def _unpacked(detail: Any, message: Any) -> Any:
    detail.Unpack(message)
    return message
