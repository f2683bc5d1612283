"""Files that are whole or absent, whatever ends the process: written beside, flushed, renamed, and the folder flushed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_durably(path: Path, content: bytes, *, shared: bool = False) -> None:
    """`shared`: several processes may write this path at once (pods have process ids of their own, so chance tells them apart);
    otherwise a writer that was cut off leaves nothing that the next one does not write over."""
    mark = f".{secrets.token_hex(4)}" if shared else ""
    beside = path.with_name(f"{path.name}{mark}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(beside, path)


def rename_durably(old: Path, new: Path) -> None:
    """`old` must have been flushed. Replaces a file; a folder only where `new` does not exist."""
    old.replace(new)
    sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
