"""The disk of the cache, as far as fetching needs it: a seam, so that tests can have a disk that fills up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    def free_bytes(self, folder: Path) -> int:
        """What this user may still write on the folder's volume."""

    def write(self, handle: int, data: memoryview, offset: int) -> None:
        """All of it, or OSError."""


class RealDisk:
    def free_bytes(self, folder: Path) -> int:
        volume = os.statvfs(folder)
        return volume.f_bavail * volume.f_frsize

    def write(self, handle: int, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(handle, data, offset)
            data, offset = data[written:], offset + written
