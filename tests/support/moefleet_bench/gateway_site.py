"""What stands during a gateway bench: replicas, the real gateway in front of them, and the same Envoy alone beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_cluster.ports import free_port
from moefleet_gateway_rig import MODEL, Rig, envoy_binary
from rich.console import Console

from .envoy_alone import envoy_alone
from .processor import only_child
from .streams import Shape, Window, build, load, replicas, write_bodies

UIDS = tuple(f"replica-{n}" for n in range(4))
# What the chart's limit of 2 processors gives Envoy; the one that stands alone has as many.
ENVOY_WORKERS = "2"
# Prompts of 2-8 KB of text, as chats have.
PROMPTS_BYTES = range(2_000, 8_001, 250)
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the replicas, and the processes on it whose processor time counts."""

    name: str
    targets: tuple[str, ...]
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    console: Console
    streams: Path
    bodies: Path
    direct: Way
    alone: Way
    gateway: Way  # Envoy, then the picker
    replicas_pid: int

    async def measure(self, way: Way, shape: Shape) -> Window:
        window = await load(
            self.streams, way.targets, self.bodies, shape, pids=way.pids, helpers=(self.replicas_pid,)
        )
        self.console.print(describe(way.name, shape, window), highlight=False)
        return window


def describe(name: str, shape: Shape, window: Window) -> str:
    pace = f"every {shape.interval_s * 1000:g} ms" if shape.interval_s else "flat out"
    text = (
        f"{name:8} {shape.streams:3} streams, {shape.messages:3} messages {pace}:"
        f" {window.messages / window.elapsed_s:6.0f} messages/s, {window.ended / window.elapsed_s:5.0f} requests/s,"
        f" first after {window.first_ms(0.5):.2f} / {window.first_ms(0.99):.2f} ms (p50 / p99)"
    )
    if window.cpu_s:
        cores = " + ".join(f"{s / window.elapsed_s:.2f}" for s in window.cpu_s)
        text += f", {window.cpu_s_per_million:.1f} CPU s per million messages ({cores} cores)"
    busy, others = (s / window.elapsed_s for s in (window.busy_s, window.others_s))
    return text + f"; {busy:.2f} cores busy, {others:.2f} with other things"


@contextlib.asynccontextmanager
async def site(console: Console) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="moefleet-bench-") as name:
        folder = Path(name)
        binary = await build(folder)
        bodies = write_bodies(
            folder / "bodies",
            (inf.GenerateRequest(model=MODEL, prompt=("word " * size)[:size]) for size in PROMPTS_BYTES),
        )
        async with replicas(binary, UIDS) as pods, gateway() as rig:
            rig.world.fleet()
            for uid, address in zip(UIDS, pods.addresses, strict=True):
                serve(rig, uid, "default/tiny", address, address)
            await rig.registered(*UIDS)
            async with _alone(rig, folder, pods.addresses) as alone:
                direct = Way("direct", pods.addresses)
                yield Site(console, binary, bodies, direct, alone, way_of(rig), pods.pid)


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[Rig]:
    rig = Rig(MOEFLEET_ENVOY_CONCURRENCY=ENVOY_WORKERS)
    try:
        yield await rig.start()
    finally:
        await rig.close()


def serve(rig: Rig, uid: str, fleet: str, address: str, control: str) -> None:
    rig.world.replicas.append({"uid": uid, "fleet": fleet, "address": address, "control": control})
    rig.world.write()


def way_of(rig: Rig) -> Way:
    assert rig.envoy is not None
    assert rig.picker is not None
    return Way("gateway", (f"127.0.0.1:{rig.ports['grpc']}",), (only_child(rig.envoy.pid), rig.picker.pid))


@contextlib.asynccontextmanager
async def _alone(rig: Rig, folder: Path, addresses: Sequence[str]) -> AsyncIterator[Way]:
    port = free_port("127.0.0.1")
    ours = json.loads((rig.dir / "envoy.json").read_text())
    config = folder / "envoy.json"
    config.write_text(json.dumps(envoy_alone(ours, port, str(folder / "admin.sock"), tuple(addresses))))
    log = (folder / "envoy.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        envoy_binary(),
        *("--config-path", str(config), "--concurrency", ENVOY_WORKERS),
        *("--disable-hot-restart", "--log-level", "warning"),
        stdout=log,
        stderr=log,
        # As the rig starts the other one. Linux shares processors out among sessions first (autogroup): in that of the clients
        # and replicas this Envoy would wait for them, and take more messages at once.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not await _listens(port):
                if process.returncode is not None:
                    raise RuntimeError(f"Envoy alone ended: {(folder / 'envoy.log').read_text()[-2000:]}")
                await asyncio.sleep(0.05)
        yield Way("alone", (f"127.0.0.1:{port}",), (process.pid,))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        log.close()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
