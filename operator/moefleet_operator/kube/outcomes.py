"""What an answer of the API server means to the core: status codes and reasons become outcomes. Pure."""

from __future__ import annotations

from typing import Any

from moefleet_operator.core.events import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Ok,
    Outcome,
    Transient,
)

from .limits import ERROR_MAX_CHARS, RETRY_AFTER_MAX_S
from .wire import Response

# Admission says 403 for what no right would change; only the text tells it from a missing right or a full quota.
_REFUSED_BY_POLICY = (
    "violates PodSecurity",
    "denied the request",
    "denied request",
    "is forbidden: no PriorityClass",
    "limit to request ratio",
    "usage per Container is",
    "usage per Pod is",
)
# 403 is also the race in which the ServiceAccount of a namespace is not there yet.
_PASSES_BY_ITSELF = ("error looking up service account",)


def outcome_of(response: Response) -> Outcome:
    """AlreadyExists comes without the existing object: the caller reads it."""
    if response.ok:
        return Ok(response.body)
    message = error_text(response)
    match response.status:
        case 404:
            return NotFound(message)
        case 409:
            return (
                AlreadyExists(None) if response.body.get("reason") == "AlreadyExists" else Conflict(message)
            )
        case 400 | 405 | 406 | 413 | 415 | 422:
            return Invalid(message)
        case 403 if any(text in message for text in _REFUSED_BY_POLICY):
            return Invalid(message)
        case 403 if any(text in message for text in _PASSES_BY_ITSELF):
            return Transient(message, response.retry_after_s, maybe_done=False)
        case 429:
            # Turned away before anything was done; whoever doubts it would LIST, and the server is busy.
            return Transient(message, response.retry_after_s, maybe_done=False)
        case 401 | 403:
            return Forbidden(message, namespace_ends=_namespace_ends(response))
        case _:
            # 408, 5xx and whatever a proxy in between invents.
            return Transient(message, response.retry_after_s)


def _namespace_ends(response: Response) -> bool:
    """NamespaceLifecycle refuses creates with 403 and this cause, which no right would change."""
    causes = (response.body.get("details") or {}).get("causes") or ()
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def is_other_uid(outcome: Outcome) -> bool:
    """409 because the name belongs to another object now: the one that we meant is gone."""
    if not isinstance(outcome, Conflict):
        return False
    text = outcome.message.lower()
    return "uid" in text and "precondition" in text


def error_text(response: Response) -> str:
    body = response.body
    reason = str(body.get("reason") or "")
    message = str(body.get("message") or "no message")
    text = f"{response.status}{' ' + reason if reason else ''}: {message}"
    return text if len(text) <= ERROR_MAX_CHARS else text[: ERROR_MAX_CHARS - 1] + "…"


def retry_after_s(header: str | None, body: dict[str, Any]) -> float | None:
    """From the header (whole seconds; the HTTP-date form is not used by API servers) or status.details."""
    for raw in (header, (body.get("details") or {}).get("retryAfterSeconds")):
        try:
            seconds = float(raw) if raw is not None else 0.0
        except (TypeError, ValueError):
            continue
        if seconds > 0:
            return min(seconds, RETRY_AFTER_MAX_S)
    return None
