"""Answers other than a replica. A refusal has a gRPC status, a reason for machines and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal[
    "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNIMPLEMENTED"
]

# Names in one message: enough to see a typing error, small enough for a header (Envoy allows 60 KiB of them).
KNOWN_MODELS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Violation:
    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Quota:
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Refusal:
    status: Status
    reason: str  # ErrorInfo.reason, UPPER_SNAKE_CASE
    message: str
    metadata: tuple[tuple[str, str], ...] = ()
    violations: tuple[Violation, ...] = ()
    quota: Quota | None = None
    retry_after_s: float | None = None


def bad_request(field: str, description: str) -> Refusal:
    return Refusal(
        "INVALID_ARGUMENT",
        "BAD_REQUEST",
        f"{field}: {description}",
        violations=(Violation(field, description),),
    )


def unknown_model(asked: str, known: tuple[str, ...]) -> Refusal:
    shown = ", ".join(known[:KNOWN_MODELS_SHOWN]) or "none"
    more = f" and {len(known) - KNOWN_MODELS_SHOWN} more" if len(known) > KNOWN_MODELS_SHOWN else ""
    return Refusal(
        "NOT_FOUND",
        "MODEL_NOT_FOUND",
        f"model {asked[:200]!r} is not served here; known models: {shown}{more}",
        metadata=(("model", asked[:200]),),
    )


def starting(waited_s: float) -> Refusal:
    return Refusal(
        "UNAVAILABLE",
        "GATEWAY_STARTING",
        f"this gateway has just begun, and did not learn within {waited_s:g} s which fleets there are",
        metadata=(("safeToRetry", "true"), ("generatedTokens", "0")),
        retry_after_s=1.0,
    )


def unknown_fleet(asked: str, known: tuple[str, ...]) -> Refusal:
    shown = ", ".join(known[:KNOWN_MODELS_SHOWN]) or "none"
    return Refusal(
        "NOT_FOUND",
        "FLEET_NOT_FOUND",
        f"no fleet {asked[:200]!r}: name it in x-moefleet-fleet as <namespace>/<fleet> or call "
        f"<fleet>.<namespace>; known fleets: {shown}",
        metadata=(("fleet", asked[:200]),),
    )


def queue_full(fleet: str, waiting: int, limit: int, retry_after_s: float) -> Refusal:
    return Refusal(
        "RESOURCE_EXHAUSTED",
        "QUEUE_FULL",
        f"{waiting} requests wait for fleet {fleet}, its limits.queuedRequests is {limit}",
        metadata=(("fleet", fleet),),
        quota=Quota(f"fleet:{fleet}", f"limits.queuedRequests = {limit} requests waiting in one gateway pod"),
        retry_after_s=retry_after_s,
    )


def held_too_long(fleet: str, hold_s: float, retry_after_s: float) -> Refusal:
    return Refusal(
        "RESOURCE_EXHAUSTED",
        "HOLD_EXPIRED",
        f"every replica of fleet {fleet} stayed full for {hold_s:g} s (limits.hold)",
        metadata=(("fleet", fleet),),
        quota=Quota(f"fleet:{fleet}", f"no replica had room for {hold_s:g} s"),
        retry_after_s=retry_after_s,
    )


def waking(fleet: str, start_s: float, hold_s: float, retry_after_s: float) -> Refusal:
    return Refusal(
        "UNAVAILABLE",
        "WAKING",
        f"fleet {fleet} has no serving replica and starts one, which takes {start_s:.0f} s, longer than limits.hold of "
        f"{hold_s:g} s; come again in {retry_after_s:.0f} s",
        metadata=(("fleet", fleet),),
        retry_after_s=retry_after_s,
    )


def no_replica(fleet: str, waited_s: float, retry_after_s: float) -> Refusal:
    waited = f" within {waited_s:g} s (limits.hold)" if waited_s > 0 else ""
    return Refusal(
        "UNAVAILABLE",
        "NO_REPLICA",
        f"fleet {fleet} has no serving replica{waited}",
        metadata=(("fleet", fleet),),
        retry_after_s=retry_after_s,
    )
