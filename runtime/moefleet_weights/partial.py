"""A file that is being fetched: its bytes, and the journal of the parts that are on the disk.

A part enters the journal after its bytes were flushed, so what the journal says survives a kill and a power cut. The
journal begins with what is fetched; another size, mark, checksum or part size means starting over.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moefleet_weights.disk import Disk
from moefleet_weights.listing import Checksum, RemoteFile

JOURNAL_SUFFIX: Final = ".parts"
VERIFIED: Final = "verified"
HASH_BYTES: Final = 4 << 20


@dataclass(slots=True)
class PartialFile:
    file: RemoteFile
    folder: Path
    part_bytes: int
    disk: Disk
    finished: set[int] = field(default_factory=set)
    verified: bool = False
    _handle: int = -1

    @property
    def path(self) -> Path:
        return self.folder / self.file.name

    @property
    def parts(self) -> int:
        return -(-self.file.bytes // self.part_bytes)

    @property
    def done_bytes(self) -> int:
        if self.verified:
            return self.file.bytes
        return sum(end - begin for begin, end in map(self.span, self.finished))

    def span(self, part: int) -> tuple[int, int]:
        begin = part * self.part_bytes
        return begin, min(begin + self.part_bytes, self.file.bytes)

    def missing(self) -> list[int]:
        return [] if self.verified else [i for i in range(self.parts) if i not in self.finished]

    def open(self) -> None:
        """Takes over what an earlier process left, where it is of the same file."""
        lines = self._read_journal()
        if not lines or lines[0] != self._identity() or not self.path.is_file():
            self.restart()
            return
        self.verified = VERIFIED in lines
        self.finished = {int(n) for n in lines[1:] if n.isdecimal() and int(n) < self.parts}
        self._handle = os.open(self.path, os.O_RDWR)
        if os.fstat(self._handle).st_size != self.file.bytes:
            self.restart()

    def restart(self) -> None:
        self.close()
        self.finished, self.verified = set(), False
        self.path.unlink(missing_ok=True)
        self._journal.write_text(self._identity() + "\n", encoding="utf-8")
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._handle, self.file.bytes)

    def write(self, data: memoryview, offset: int) -> None:
        self.disk.write(self._handle, data, offset)

    def finish_part(self, part: int) -> None:
        os.fdatasync(self._handle)
        self._note(str(part))
        self.finished.add(part)

    def verify(self) -> Checksum | None:
        """The checksum that was found, when it is not the wanted one. None: all is well, and noted."""
        wanted = self.file.checksum
        if wanted is not None:
            found = checksum(self.path, wanted.algorithm)
            if found != wanted:
                return found
        os.fsync(self._handle)
        self._note(VERIFIED)
        self.verified = True
        return None

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove_journal(self) -> None:
        self.close()
        self._journal.unlink(missing_ok=True)

    @property
    def _journal(self) -> Path:
        return self.folder / (self.file.name + JOURNAL_SUFFIX)

    def _identity(self) -> str:
        c = self.file.checksum
        what: list[Any] = [self.file.bytes, self.file.etag, c and [c.algorithm, c.digest], self.part_bytes]
        return json.dumps(what)

    def _read_journal(self) -> list[str]:
        try:
            text = self._journal.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []
        # A last line without its end was cut off.
        return text.split("\n")[:-1]

    def _note(self, line: str) -> None:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(line + "\n")
            journal.flush()
            os.fdatasync(journal.fileno())


def checksum(path: Path, algorithm: str) -> Checksum:
    """`git-sha1`: the name that git gives a blob of this content."""
    if algorithm == "git-sha1":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(HASH_BYTES):
                digest.update(chunk)
        return Checksum("git-sha1", digest.hexdigest())
    with path.open("rb") as file:
        return Checksum("sha256", hashlib.file_digest(file, "sha256").hexdigest())
