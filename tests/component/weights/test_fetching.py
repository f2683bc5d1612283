"""Weights from a hub, a bucket and a web server, over real connections that break, into a cache that several pods share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from moefleet_runtime.engine.torch.config import read_model_config
from moefleet_weights.cache import Cache, Snapshot
from moefleet_weights.check import Expected
from moefleet_weights.disk import RealDisk
from moefleet_weights.download import Limits
from moefleet_weights.failing import WeightsError
from moefleet_weights.fetch import Fetch
from moefleet_weights.listing import is_wanted
from moefleet_weights.progress import Progress
from moefleet_weights.source import Remote, parse_source
from moefleet_weights.tensors import INDEX_NAME
from moefleet_weights_rig.checkpoint import sharded
from moefleet_weights_rig.hub import Hub
from moefleet_weights_rig.s3 import CREDENTIALS, Wire, fill
from moefleet_weights_rig.web import Reply, WebServer, certificate, folder_of

FILES = sharded(3)
SHARD = "model-00002-of-00003.safetensors"
FAST = Limits(connections=8, part_bytes=256 << 10, tries=6, first_wait_s=0.01, longest_wait_s=0.05)
REPOSITORY = "someone/tiny"
# A test that waits so long has failed.
PATIENCE_S = 60.0
RUNTIME = Path(__file__).parents[3] / "runtime"


@dataclass
class Site:
    """A place that weights come from, whatever its kind."""

    source: str
    environment: dict[str, str]
    files: dict[str, bytes]
    hub: Hub | None = None
    web: WebServer | None = None
    large: WebServer | None = None
    wire: Wire | None = None
    told: list[Progress] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fetch(
        self, root: Path, *, source: str = "", disk: RealDisk | None = None, **changes: Any
    ) -> Snapshot:
        disk = disk or RealDisk()
        keep = changes.pop("keep_free_bytes", 0)
        parsed = parse_source(source or self.source)
        assert isinstance(parsed, Remote)
        given: dict[str, Any] = {
            "limits": FAST,
            "tell": self.told.append,
            "note": self.notes.append,
            **changes,
        }
        fetch = Fetch(parsed, Cache(root, disk, keep_free_bytes=keep), disk, self.environment, **given)
        return asyncio.run(asyncio.wait_for(fetch.run(), PATIENCE_S))


def check(snapshot: Snapshot, files: dict[str, bytes]) -> None:
    wanted = {n: b for n, b in files.items() if is_wanted(n)}
    found = {p.name: p.read_bytes() for p in snapshot.folder.iterdir() if p.name != ".moefleet.json"}
    assert found.keys() == wanted.keys()
    assert found == wanted


def nothing_published(root: Path) -> bool:
    return not list((root / "snapshots").iterdir())


@pytest.fixture
def hub() -> Iterator[Site]:
    with ExitStack() as stack:
        site = Hub(REPOSITORY)
        large = stack.enter_context(WebServer(site.elsewhere_answer))
        api = stack.enter_context(WebServer(site.answer))
        site.elsewhere = large.url
        # What is not wanted: code, pictures, and pickles beside safetensors.
        site.commit(
            {**FILES, "modeling.py": b"import os", "pytorch_model.bin": b"x" * 20_000, "README.md": b"# Tiny"}
        )
        yield Site(f"hf://{REPOSITORY}", {"HF_ENDPOINT": api.url}, FILES, hub=site, web=api, large=large)


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Site]:
    name = "weights" + sha256(request.node.nodeid.encode()).hexdigest()[:16]
    sums = "".join(f"{sha256(b).hexdigest()}  {n}\n" for n, b in FILES.items())
    files = {**FILES, "SHA256SUMS": sums.encode()}
    fill(s3_port, name, {f"models/tiny/{n}": b for n, b in files.items()})
    fill(s3_port, name, {"models/tiny/original/model.safetensors": b"x", "models/tiny-2/config.json": b"{}"})
    with Wire(s3_port) as wire:
        # What a Secret gives: the client reads it from the process's own environment.
        for variable, value in CREDENTIALS.items():
            monkeypatch.setenv(variable, value)
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": wire.url}
        yield Site(f"s3://{name}/models/tiny", environment, files, wire=wire)


@pytest.fixture
def google(bucket: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The XML API of Google's storage is S3's as far as listing and reading go, so the S3 server answers it (unsigned)."""
    assert bucket.wire
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    environment = {"GOOGLE_BASE_URL": bucket.wire.url}
    return Site("gs" + bucket.source.removeprefix("s3"), environment, bucket.files, wire=bucket.wire)


