"""Files over the network into a folder: ranges in parallel, each gone on with after a cut, each file checked when whole."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from moefleet_weights.disk import Disk
from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import RemoteFile
from moefleet_weights.partial import PartialFile
from moefleet_weights.stores import Interrupted, Store

T = TypeVar("T")

# A file whose checksum is wrong so often in a row is wrong at its source.
CHECKSUM_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard a server is asked, and for how long a silent one is believed in."""

    connections: int = 16
    part_bytes: int = 16 << 20
    # Tries in a row without one byte; the waits between them double up to `longest_wait_s`. In all some two minutes.
    tries: int = 10
    first_wait_s: float = 0.2
    longest_wait_s: float = 30.0


@dataclass(slots=True)
class Counts:
    """What is happening, read by whoever shows it."""

    # Of the files: on the disk, whether checked already or not.
    done_bytes: int = 0
    # Over the network, by this process.
    received_bytes: int = 0
    cuts: int = 0
    wrong_checksums: int = 0
    checking: set[str] = field(default_factory=set)


async def download(
    files: Iterable[RemoteFile], store: Store, folder: Path, *, disk: Disk, limits: Limits, counts: Counts
) -> None:
    """All files are whole, checked and flushed when it returns. Raises WeightsError; what has come stays for the next try."""
    work = _Work(store, disk, limits, counts)
    try:
        for file in files:
            part = PartialFile(file, folder, limits.part_bytes, disk)
            part.open()
            counts.done_bytes += part.done_bytes
            work.add(part)
        await work.run()
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        work.close()


def disk_error(error: OSError, folder: Path) -> WeightsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError("DiskFull", f"{folder}: {error.strerror}; what has come is kept for the next try")
    return WeightsError("CacheUnusable", f"{folder}: {error}")


async def _in_thread(call: Callable[..., T], *arguments: object) -> T:
    """As to_thread, but a cancelled caller waits for the thread: it writes to a handle that is about to be closed."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


class _Work:
    """The queue of parts, and the workers that empty it."""

    def __init__(self, store: Store, disk: Disk, limits: Limits, counts: Counts) -> None:
        self._store, self._disk, self._limits, self._counts = store, disk, limits, counts
        self._files: list[PartialFile] = []
        self._queue: list[tuple[PartialFile, int]] = []
        self._wrong: dict[str, int] = {}
        # Whole files; the two workers with the last two parts must not both check one.
        self._whole: set[str] = set()
        # Parts in the queue or in hand, and files that are being checked.
        self._open = 0
        self._change = asyncio.Condition()

    def add(self, part: PartialFile) -> None:
        self._files.append(part)
        self._enqueue(part)

    def close(self) -> None:
        for part in self._files:
            part.close()

    async def run(self) -> None:
        # Files that were whole already, and empty ones.
        whole = [f for f in self._files if not f.missing() and not f.verified]
        self._open += len(whole)
        tasks = [asyncio.create_task(self._worker()) for _ in range(self._limits.connections)]
        tasks += [asyncio.create_task(self._check(f)) for f in whole]
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in finished:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _enqueue(self, part: PartialFile) -> None:
        missing = part.missing()
        self._open += len(missing)
        # Taken from the end: files in their order, parts in theirs.
        if missing:
            self._whole.discard(part.file.name)
        self._queue[:0] = [(part, i) for i in reversed(missing)]

    async def _worker(self) -> None:
        while True:
            async with self._change:
                await self._change.wait_for(lambda: self._queue or not self._open)
                if not self._queue:
                    return
                part, index = self._queue.pop()
            await self._fetch(part, index)
            if not part.missing() and part.file.name not in self._whole:
                self._whole.add(part.file.name)
                self._open += 1
                await self._check(part)
            await self._closed_one()

    async def _closed_one(self) -> None:
        async with self._change:
            self._open -= 1
            self._change.notify_all()

    async def _fetch(self, part: PartialFile, index: int) -> None:
        at, end = part.span(index)
        tries = 0
        while at < end:
            before = at
            try:
                async for chunk in self._store.read(part.file, at, end):
                    if at + len(chunk) > end:
                        raise Interrupted(f"{part.file.name}: more came than was asked for")
                    await _in_thread(part.write, chunk, at)
                    at += len(chunk)
                    self._counts.done_bytes += len(chunk)
                    self._counts.received_bytes += len(chunk)
                if at < end:
                    raise Interrupted(f"{part.file.name}: wanted {end - before} bytes, {at - before} came")
            except Interrupted as error:
                self._counts.cuts += 1
                tries = 0 if at > before else tries + 1
                if tries >= self._limits.tries:
                    raise WeightsError(
                        "ModelSourceUnreachable", f"{error} ({tries} tries without a byte)"
                    ) from error
                wait_s = self._limits.first_wait_s * 2**tries
                await asyncio.sleep(min(wait_s, self._limits.longest_wait_s))
        await _in_thread(part.finish_part, index)

    async def _check(self, part: PartialFile) -> None:
        """Wrong once may be the way; wrong again and again is the source."""
        name = part.file.name
        self._counts.checking.add(name)
        found = await _in_thread(part.verify)
        self._counts.checking.discard(name)
        if found is not None:
            self._counts.wrong_checksums += 1
            self._wrong[name] = self._wrong.get(name, 0) + 1
            if self._wrong[name] >= CHECKSUM_TRIES:
                part.restart()
                wanted = part.file.checksum
                raise WeightsError(
                    "ChecksumMismatch",
                    f"{name}: wanted {found.algorithm} {wanted.digest if wanted else ''}, found {found.digest}, "
                    f"{CHECKSUM_TRIES} times in a row",
                )
            self._counts.done_bytes -= part.file.bytes
            part.restart()
            self._enqueue(part)
        await self._closed_one()
