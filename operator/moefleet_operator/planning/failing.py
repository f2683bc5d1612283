"""Why a replica will not become ready by waiting alone, in the words of the API."""

from __future__ import annotations

import json
from collections.abc import Mapping

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .facts import ContainerFacts
from .observed import Replica

# Container states that do not pass by themselves; the kubelet goes on trying, people must look.
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# How the kubelet says that the kernel killed a container at its memory limit; such a process leaves no words of its own.
KILLED_AT_LIMIT = "OOMKilled"
# A process that ended once may have met bad luck; this often is a pattern.
RESTARTS_CRASHING = 2

# What the runtime calls it (its termination message) -> what the API calls it.
RUNTIME_REASONS: Mapping[str, str] = {
    "ConfigurationInvalid": reasons.CONFIG_INVALID,
    "EngineArgumentInvalid": reasons.ENGINE_ARGUMENT_INVALID,
    "ModelSourceMissing": reasons.MODEL_SOURCE_MISSING,
    "ModelSourceInvalid": reasons.MODEL_SOURCE_MISSING,
    "ModelSourceForbidden": reasons.MODEL_SOURCE_FORBIDDEN,
    "ModelSourceUnreachable": reasons.MODEL_SOURCE_UNREACHABLE,
    "ModelMismatch": reasons.MODEL_MISMATCH,
    "ChecksumMismatch": reasons.MODEL_CHECKSUM_MISMATCH,
    "DiskFull": reasons.MODEL_CACHE_FULL,
    "CacheUnusable": reasons.MODEL_CACHE_UNUSABLE,
    "FetchFailed": reasons.MODEL_FETCH_FAILED,
    "CheckpointUnreadable": reasons.MODEL_UNREADABLE,
    "TokenizerUnreadable": reasons.MODEL_UNREADABLE,
    "CheckpointUnsupported": reasons.MODEL_UNSUPPORTED,
    "OutOfMemory": reasons.OUT_OF_MEMORY,
    "EngineUnavailable": reasons.ENGINE_UNAVAILABLE,
    "EngineStartFailed": reasons.ENGINE_START_FAILED,
    "StartStalled": reasons.ENGINE_START_FAILED,
    "EngineDied": reasons.ENGINE_FAILED,
    "EngineHung": reasons.ENGINE_FAILED,
    "CanaryFailed": reasons.CANARY_FAILED,
    "AddressUnavailable": reasons.ADDRESS_UNAVAILABLE,
}


def failing(replica: Replica) -> Problem | None:
    pod, container = replica.pod, replica.pod.container
    if pod.finished:
        reason = (
            reasons.POD_EVICTED if pod.reason in ("Evicted", "NodeShutdown", "Shutdown", "Terminated") else ""
        )
        said = ": ".join(part for part in (pod.reason or pod.phase, pod.message) if part)
        return Problem(reason or reasons.CONTAINER_FAILED, f"{replica.name}: {said}")
    if replica.load is not None and replica.load.state == "FAILED":
        return Problem(
            reasons.ENGINE_FAILED, f"{replica.name}: {replica.load.message or 'the engine failed'}"
        )
    if container is None or container.ready:
        return None
    if container.state == "waiting" and container.reason in IMAGE_REASONS:
        return Problem(
            reasons.IMAGE_PULL_FAILED,
            f"{replica.name}: {': '.join(filter(None, (container.reason, container.message)))}"
            "; check engine.image and its pull secrets",
        )
    if container.state == "waiting" and container.reason in CONFIG_REASONS:
        return Problem(
            reasons.CONTAINER_FAILED, f"{replica.name}: {container.reason}: {container.message}".rstrip(": ")
        )
    if (
        container.state == "terminated"
        or container.reason == "CrashLoopBackOff"
        or container.restarts >= RESTARTS_CRASHING
    ):
        return _ended(replica, container)
    return None


def _ended(replica: Replica, container: ContainerFacts) -> Problem:
    """The last words of the process: one JSON line when it could write one."""
    words = container.last_message or (container.message if container.state == "terminated" else "")
    reason = reasons.CRASH_LOOP if container.restarts >= RESTARTS_CRASHING else reasons.CONTAINER_FAILED
    if reason == reasons.CRASH_LOOP and KILLED_AT_LIMIT in (container.reason, *words.split(maxsplit=1)[:1]):
        reason = reasons.OUT_OF_MEMORY
    try:
        said = json.loads(words)
        reason = RUNTIME_REASONS.get(str(said["reason"]), reason)
        words = str(said["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return Problem(
        reason,
        f"{replica.name}: {_restarted(container.restarts)}: {words or container.reason or 'no last words'}",
    )


def _restarted(times: int) -> str:
    match times:
        case 0:
            return "ended"
        case 1:
            return "restarted once"
        case _:
            return f"restarted {times} times"
