"""How the process ends: exit codes that mean something, and the sentence that Kubernetes keeps of it.

A fault that the same pod cannot outlive is written to the container's termination message as one JSON line
`{"reason": ..., "message": ...}`; the operator shows it as a condition.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

# Kubernetes keeps 4096 bytes of a termination message; the reason and the braces need a few.
MAX_MESSAGE_CHARACTERS = 2000
# The default terminationMessagePath of a container; absent outside of Kubernetes.
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")


class Exit(IntEnum):
    """After sysexits.h where it has a word for it. Kubernetes itself uses 128 + signal."""

    DRAINED = 0  # told to stop, and every stream ran to its end
    STREAMS_CUT = 3  # told to stop, and drainTimeoutS was over before every stream had ended
    CHECKPOINT = 65  # the model's files are there and cannot be served
    MODEL_SOURCE = 66  # the model's files are not there
    ENGINE_UNAVAILABLE = 69  # this image, or this machine, cannot run the engine
    ENGINE_DIED = 70  # the engine host process ended, or stopped making progress
    LISTEN = 71  # an address cannot be listened on
    START_FAILED = 75  # the engine did not start, or its canary failed; another try may help
    CONFIGURATION = 78  # the configuration says something that is not so


_BY_REASON = {
    "ConfigurationInvalid": Exit.CONFIGURATION,
    "EngineArgumentInvalid": Exit.CONFIGURATION,
    "ModelSourceMissing": Exit.MODEL_SOURCE,
    "ModelSourceInvalid": Exit.CONFIGURATION,
    "ModelSourceForbidden": Exit.MODEL_SOURCE,
    "ModelSourceUnreachable": Exit.MODEL_SOURCE,
    "ModelMismatch": Exit.CHECKPOINT,
    "ChecksumMismatch": Exit.CHECKPOINT,
    "CacheUnusable": Exit.MODEL_SOURCE,
    "DiskFull": Exit.MODEL_SOURCE,
    "FetchFailed": Exit.MODEL_SOURCE,
    "CheckpointUnreadable": Exit.CHECKPOINT,
    "CheckpointUnsupported": Exit.CHECKPOINT,
    "TokenizerUnreadable": Exit.CHECKPOINT,
    "EngineUnavailable": Exit.ENGINE_UNAVAILABLE,
    "EngineDied": Exit.ENGINE_DIED,
    "EngineHung": Exit.ENGINE_DIED,
    "StartStalled": Exit.START_FAILED,
    "AddressUnavailable": Exit.LISTEN,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the process cannot go on."""

    reason: str
    message: str

    @property
    def exit(self) -> Exit:
        return _BY_REASON.get(self.reason, Exit.START_FAILED)


class FatalError(Exception):
    """Ends the process in __main__ with this failure."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.failure = Failure(reason, message)


def termination_log(environment: dict[str, str]) -> Path:
    return Path(environment.get("MOEFLEET_TERMINATION_LOG", DEFAULT_TERMINATION_LOG))


def write_termination(path: Path, failure: Failure) -> None:
    """Only where the runtime made the file for us (or a test named one): never creates files in /dev of a desktop."""
    if path == DEFAULT_TERMINATION_LOG and not path.exists():
        return
    line = json.dumps(
        {"reason": failure.reason, "message": failure.message[:MAX_MESSAGE_CHARACTERS]}, ensure_ascii=True
    )
    try:
        path.write_text(line + "\n", encoding="ascii")
    except OSError as error:
        os.write(2, f"cannot write {path}: {error}\n".encode())
