"""One kind of error for everything that can be wrong with weights: a reason for machines, a sentence for people."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    # What the user wrote does not name weights.
    "ModelSourceInvalid",
    # The server, or the folder, says that they are not there.
    "ModelSourceMissing",
    # They are there and we may not read them.
    "ModelSourceForbidden",
    # The server cannot be reached, or goes on failing.
    "ModelSourceUnreachable",
    # What came is not what was promised, again and again.
    "ChecksumMismatch",
    "DiskFull",
    # The cache folder itself: not writable, not a folder.
    "CacheUnusable",
    # The files are there and are not a checkpoint that we read.
    "CheckpointUnreadable",
    "CheckpointUnsupported",
    # The checkpoint is one, but not the one that spec describes.
    "ModelMismatch",
]


class WeightsError(Exception):
    """`message` says which object, what was wanted and what was found."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
