"""One request to the API server, one answer, and the Protocol that carries them: what tests replace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from moefleet_operator.core.events import Json

Verb = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
ContentType = Literal[
    "application/json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    # JSON is YAML, and the only apply type that every supported server takes.
    "application/apply-patch+yaml",
    # Written by the API server in its own way before anything else looks at it.
    "application/yaml",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    verb: Verb
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Json | None = None
    content_type: ContentType = "application/json"
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: dict[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class NotConnectedError(Exception):
    """The connection could not be made: the request has certainly not arrived."""


class NoAnswerError(Exception):
    """The request was sent and no whole answer came: it may have been carried out."""


class Transport(Protocol):
    async def send(self, request: Request) -> Response:
        """Any status is an answer. Raises NotConnectedError or NoAnswerError."""
        ...
