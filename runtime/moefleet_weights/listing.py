"""What a source holds, before a byte of it is fetched: files, sizes, checksums, and an identity for all of it together."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from moefleet_weights.failing import WeightsError
from moefleet_weights.tensors import INDEX_NAME, PICKLES, SUFFIX

Algorithm = Literal["sha256", "git-sha1"]

SUMS_NAME: Final = "SHA256SUMS"
# What engines and tokenizers read. No code (trust in a checkpoint is not trust in its Python) and no pickles.
WANTED_SUFFIXES: Final = (SUFFIX, ".json", ".txt", ".jinja", ".model")
# A checkpoint of 163 shards has some 180 files.
MAX_FILES: Final = 10_000
MAX_FILE_BYTES: Final = 1 << 40
MAX_SUMS_BYTES: Final = 4 << 20
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True)
class Checksum:
    algorithm: Algorithm
    # Lower-case hex.
    digest: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    # A plain name: subfolders hold other formats of the same model.
    name: str
    bytes: int
    checksum: Checksum | None = None
    # The server's mark of this very content; a change while fetching is an error.
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    # For people: the source with its revision resolved.
    origin: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)

    @property
    def key(self) -> str:
        """Names the content: another file, size or mark is another snapshot."""
        text = json.dumps([self.origin, *([f.name, f.bytes, f.etag, _digest(f)] for f in self.files)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin, "files": [asdict(f) for f in self.files]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Listing:
        """Of what to_json wrote."""
        return Listing(
            data["origin"],
            tuple(
                RemoteFile(
                    f["name"], f["bytes"], Checksum(**f["checksum"]) if f["checksum"] else None, f["etag"]
                )
                for f in data["files"]
            ),
        )


def is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        path.name == name
        and not name.startswith(".")
        and path.suffix in WANTED_SUFFIXES
        and name != "conversion.json"
    )


def make_listing(origin: str, files: Iterable[RemoteFile]) -> Listing:
    """Of all files that a source has. Small files first: what is wrong with them is known before the long part."""
    seen = tuple(files)
    chosen = sorted((f for f in seen if is_wanted(f.name)), key=lambda f: (f.name.endswith(SUFFIX), f.name))
    if len(chosen) > MAX_FILES or any(not 0 <= f.bytes <= MAX_FILE_BYTES for f in chosen):
        raise WeightsError(
            "CheckpointUnsupported",
            f"{origin}: wanted at most {MAX_FILES} files of at most {MAX_FILE_BYTES} bytes",
        )
    names = {f.name for f in chosen}
    if "config.json" not in names:
        raise WeightsError(
            "ModelSourceMissing", f"{origin}: wanted a config.json among its files, found none of {len(seen)}"
        )
    if not any(name.endswith(SUFFIX) for name in names):
        pickle = next((f.name for f in seen if PurePosixPath(f.name).suffix in PICKLES), None)
        raise WeightsError(
            "CheckpointUnsupported" if pickle else "ModelSourceMissing",
            f"{origin}: wanted *{SUFFIX}, found "
            + (f"{pickle}: pickles run code when they are read, so they are refused" if pickle else "none"),
        )
    return Listing(origin, tuple(chosen))


def parse_sums(text: str, where: str) -> dict[str, str]:
    """`sha256sum`'s format: name -> digest."""
    out: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        found = _SUM_LINE.fullmatch(line)
        if found is None:
            raise WeightsError(
                "CheckpointUnreadable", f"{where}: wanted lines of sha256sum, found {line!r:.80}"
            )
        out[found[2].removeprefix("./")] = found[1]
    return out


def shard_names(index: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(set(index.values())))


def check_shards(listing: Listing, index: Mapping[str, str]) -> None:
    missing = sorted(set(index.values()) - {f.name for f in listing.files})
    if missing:
        raise WeightsError(
            "ModelSourceMissing",
            f"{listing.origin}: {INDEX_NAME} names {len(missing)} files that are not there, the first: {missing[0]}",
        )


def _digest(file: RemoteFile) -> str | None:
    return file.checksum.digest if file.checksum else None