@pytest.fixture
def web(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    authority, *pair = certificate(tmp_path_factory.mktemp("tls"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with WebServer(folder_of(FILES), tls=(pair[0], pair[1])) as server:
        yield Site(f"{server.url}/model", {}, FILES, web=server)


@pytest.fixture(params=["hub", "bucket", "google", "web"])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(request.param)
    return found


def test_a_checkpoint_comes_whole_once_and_is_then_found(site: Site, tmp_path: Path) -> None:
    snapshot = site.fetch(tmp_path)
    check(snapshot, site.files)
    assert read_model_config(snapshot.folder).layers == 6
    assert site.told[-1].stage == "done"
    assert site.told[-1].total_bytes == snapshot.bytes
    before = len(site.web.requests) if site.web else 0
    assert site.fetch(tmp_path) == snapshot
    if site.web:
        assert not [r for r in site.web.requests[before:] if r.method == "GET" and r.path.endswith(SHARD)]


def test_large_files_come_in_parallel_ranges(web: Site, tmp_path: Path) -> None:
    web.fetch(tmp_path)
    assert web.web is not None
    ranges = [r.range for r in web.web.bodies(SHARD)]
    assert len(ranges) == len(set(ranges)) == -(-len(FILES[SHARD]) // FAST.part_bytes) > 8


def test_cut_connections_are_gone_on_with(hub: Site, bucket: Site, web: Site, tmp_path: Path) -> None:
    assert hub.large
    assert web.web
    assert bucket.wire
    hub.large.faults.cuts[f"/blobs/{sha256(FILES[SHARD]).hexdigest()}"] = 7
    web.web.faults.cuts[f"/model/{SHARD}"] = 7
    for one in (hub, web):
        check(one.fetch(tmp_path / one.source[:3]), one.files)
        assert "7 cuts" in one.notes[-1]
    bucket.wire.after_bytes, bucket.wire.cuts = 200_000, 7
    check(bucket.fetch(tmp_path / "s3"), bucket.files)
    assert "cuts" in bucket.notes[-1]


def test_a_cut_range_is_gone_on_with_from_its_byte(web: Site, tmp_path: Path) -> None:
    assert web.web
    web.web.faults.cuts[f"/model/{SHARD}"] = 1
    web.fetch(tmp_path, limits=Limits(1, 64 << 20, 6, 0.01, 0.05))
    first, second = (r.range for r in web.web.bodies(SHARD))
    assert first == f"bytes=0-{len(FILES[SHARD]) - 1}"
    assert 0 < int(second.removeprefix("bytes=").partition("-")[0]) <= len(FILES[SHARD]) // 2


def test_a_wrong_byte_on_the_way_is_found_and_fetched_again(hub: Site, tmp_path: Path) -> None:
    assert hub.large
    hub.large.faults.wrong[f"/blobs/{sha256(FILES[SHARD]).hexdigest()}"] = 1
    check(hub.fetch(tmp_path), hub.files)
    assert "1 wrong checksums" in hub.notes[-1]


def test_small_files_of_a_hub_are_checked_as_git_names_them(hub: Site, tmp_path: Path) -> None:
    assert hub.web
    assert hub.hub
    commit = hub.hub.refs["main"]
    hub.web.faults.wrong[f"/{REPOSITORY}/resolve/{commit}/config.json"] = 1
    check(hub.fetch(tmp_path), hub.files)
    assert "1 wrong checksums" in hub.notes[-1]


def test_a_checksum_that_never_fits_is_an_error_and_nothing_is_published(
    hub: Site, bucket: Site, s3_port: int, tmp_path: Path
) -> None:
    assert hub.hub
    hub.hub.lies[SHARD] = "0" * 64
    with pytest.raises(WeightsError, match=f"{SHARD}: wanted sha256 0000") as caught:
        hub.fetch(tmp_path / "hub")
    assert caught.value.reason == "ChecksumMismatch"
    assert nothing_published(tmp_path / "hub")
    name = bucket.source.removeprefix("s3://").partition("/")[0]
    fill(s3_port, name, {f"models/tiny/{SHARD}": FILES[SHARD][:-1] + b"!"})
    with pytest.raises(WeightsError, match=f"{SHARD}: wanted sha256") as caught:
        bucket.fetch(tmp_path / "s3")
    assert caught.value.reason == "ChecksumMismatch"
    assert nothing_published(tmp_path / "s3")


def test_a_file_without_checksum_must_still_be_a_whole_tensor_file(web: Site, tmp_path: Path) -> None:
    web.files[SHARD] = FILES[SHARD]
    broken = {**FILES, SHARD: FILES[SHARD][:-100]}
    assert web.web
    web.web.answer = folder_of(broken)
    with pytest.raises(WeightsError, match=SHARD) as caught:
        web.fetch(tmp_path)
    assert caught.value.reason == "CheckpointUnreadable"
    assert nothing_published(tmp_path)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "ModelSourceForbidden"), (403, "ModelSourceForbidden"), (404, "ModelSourceMissing")],
)
def test_a_refusal_is_final_and_says_so(web: Site, tmp_path: Path, status: int, reason: str) -> None:
    assert web.web
    web.web.faults.refusals[f"/model/{SHARD}"] = (status, 1000)
    with pytest.raises(WeightsError, match=SHARD) as caught:
        web.fetch(tmp_path)
    assert caught.value.reason == reason
    assert len([r for r in web.web.requests if r.path.endswith(SHARD)]) <= FAST.connections


@pytest.mark.parametrize("kind", ["bucket", "google"])
def test_a_bucket_that_is_not_there_or_is_empty_is_missing(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    site: Site = request.getfixturevalue(kind)
    scheme, name = site.source.split("/")[0], site.source.split("/")[2]
    for source in (f"{scheme}//nosuchbucket/models/tiny", f"{scheme}//{name}/models/other"):
        with pytest.raises(WeightsError) as caught:
            site.fetch(tmp_path, source=source)
        assert caught.value.reason == "ModelSourceMissing"
        assert source in caught.value.message


def test_a_server_that_is_busy_for_a_moment_is_asked_again(web: Site, tmp_path: Path) -> None:
    assert web.web
    web.web.faults.refusals |= {
        f"/model/{SHARD}": (503, 5),
        "/model/config.json": (429, 3),
        f"/model/{INDEX_NAME}": (500, 1),
    }
    check(web.fetch(tmp_path), web.files)


def test_a_server_that_stays_away_is_an_error_after_some_tries(web: Site, tmp_path: Path) -> None:
    gone = Site("https://localhost:9/model", {}, {})
    with pytest.raises(WeightsError, match="6 tries") as caught:
        gone.fetch(tmp_path)
    assert caught.value.reason == "ModelSourceUnreachable"
    # One that answers questions and gives no bytes is no better.
    assert web.web
    whole, asked = web.web.answer, 0

    def busy(path: str) -> Reply | None:
        nonlocal asked
        asked += path.endswith(SHARD)
        return Reply(503) if path.endswith(SHARD) and asked > 1 else whole(path)

    web.web.answer = busy
    with pytest.raises(WeightsError, match="6 tries without a byte") as caught:
        web.fetch(tmp_path)
    assert caught.value.reason == "ModelSourceUnreachable"
    assert nothing_published(tmp_path)


def test_the_token_goes_to_the_hub_and_never_to_where_it_points(hub: Site, tmp_path: Path) -> None:
    assert hub.web
    assert hub.large
    hub.web.token = "hf_secret"
    with pytest.raises(WeightsError, match=r"check model\.credentials") as caught:
        hub.fetch(tmp_path)
    assert caught.value.reason == "ModelSourceForbidden"
    hub.environment["HF_TOKEN"] = "hf_secret"
    check(hub.fetch(tmp_path), hub.files)
    assert hub.large.requests
    assert {r.authorization for r in hub.large.requests} == {""}


def test_the_official_client_reads_our_hub_as_we_do(hub: Site, tmp_path: Path) -> None:
    """Keeps the stand-in honest: what huggingface_hub gets from it is what we get."""
    from huggingface_hub import snapshot_download

    ours = hub.fetch(tmp_path / "cache")
    theirs = snapshot_download(
        REPOSITORY, endpoint=hub.environment["HF_ENDPOINT"], local_dir=tmp_path / "theirs", token=False
    )
    for path in ours.folder.iterdir():
        if path.name != ".moefleet.json":
            assert (Path(theirs) / path.name).read_bytes() == path.read_bytes()


def test_a_commit_needs_no_hub_once_it_is_here_and_a_branch_follows_it(hub: Site, tmp_path: Path) -> None:
    assert hub.hub
    assert hub.web
    commit = hub.hub.refs["main"]
    pinned = f"{hub.source}@{commit}"
    first = hub.fetch(tmp_path, source=pinned)
    assert first.origin == f"hf://{REPOSITORY}@{commit}"
    before = len(hub.web.requests)
    assert hub.fetch(tmp_path, source=pinned) == first
    assert len(hub.web.requests) == before
    # The branch is at the same commit: nothing is fetched twice.
    assert hub.fetch(tmp_path) == first
    hub.hub.commit({**FILES, "config.json": FILES["config.json"].replace(b"4096", b"2048")})
    moved = hub.fetch(tmp_path)
    assert moved.key != first.key
    assert hub.fetch(tmp_path, source=pinned) == first


def test_offline_what_is_here_serves_and_what_is_not_is_named(hub: Site, tmp_path: Path) -> None:
    assert hub.web
    offline = {**hub.environment, "HF_HUB_OFFLINE": "1"}
    away = Site(hub.source, offline, FILES)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        away.fetch(tmp_path)
    assert caught.value.reason == "ModelSourceMissing"
    snapshot = hub.fetch(tmp_path)
    before = len(hub.web.requests)
    assert away.fetch(tmp_path) == snapshot
    assert len(hub.web.requests) == before


def test_a_hub_that_is_down_does_not_stop_a_pod_whose_weights_are_here(hub: Site, tmp_path: Path) -> None:
    snapshot = hub.fetch(tmp_path)
    down = Site(hub.source, {"HF_ENDPOINT": "http://localhost:9"}, FILES)
    assert down.fetch(tmp_path) == snapshot
    assert "serving hf://" in down.notes[0]


def test_the_source_moved_while_it_was_fetched(web: Site, tmp_path: Path) -> None:
    assert web.web
    site, real = web.web, folder_of(FILES)
    moved = folder_of({**FILES, SHARD: FILES[SHARD] + b"!"})
    seen = 0

    def answer(path: str) -> Any:
        nonlocal seen
        seen += path.endswith(SHARD)
        return moved(path) if seen > 3 else real(path)

    site.answer = answer
    with pytest.raises(WeightsError, match=f"{SHARD} changed while it was fetched") as caught:
        web.fetch(tmp_path)
    assert caught.value.reason == "ChecksumMismatch"
    assert nothing_published(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected", "reason", "says"),
    [
        ({}, Expected("FP8"), "ModelMismatch", "no quantization_config"),
        ({"config.json": b"[" * 100_000}, Expected(), "CheckpointUnreadable", "not JSON"),
        ({"config.json": b"{}"}, Expected(), "CheckpointUnreadable", "architectures"),
        ({"tokenizer.json": None}, Expected(), "ModelMismatch", "needs a tokenizer"),
        (
            {"tokenizer.json": b'{"model": {"vocab": {"a": 5000}}}'},
            Expected(),
            "ModelMismatch",
            "below vocab_size 2048",
        ),
        ({"tokenizer.json": b"\x80\x04pickle"}, Expected(), "CheckpointUnreadable", "not JSON"),
        (
            {INDEX_NAME: b'{"weight_map": {"w": "gone.safetensors"}}'},
            Expected(),
            "ModelSourceMissing",
            "gone.safetensors",
        ),
    ],
)
def test_another_model_than_spec_says_is_refused_before_the_long_part(  # noqa: PLR0917
    web: Site, tmp_path: Path, change: dict[str, bytes | None], expected: Expected, reason: str, says: str
) -> None:
    assert web.web
    web.web.answer = folder_of({n: b for n, b in {**FILES, **change}.items() if b is not None})
    with pytest.raises(WeightsError, match=says) as caught:
        web.fetch(tmp_path, expected=expected)
    assert caught.value.reason == reason
    assert web.web.bodies(SHARD) == []
    assert nothing_published(tmp_path)


class QuotaDisk(RealDisk):
    """A volume that holds `quota` bytes: the file system below is real, its end is not."""

    def __init__(self, root: Path, quota: int, *, honest: bool = True) -> None:
        self.root, self.quota, self.honest = root, quota, honest

    def _used(self) -> int:
        return sum(p.stat().st_blocks * 512 for p in self.root.rglob("*") if p.is_file())

    def free_bytes(self, folder: Path) -> int:
        return max(0, self.quota - self._used()) if self.honest else 1 << 40

    def write(self, handle: int, data: memoryview, offset: int) -> None:
        if self._used() + len(data) > self.quota:
            raise OSError(28, "No space left on device")
        super().write(handle, data, offset)


def test_a_volume_that_is_too_small_is_refused_before_the_first_byte(web: Site, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"wanted 10 MB .* found 5\.0 MB free") as caught:
        web.fetch(tmp_path, disk=QuotaDisk(tmp_path, 5_000_000))
    assert caught.value.reason == "DiskFull"
    assert web.web
    assert web.web.bodies(SHARD) == []


def test_a_disk_that_fills_on_the_way_publishes_nothing_and_goes_on_when_there_is_room(
    web: Site, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="No space left") as caught:
        web.fetch(tmp_path, disk=QuotaDisk(tmp_path, 5_000_000, honest=False))
    assert caught.value.reason == "DiskFull"
    assert nothing_published(tmp_path)
    assert web.web
    before = len(web.web.requests)
    check(web.fetch(tmp_path), web.files)
    again = [r for r in web.web.requests[before:] if r.range]
    assert 0 < len(again) < sum(-(-len(b) // FAST.part_bytes) for b in FILES.values()) * 2 // 3


def test_old_snapshots_make_room_for_a_new_one_but_not_those_that_serve(hub: Site, tmp_path: Path) -> None:
    assert hub.hub
    disk = QuotaDisk(tmp_path, 25_000_000)
    first = hub.fetch(tmp_path, disk=disk)
    hub.hub.commit({**FILES, "config.json": FILES["config.json"].replace(b"4096", b"2048")})
    second = hub.fetch(tmp_path, disk=disk)
    assert first.folder.is_dir()
    hub.hub.commit({**FILES, "config.json": FILES["config.json"].replace(b"4096", b"1024")})
    held = Cache(tmp_path, disk).use(first.key)
    assert held is not None
    third = hub.fetch(tmp_path, disk=disk)
    assert (first.folder.is_dir(), second.folder.is_dir(), third.folder.is_dir()) == (True, False, True)
    assert any("removed" in note and second.key in note for note in hub.notes)
    held.close()


# -- processes, as pods have them


def started(site: Site, root: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **site.environment, "PYTHONPATH": str(RUNTIME)}
    command = [sys.executable, "-m", "moefleet_weights", "--source", site.source, "--cache", str(root)]
    options = ["--part-bytes", str(FAST.part_bytes), "--keep-free-bytes", "0", *more]
    return subprocess.Popen(command + options, env=environment, stdout=subprocess.PIPE, text=True)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return [json.loads(line) for line in out.splitlines()]


def test_pods_that_start_together_make_one_download(web: Site, tmp_path: Path) -> None:
    assert web.web
    web.web.faults.held.add(f"/model/{SHARD}")
    pods = [started(web, tmp_path) for _ in range(3)]
    until(lambda: web.web and len(web.web.bodies(SHARD)) >= 8)
    until(lambda: list((tmp_path / "partial").glob("*/.progress.json")))
    web.web.faults.go.set()
    ends = [lines_of(pod)[-1] for pod in pods]
    assert len({end["snapshot"]["folder"] for end in ends}) == 1
    ranges = [r.range for r in web.web.bodies(SHARD)]
    assert len(ranges) == len(set(ranges))


def test_killed_at_any_moment_the_next_one_goes_on(web: Site, tmp_path: Path) -> None:
    """Kill -9 after 1, 4 and 9 ranges; the fourth finds most of it and fetches the rest."""
    assert web.web
    site = web.web
    for wanted in (1, 4, 9):
        site.faults.go.clear()
        site.faults.held = {f"/model/{SHARD}"} if wanted < 9 else {"/model/model-00003-of-00003.safetensors"}
        before = len(site.requests)
        pod = started(web, tmp_path)
        until(lambda at=before + wanted: len([r for r in site.requests[at:] if r.range]) > 1)  # type: ignore[misc]
        os.kill(pod.pid, signal.SIGKILL)
        assert pod.wait(PATIENCE_S) == -signal.SIGKILL
        if pod.stdout:
            pod.stdout.close()
        assert nothing_published(tmp_path)
        site.faults.go.set()
    site.faults.held = set()
    end = lines_of(started(web, tmp_path))[-1]
    folder = Path(end["snapshot"]["folder"])
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES


def test_when_the_one_that_fetches_dies_one_that_waits_goes_on(web: Site, tmp_path: Path) -> None:
    assert web.web
    web.web.faults.held.add(f"/model/{SHARD}")
    first = started(web, tmp_path)
    until(lambda: web.web and len(web.web.bodies(SHARD)) >= 8)
    second = started(web, tmp_path)
    assert second.stdout
    until(lambda: second.stdout and '"waiting"' in second.stdout.readline())
    first.kill()
    first.communicate(timeout=PATIENCE_S)
    web.web.faults.go.set()
    assert "snapshot" in lines_of(second)[-1]


def test_an_error_is_the_last_line_and_the_exit_status(web: Site, tmp_path: Path) -> None:
    pod = started(web, tmp_path, "--precision", "FP8")
    end = lines_of(pod)[-1]
    assert pod.returncode == 1
    assert end["error"]["reason"] == "ModelMismatch"
    text = [line["progress"]["text"] for line in lines_of(started(web, tmp_path)) if "progress" in line]
    assert text[0] == "asks what there is"
    assert any("% of 10 MB" in t for t in text)
