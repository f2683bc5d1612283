"""The cache volume: snapshots that are whole or absent, found by what they hold, shared by all pods that mount it.

    snapshots/KEY/     a published checkpoint; never changed, only removed as a whole
    partial/KEY/       one that is being fetched; kept over kills
    locks/KEY.fetch    held by the one process that fetches KEY
    locks/KEY.use      held (shared) by each process that serves from KEY; its time is that of the last use
    refs/HASH.json     what a source was last resolved to

Locks are flock: they end with their process however it ends, and hold across the pods of a node (and across nodes where
the volume's file system carries them, as NFS 4 does).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from moefleet_weights.disk import Disk
from moefleet_weights.durable import rename_durably, write_durably
from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import Listing
from moefleet_weights.progress import Progress, size

MANIFEST_NAME: Final = ".moefleet.json"
PROGRESS_NAME: Final = ".progress.json"
# Left free for whatever else lives on the volume; a node evicts pods when its disk is full.
KEEP_FREE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Snapshot:
    key: str
    folder: Path
    origin: str
    bytes: int


class Cache:
    def __init__(self, root: Path, disk: Disk, *, keep_free_bytes: int = KEEP_FREE_BYTES) -> None:
        """Makes the folders. Raises WeightsError(CacheUnusable)."""
        self.root, self._disk, self._keep_free_bytes = root, disk, keep_free_bytes
        try:
            for name in ("snapshots", "partial", "locks", "refs"):
                (root / name).mkdir(parents=True, exist_ok=True)
            probe = root / "locks" / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WeightsError(
                "CacheUnusable",
                f"{root}: wanted a folder that user {os.getuid()} may write: {error.strerror or error}",
            ) from error

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def published(self, key: str) -> Snapshot | None:
        folder = self.root / "snapshots" / key
        try:
            listing = Listing.from_json(json.loads((folder / MANIFEST_NAME).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Snapshot(key, folder, listing.origin, listing.bytes)

    def publish(self, key: str, listing: Listing) -> Snapshot:
        """Everything of the partial folder must be flushed. The rename is the moment: before it nobody sees anything."""
        partial = self.partial(key)
        (partial / PROGRESS_NAME).unlink(missing_ok=True)
        wanted = {f.name for f in listing.files}
        for path in partial.iterdir():
            if path.name not in wanted:
                path.unlink()
        write_durably(partial / MANIFEST_NAME, json.dumps(listing.to_json()).encode())
        folder = self.root / "snapshots" / key
        # Without a manifest it is the rest of a removal that was cut off.
        shutil.rmtree(folder, ignore_errors=True)
        rename_durably(partial, folder)
        return Snapshot(key, folder, listing.origin, listing.bytes)

    # -- what a source was resolved to

    def remember(self, source: str, key: str) -> None:
        # Pods that waited for one download all say what they found.
        write_durably(self._ref(source), json.dumps({"source": source, "key": key}).encode(), shared=True)

    def remembered(self, source: str) -> Snapshot | None:
        """The published snapshot that this source was last resolved to."""
        try:
            key = json.loads(self._ref(source).read_bytes())["key"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self.published(key) if isinstance(key, str) and key.isalnum() else None

    def _ref(self, source: str) -> Path:
        return self.root / "refs" / (hashlib.sha256(source.encode()).hexdigest()[:32] + ".json")

    # -- locks

    def try_fetching(self, key: str) -> IO[bytes] | None:
        """The lock of the one who fetches; None while somebody else holds it. Closing it lets go."""
        return _lock(self.root / "locks" / f"{key}.fetch", fcntl.LOCK_EX)

    def use(self, key: str) -> IO[bytes] | None:
        """Keep it open while serving: no eviction then. None: the snapshot is gone, or goes just now."""
        held = _lock(self.root / "locks" / f"{key}.use", fcntl.LOCK_SH)
        if held is None:
            return None
        if self.published(key) is None:
            held.close()
            return None
        os.utime(held.fileno())
        return held

    # -- what others see of a fetch

    def tell(self, key: str, progress: Progress) -> None:
        text = json.dumps([progress.done_bytes, progress.total_bytes, progress.bytes_per_s])
        with contextlib.suppress(OSError):
            path = self.partial(key) / PROGRESS_NAME
            beside = path.with_suffix(".new")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)

    def told(self, key: str) -> Progress:
        try:
            done, total, speed = json.loads((self.partial(key) / PROGRESS_NAME).read_bytes())
            return Progress("waiting", int(done), int(total), float(speed))
        except (OSError, ValueError, TypeError):
            return Progress("waiting")

    # -- space

    def make_room(self, key: str, wanted_bytes: int) -> list[str]:
        """Removes what nobody uses, the longest unused first, until so much fits. Says what it removed.

        Raises WeightsError(DiskFull), with everything still in its place that did not help.
        """
        wanted = wanted_bytes + self._keep_free_bytes
        removed: list[str] = []
        if self._free() >= wanted:
            return removed
        for victim in self._removable(key):
            if self._remove(victim):
                removed.append(f"{victim.parent.name}/{victim.name}")
            if self._free() >= wanted:
                return removed
        raise WeightsError(
            "DiskFull",
            f"{self.root}: wanted {size(wanted_bytes)} and {size(self._keep_free_bytes)} left free, found "
            f"{size(self._free())} free; {self._in_use()} snapshots are in use",
        )

    def _free(self) -> int:
        return self._disk.free_bytes(self.root)

    def _removable(self, key: str) -> Iterator[Path]:
        """Fetches that nobody goes on with, then snapshots; the oldest use first."""
        for kind, lock in (("partial", "fetch"), ("snapshots", "use")):
            yield from sorted(
                (p for p in (self.root / kind).iterdir() if p.name != key and not p.name.startswith(".")),
                key=lambda p, lock=lock: _time(self.root / "locks" / f"{p.name}.{lock}"),  # type: ignore[misc]
            )

    def _remove(self, victim: Path) -> bool:
        lock = "fetch" if victim.parent.name == "partial" else "use"
        with _locked(self.root / "locks" / f"{victim.name}.{lock}") as held:
            if not held:
                return False
            # Out of sight in one step: a removal that is cut off leaves no half snapshot.
            away = self.root / "partial" / f".removed-{victim.name}"
            shutil.rmtree(away, ignore_errors=True)
            victim.rename(away)
            shutil.rmtree(away, ignore_errors=True)
            return True

    def _in_use(self) -> int:
        count = 0
        for path in (self.root / "snapshots").iterdir():
            with _locked(self.root / "locks" / f"{path.name}.use") as held:
                count += not held
        return count


def _lock(path: Path, kind: int) -> IO[bytes] | None:
    file = path.open("ab")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    file = _lock(path, fcntl.LOCK_EX)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
