"""A replica whose weights are elsewhere: it answers from the first second, says how far it is, and serves when they are here."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet_runtime_rig.process import PATIENCE_S, ReplicaProcess, replica
from moefleet_weights_rig.checkpoint import sharded
from moefleet_weights_rig.hub import Hub
from moefleet_weights_rig.web import WebServer

FILES = sharded(3)
SHARD = "model-00003-of-00003.safetensors"
BLOB = f"/blobs/{sha256(FILES[SHARD]).hexdigest()}"


@pytest.fixture
def hub() -> Iterator[tuple[Hub, WebServer, WebServer]]:
    with ExitStack() as stack:
        site = Hub("someone/tiny")
        large = stack.enter_context(WebServer(site.elsewhere_answer))
        api = stack.enter_context(WebServer(site.answer))
        site.elsewhere = large.url
        site.commit(FILES)
        yield site, api, large


@asynccontextmanager
async def fetching(tmp_path: Path, api: WebServer, *, engine: str = "Torch") -> AsyncIterator[ReplicaProcess]:
    model = {"source": "hf://someone/tiny", "contextLength": 512, "cache": str(tmp_path / "cache")}
    args = {"blocks": 128, "threads": 1} if engine == "Torch" else {}
    async with replica(
        tmp_path, engine=engine, args=args, wait=False, environment={"HF_ENDPOINT": api.url}, model=model
    ) as one:
        yield one


async def mostly_here(one: ReplicaProcess) -> None:
    await one.listening()
    await one.sample_when(lambda s: s.fetched_bytes > 6_000_000)


async def health(one: ReplicaProcess, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(one.channel())
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_the_weights_come_and_then_it_serves(
    tmp_path: Path, hub: tuple[Hub, WebServer, WebServer]
) -> None:
    site, api, large = hub
    large.faults.held.add(BLOB)
    async with fetching(tmp_path, api) as one:
        await one.listening()
        sample = await one.sample_when(lambda s: s.fetched_bytes > 6_000_000)
        assert sample.state == rep.REPLICA_STATE_FETCHING
        assert sample.fetch_bytes == sum(map(len, FILES.values()))
        assert "fetches hf://someone/tiny@main: " in sample.message
        assert " % of 10 MB, " in sample.message
        assert (sample.start_s, sample.fetch_s) == (0, 0)
        # Alive and not ready, as probes and gateways need it.
        assert await health(one, "liveness") == health_pb2.HealthCheckResponse.SERVING
        assert await health(one, "readiness") == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one.inference.Generate(pb.GenerateRequest(model="chat-model", prompt="Emma")).read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        large.faults.go.set()
        await one.serving()
        sample = await one.sample()
        assert 0 < sample.fetch_s < sample.start_s
        assert sample.fetched_bytes == sample.fetch_bytes
        found = await one.event("weights here")
        assert found["origin"] == f"hf://someone/tiny@{site.refs['main']}"
        call = one.inference.Generate(
            pb.GenerateRequest(model="chat-model", prompt="Emma was", stopping=pb.Stopping(max_tokens=4))
        )
        tokens = [len(message.token_ids) async for message in call]
        assert sum(tokens) == 4
        # The engine host must hold no socket of the server: it would keep the port when the server is gone.
        assert listening_inodes(one.pid)
        assert listening_inodes(one.host_pid()) == set()


def runs(pid: int) -> bool:
    """A zombie, and one that ends just now, has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def listening_inodes(pid: int) -> set[str]:
    listening = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        held.add(target.removeprefix("socket:[").removesuffix("]"))
    return held & listening


async def test_a_second_start_finds_them(tmp_path: Path, hub: tuple[Hub, WebServer, WebServer]) -> None:
    _, api, large = hub
    for start in range(2):
        (tmp_path / str(start)).mkdir()
        before = len(large.requests)
        async with fetching(tmp_path, api) as one:
            await one.serving()
            assert bool(len(large.requests) - before) is (start == 0)


async def test_told_to_stop_while_it_fetches_it_ends_at_once_with_its_child(
    tmp_path: Path, hub: tuple[Hub, WebServer, WebServer]
) -> None:
    _, api, large = hub
    large.faults.held.add(BLOB)
    async with fetching(tmp_path, api) as one:
        await mostly_here(one)
        (child,) = one.children()
        one.process.send_signal(signal.SIGTERM)
        assert await one.exit_status() == 0
        assert not runs(child)


async def test_a_killed_server_takes_its_child_along_and_the_next_goes_on(
    tmp_path: Path, hub: tuple[Hub, WebServer, WebServer]
) -> None:
    _, api, large = hub
    large.faults.held.add(BLOB)
    async with fetching(tmp_path, api) as one:
        await mostly_here(one)
        (child,) = one.children()
        one.process.kill()
        await one.exit_status()
        async with asyncio.timeout(PATIENCE_S):
            while runs(child):  # noqa: ASYNC110 - another process's end is no event of this loop
                await asyncio.sleep(0.02)
    large.faults.go.set()
    async with fetching(tmp_path, api) as one:
        await one.serving()


@pytest.mark.parametrize(
    ("fault", "engine", "reason", "exit_status"),
    [
        ("token", "Torch", "ModelSourceForbidden", 66),
        ("gone", "Torch", "ModelSourceMissing", 66),
        ("lie", "Torch", "ChecksumMismatch", 65),
        ("cache", "Torch", "CacheUnusable", 66),
        ("no cache", "Torch", "ConfigurationInvalid", 78),
        ("precision", "TensorRTLLM", "ModelMismatch", 65),
    ],
)
async def test_what_goes_wrong_is_the_last_word_of_the_process(  # noqa: PLR0917
    tmp_path: Path,
    hub: tuple[Hub, WebServer, WebServer],
    fault: str,
    engine: str,
    reason: str,
    exit_status: int,
) -> None:
    site, api, _ = hub
    match fault:
        case "token":
            api.token = "secret"
        case "gone":
            site.refs.clear()
        case "lie":
            site.lies[SHARD] = "0" * 64
        case "cache":
            (tmp_path / "cache").write_text("a file")
    model = {
        "name": "m",
        "source": "hf://someone/tiny",
        "contextLength": 512,
        "cache": str(tmp_path / "cache"),
    }
    if fault == "no cache":
        del model["cache"]
    config = {
        "model": model,
        "engine": {"type": engine, **({"precision": "FP8"} if fault == "precision" else {})},
        "listen": "127.0.0.1:0",
        "control": {"listen": "127.0.0.1:0"},
        "metricsListen": "",
    }
    environment = {"HF_ENDPOINT": api.url, "MOEFLEET_RUNTIME_CONFIG": json.dumps(config)}
    async with replica(tmp_path, wait=False, environment=environment) as one:
        assert await one.exit_status() == exit_status
    said = json.loads((tmp_path / "termination-log").read_text())
    assert said["reason"] == reason


async def test_a_simulated_engine_needs_no_weights(
    tmp_path: Path, hub: tuple[Hub, WebServer, WebServer]
) -> None:
    _, api, _ = hub
    async with fetching(tmp_path, api, engine="Simulated") as one:
        await one.serving()
        assert api.requests == []
