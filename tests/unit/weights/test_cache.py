"""The cache volume: whole or absent, kept while used, the longest unused goes first."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from moefleet_weights.cache import KEEP_FREE_BYTES, Cache
from moefleet_weights.disk import RealDisk
from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import Listing, RemoteFile
from moefleet_weights.progress import Progress


class QuotaDisk(RealDisk):
    """A volume of `quota` bytes: what lies under `root` is used."""

    def __init__(self, root: Path, quota: int) -> None:
        self.root, self.quota = root, quota

    def free_bytes(self, folder: Path) -> int:
        used = sum(
            p.stat().st_size for p in self.root.rglob("*") if p.is_file() and p.suffix == ".safetensors"
        )
        return self.quota - used


def cache_of(root: Path, quota: int = 1000) -> Cache:
    return Cache(root, QuotaDisk(root, quota), keep_free_bytes=0)


def publish(cache: Cache, name: str, count: int, used_at: float | None = None) -> str:
    listing = Listing(f"s3://bucket/{name}", (RemoteFile("model.safetensors", count),))
    cache.partial(listing.key).mkdir()
    (cache.partial(listing.key) / "model.safetensors").write_bytes(bytes(count))
    (cache.partial(listing.key) / "model.safetensors.parts").write_text("")
    cache.publish(listing.key, listing)
    if used_at is not None:
        held = cache.use(listing.key)
        assert held is not None
        held.close()
        os.utime(cache.root / "locks" / f"{listing.key}.use", (used_at, used_at))
    return listing.key


def there(cache: Cache) -> set[str]:
    return {p.name for p in (cache.root / "snapshots").iterdir()}


def test_a_published_snapshot_has_its_files_and_nothing_else(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    key = publish(cache, "a", 10)
    found = cache.published(key)
    assert found is not None
    assert (found.origin, found.bytes) == ("s3://bucket/a", 10)
    assert sorted(p.name for p in found.folder.iterdir()) == [".moefleet.json", "model.safetensors"]
    assert cache.published("0" * 32) is None


def test_the_longest_unused_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    old, older, new = (
        publish(cache, "a", 300, 200.0),
        publish(cache, "b", 300, 100.0),
        publish(cache, "c", 300, 300.0),
    )
    assert cache.make_room("k", 400) == [f"snapshots/{older}"]
    assert there(cache) == {old, new}
    assert cache.make_room("k", 400) == []
    assert cache.make_room("k", 900) == [f"snapshots/{old}", f"snapshots/{new}"]


def test_what_is_in_use_stays_and_the_error_says_the_numbers(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    used, unused = publish(cache, "a", 400, 1.0), publish(cache, "b", 400, 2.0)
    held = cache.use(used)
    assert held is not None
    with pytest.raises(
        WeightsError, match=r"wanted 800 B and 0 B left free, found 600 B free; 1 snapshots are in use"
    ) as caught:
        cache.make_room("k", 800)
    assert caught.value.reason == "DiskFull"
    assert there(cache) == {used}
    assert unused not in there(cache)
    held.close()
    assert cache.make_room("k", 800) == [f"snapshots/{used}"]


def test_abandoned_fetches_go_before_snapshots_and_live_ones_stay(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    snapshot = publish(cache, "a", 300, 1.0)
    for key in ("dead", "live"):
        cache.partial(key).mkdir()
        (cache.partial(key) / "model.safetensors").write_bytes(bytes(300))
    with cache.try_fetching("live") or pytest.fail("nobody holds it"):
        assert cache.make_room("k", 350) == ["partial/dead"]
        with pytest.raises(WeightsError, match="0 snapshots are in use"):
            cache.make_room("k", 800)
    assert cache.partial("live").is_dir()
    assert snapshot not in there(cache)


def test_one_fetches_and_many_use(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    first = cache.try_fetching("k")
    assert first is not None
    assert cache.try_fetching("k") is None
    assert cache.try_fetching("other") is not None
    first.close()
    assert cache.try_fetching("k") is not None
    key = publish(cache, "a", 1)
    holders = [cache.use(key) for _ in range(3)]
    assert None not in holders
    assert cache.use("gone") is None


def test_a_snapshot_without_its_manifest_is_none_and_is_replaced(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    key = publish(cache, "a", 10)
    (tmp_path / "snapshots" / key / ".moefleet.json").unlink()
    assert cache.published(key) is None
    assert publish(cache, "a", 10) == key
    assert cache.published(key) is not None


def test_pods_remember_one_source_at_the_same_moment(tmp_path: Path) -> None:
    # Found by a component test: two writers took each other's new file away.
    cache = cache_of(tmp_path)
    with ThreadPoolExecutor(8) as pods:
        list(pods.map(lambda _: cache.remember("hf://a/b@main", "abc"), range(400)))
    assert [p.suffix for p in (tmp_path / "refs").iterdir()] == [".json"]


def test_what_a_source_was_is_remembered_while_it_is_there(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    key = publish(cache, "a", 10)
    cache.remember("hf://a/b@main", key)
    found = cache.remembered("hf://a/b@main")
    assert found is not None
    assert found.key == key
    assert cache.remembered("hf://a/b@other") is None
    cache.make_room("k", 1000)
    assert cache.remembered("hf://a/b@main") is None
    name = hashlib.sha256(b"hf://a/b@main").hexdigest()[:32]
    (tmp_path / "refs" / f"{name}.json").write_text('{"key": "../../etc"}')
    assert cache.remembered("hf://a/b@main") is None


def test_those_who_wait_see_how_far_it_is(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    assert cache.told("k") == Progress("waiting")
    cache.partial("k").mkdir()
    cache.tell("k", Progress("fetching", 10, 100, 5.0))
    assert cache.told("k") == Progress("waiting", 10, 100, 5.0)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="wanted a folder that user") as caught:
        cache_of(tmp_path / "file")
    assert caught.value.reason == "CacheUnusable"


def test_a_real_volume_keeps_a_gibibyte_free(tmp_path: Path) -> None:
    disk = RealDisk()
    cache = Cache(tmp_path, disk)
    free = disk.free_bytes(tmp_path)
    assert free > KEEP_FREE_BYTES, "the tests need some room"
    with pytest.raises(WeightsError, match=r"1\.1 GB left free"):
        cache.make_room("k", free + (1 << 30))
