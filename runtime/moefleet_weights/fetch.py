"""A source becomes a folder: found in the cache, waited for while another pod fetches it, or fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Final

from moefleet_weights.cache import Cache, Snapshot
from moefleet_weights.check import Expected, check_shard, check_small_files
from moefleet_weights.disk import Disk
from moefleet_weights.download import Counts, Limits, disk_error, download
from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import Listing, check_shards
from moefleet_weights.progress import Meter, Progress
from moefleet_weights.remotes import is_offline, open_remote
from moefleet_weights.source import HubSource, Remote
from moefleet_weights.stores import Store
from moefleet_weights.tensors import INDEX_NAME, SUFFIX, read_index

# How often those who wait look again, and how often progress is told.
LOOK_S: Final = 0.5
TELL_S: Final = 1.0

Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is wanted and with which means; `run` does it."""

    source: Remote
    cache: Cache
    disk: Disk
    environment: Mapping[str, str]
    expected: Expected = field(default_factory=Expected)
    limits: Limits = field(default_factory=Limits)
    tell: Tell = lambda progress: None
    # For what is no error and yet worth a line in the log.
    note: Callable[[str], None] = lambda message: None

    async def run(self) -> Snapshot:
        """Raises WeightsError. What is returned is published and whole; hold it by Cache.use."""
        name = str(self.source)
        known = self.cache.remembered(name)
        if isinstance(self.source, HubSource) and self.source.pinned and known is not None:
            # A commit never changes: no server has to be asked.
            return known
        if is_offline(self.environment):
            if known is None:
                raise WeightsError(
                    "ModelSourceMissing",
                    f"{name}: HF_HUB_OFFLINE is set, and the cache has no snapshot of it",
                )
            return known
        self.tell(Progress("asking"))
        try:
            listing, store = await open_remote(self.source, self.environment)
        except WeightsError as error:
            if error.reason != "ModelSourceUnreachable" or known is None:
                raise
            self.note(f"{error.message}; serving {known.origin} from the cache")
            return known
        snapshot = self.cache.published(listing.key) or await self._alone(listing, store)
        self.cache.remember(name, snapshot.key)
        return snapshot

    async def _alone(self, listing: Listing, store: Store) -> Snapshot:
        """One process a volume fetches; the others wait for it, and one of them takes over when it dies."""
        while (lock := self.cache.try_fetching(listing.key)) is None:
            self.tell(self.cache.told(listing.key))
            await asyncio.sleep(LOOK_S)
            if (done := self.cache.published(listing.key)) is not None:
                return done
        with lock:
            return self.cache.published(listing.key) or await self._fetch(listing, store)

    async def _fetch(self, listing: Listing, store: Store) -> Snapshot:
        folder = self.cache.partial(listing.key)
        try:
            folder.mkdir(exist_ok=True)
            present = sum(p.stat().st_blocks * 512 for p in folder.iterdir())
        except OSError as error:
            raise disk_error(error, folder) from error
        for victim in self.cache.make_room(listing.key, max(0, listing.bytes - present)):
            self.note(f"removed {victim} from the cache to make room for {listing.origin}")
        counts = Counts()
        telling = asyncio.create_task(self._tell_of(listing, counts))
        try:
            small = [f for f in listing.files if not f.name.endswith(SUFFIX)]
            shards = [f for f in listing.files if f.name.endswith(SUFFIX)]
            await download(small, store, folder, disk=self.disk, limits=self.limits, counts=counts)
            check_small_files(folder, self.expected)
            if any(f.name == INDEX_NAME for f in small):
                check_shards(listing, read_index(folder / INDEX_NAME))
            await download(shards, store, folder, disk=self.disk, limits=self.limits, counts=counts)
            for shard in shards:
                await asyncio.to_thread(check_shard, folder / shard.name)
        except OSError as error:
            raise disk_error(error, folder) from error
        finally:
            # Before the folder is published: it writes there.
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        try:
            snapshot = await asyncio.to_thread(self.cache.publish, listing.key, listing)
        except OSError as error:
            raise disk_error(error, folder) from error
        self.tell(Progress("done", listing.bytes, listing.bytes))
        if counts.cuts or counts.wrong_checksums:
            self.note(
                f"{listing.origin}: {counts.cuts} cuts and {counts.wrong_checksums} wrong checksums on the way"
            )
        return snapshot

    async def _tell_of(self, listing: Listing, counts: Counts) -> None:
        meter = Meter()
        while True:
            speed = meter.bytes_per_s(time.monotonic(), counts.received_bytes)
            waits = counts.done_bytes >= listing.bytes and counts.checking
            progress = Progress("checking" if waits else "fetching", counts.done_bytes, listing.bytes, speed)
            self.cache.tell(listing.key, progress)
            self.tell(progress)
            await asyncio.sleep(TELL_S)


def hold(cache: Cache, snapshot: Snapshot) -> IO[bytes] | None:
    """The lock that keeps a snapshot from eviction; None: it was just evicted, fetch again."""
    return cache.use(snapshot.key)
