"""Parallel ranges into a folder, from a server that cuts, lies and repeats: in memory, so that every order can be had."""

import asyncio
import errno
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet_weights.disk import RealDisk
from moefleet_weights.download import CHECKSUM_TRIES, Counts, Limits, download
from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import Checksum, RemoteFile
from moefleet_weights.stores import Interrupted

FAST = Limits(connections=4, part_bytes=100, tries=5, first_wait_s=0, longest_wait_s=0)


@dataclass
class Scripted:
    """A store whose reads end after as many bytes as `script` says next; negative: and with a wrong byte."""

    files: dict[str, bytes]
    script: list[int] = field(default_factory=list)
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    dead: bool = False

    async def read(self, file: RemoteFile, begin: int, end: int) -> AsyncIterator[memoryview]:
        self.reads.append((file.name, begin, end))
        await asyncio.sleep(0)
        if self.dead:
            raise Interrupted("the server is gone")
        body = self.files[file.name][begin:end]
        step = self.script.pop(0) if self.script else len(body)
        if step < 0:
            body, step = bytes([body[0] ^ 255]) + body[1:], len(body)
        for at in range(0, min(step, len(body)), 17):
            yield memoryview(body)[at : min(at + 17, step)]
        if step < len(body):
            raise Interrupted("cut")


def files_of(contents: dict[str, bytes]) -> list[RemoteFile]:
    return [
        RemoteFile(n, len(b), Checksum("sha256", hashlib.sha256(b).hexdigest())) for n, b in contents.items()
    ]


def some(seed: int, *sizes: int) -> dict[str, bytes]:
    dice = random.Random(seed)
    return {f"f{i}": dice.randbytes(n) for i, n in enumerate(sizes)}


def fetched(store: Scripted, folder: Path, counts: Counts | None = None, limits: Limits = FAST) -> Counts:
    counts = counts or Counts()
    asyncio.run(download(files_of(store.files), store, folder, disk=RealDisk(), limits=limits, counts=counts))
    return counts


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".parts"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=4),
    script=st.lists(st.integers(0, 130), max_size=30).map(lambda s: [n or 1 for n in s]),
    connections=st.integers(1, 6),
    part_bytes=st.integers(1, 300),
)
def test_whatever_is_cut_the_files_are_whole(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    script: list[int],
    connections: int,
    part_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    store = Scripted(some(1, *sizes), script=script)
    limits = Limits(connections, part_bytes, tries=3, first_wait_s=0, longest_wait_s=0)
    counts = fetched(store, folder, limits=limits)
    assert contents(folder) == store.files
    assert counts.done_bytes == sum(sizes) == counts.received_bytes
    # A cut costs no byte twice.
    assert sum(end - begin for _, begin, end in store.reads) >= sum(sizes)


def test_after_a_death_only_missing_parts_are_asked_for(tmp_path: Path) -> None:
    store = Scripted(some(2, 1000))
    store.script = [100] * 4 + [0] * 1000
    with pytest.raises(WeightsError, match="tries without a byte") as caught:
        fetched(store, tmp_path)
    assert caught.value.reason == "ModelSourceUnreachable"
    again = Scripted(store.files)
    counts = Counts()
    fetched(again, tmp_path, counts)
    assert len(again.reads) == 6
    assert (counts.done_bytes, counts.received_bytes) == (1000, 600)
    assert contents(tmp_path) == store.files
    # And what is whole and checked is not read again.
    last = Scripted(store.files)
    fetched(last, tmp_path)
    assert last.reads == []


def test_a_wrong_byte_is_fetched_again_and_a_lasting_one_is_an_error(tmp_path: Path) -> None:
    store = Scripted(some(3, 350, 350), script=[-1])
    counts = fetched(store, tmp_path)
    assert counts.wrong_checksums == 1
    assert contents(tmp_path) == store.files
    lying = Scripted(some(4, 50), script=[-1] * CHECKSUM_TRIES)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(WeightsError, match=r"f0: wanted sha256 \w+, found \w+, 3 times in a row") as caught:
        fetched(lying, other)
    assert caught.value.reason == "ChecksumMismatch"


def test_another_version_of_the_file_starts_over(tmp_path: Path) -> None:
    old, new = Scripted(some(5, 500)), Scripted(some(6, 500))
    old.script = [100, 100, 0, 0, *[0] * 100]
    with pytest.raises(WeightsError):
        fetched(old, tmp_path)
    fetched(new, tmp_path)
    assert contents(tmp_path) == new.files


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[1, null, null, 1]\n3\n", b"7", b"verified\n"])
def test_a_damaged_journal_is_not_believed(tmp_path: Path, damage: bytes) -> None:
    store = Scripted(some(7, 500))
    (tmp_path / "f0").write_bytes(bytes(500))
    (tmp_path / "f0.parts").write_bytes(damage)
    fetched(store, tmp_path)
    assert contents(tmp_path) == store.files


def test_a_journal_line_that_was_cut_off_is_no_part(tmp_path: Path) -> None:
    store = Scripted(some(8, 500))
    store.script = [100, 100, *[0] * 100]
    with pytest.raises(WeightsError):
        fetched(store, tmp_path)
    journal = tmp_path / "f0.parts"
    journal.write_text(journal.read_text() + "4")
    fetched(Scripted(store.files), tmp_path)
    assert contents(tmp_path) == store.files


class FullDisk(RealDisk):
    def __init__(self, holds: int, code: int) -> None:
        self.left, self.code = holds, code

    def write(self, handle: int, data: memoryview, offset: int) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(self.code, "No room")
        super().write(handle, data, offset)


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "DiskFull"), (errno.EDQUOT, "DiskFull"), (errno.EIO, "CacheUnusable")]
)
def test_a_disk_that_fails_on_the_way_is_one_error_and_the_rest_is_kept(
    tmp_path: Path, code: int, reason: str
) -> None:
    store = Scripted(some(9, 1000))
    with pytest.raises(WeightsError) as caught:
        asyncio.run(
            download(
                files_of(store.files), store, tmp_path, disk=FullDisk(450, code), limits=FAST, counts=Counts()
            )
        )
    assert caught.value.reason == reason
    again = Scripted(store.files)
    counts = fetched(again, tmp_path)
    assert counts.received_bytes < 1000
    assert contents(tmp_path) == store.files
