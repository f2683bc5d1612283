"""The fixed folders that nodes mount memory over: those that a cluster had to make on the host go with the last cluster.

Removing a folder on which another mount namespace has mounted something takes that mount away, so a folder goes only when no
cluster runs any more. Every cluster holds a shared lock on the record of what was made; whoever gets it alone is the last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .node_documents import PRIVATE_FOLDERS

# Of this boot, like the folders' users; absent while no cluster runs and nothing is left.
RECORD = Path("/run/moefleet-cluster.folders")


@contextlib.contextmanager
def held(folders: Sequence[str] = PRIVATE_FOLDERS, record: Path = RECORD) -> Iterator[None]:
    """Around everything that may make or mount these folders."""
    descriptor = _opened(record, fcntl.LOCK_SH)
    assert descriptor is not None
    try:
        made = [folder for folder in folders if not Path(folder).exists()]
        os.write(descriptor, "".join(f"{folder}\n" for folder in made).encode())
        yield
    finally:
        os.close(descriptor)
        remove_unused(folders, record)


def remove_unused(folders: Sequence[str] = PRIVATE_FOLDERS, record: Path = RECORD) -> None:
    """Removes what ended clusters made and left empty, those that were killed included; nothing while a cluster runs."""
    descriptor = _opened(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return
    try:
        made = set(os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode().split("\n"))
        for folder in folders:
            if folder in made:
                # Somebody who has put something into it since needs it.
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        record.unlink()
    finally:
        os.close(descriptor)


def _opened(record: Path, lock: int) -> int | None:
    """Locked, and still the file of that name; None when another has the lock and we may not wait."""
    while True:
        descriptor = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, lock)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), record.stat()):
                return descriptor
        # Whoever was the last has removed it meanwhile.
        os.close(descriptor)
