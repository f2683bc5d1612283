"""Starts and ends the processes of one gateway, and talks to them as a client and as the operator would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.gateway.v1 import gateway_pb2_grpc as gw_rpc
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.inference.v1 import inference_pb2_grpc as inf_rpc
from moefleet_cluster.ports import free_port

from moefleet_gateway_rig.replica import FakeReplica

MODEL = "tiny"
# Waits in tests end when what they wait for happens; this is only for a test that would never end.
PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[3]


def envoy_binary() -> str:
    """MOEFLEET_ENVOY_BINARY, the project's own venv for it, or the PATH.

    Raises:
        FileNotFoundError: there is none. A test of the gateway fails then: skipped ones would hide that nothing was tested.
    """
    given = os.environ.get("MOEFLEET_ENVOY_BINARY")
    if given:
        return given
    for found in ROOT.glob(".venv-envoy/lib/python3*/site-packages/envoy/_bin/envoy"):
        return str(found)
    if (on_path := shutil.which("envoy")) is None:
        raise FileNotFoundError("no Envoy binary, neither the project's own (make setup) nor on the PATH")
    return on_path


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Waits for a condition and returns its value."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not (value := condition()):
        assert loop.time() < deadline, f"never came: {what or condition}"
        await asyncio.sleep(0.01)
    return value


@dataclass
class FleetFile:
    """What the picker's source shows."""

    path: Path
    fleets: list[dict[str, Any]] = field(default_factory=list)
    replicas: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps({"fleets": self.fleets, "replicas": self.replicas}))
        beside.replace(self.path)

    def fleet(self, name: str = "tiny", model: str = MODEL, namespace: str = "default", **more: Any) -> None:
        entry = {
            "namespace": namespace,
            "name": name,
            "model": model,
            "uid": f"uid-{namespace}-{name}",
            **more,
        }
        self.fleets = [f for f in self.fleets if (f["namespace"], f["name"]) != (namespace, name)] + [entry]
        self.write()

    def replica(self, replica: FakeReplica, **more: Any) -> None:
        self.replicas = [r for r in self.replicas if r["uid"] != replica.uid] + [replica.entry(**more)]
        self.write()

    def remove(self, replica: FakeReplica) -> None:
        self.replicas = [r for r in self.replicas if r["uid"] != replica.uid]
        self.write()


class Rig:
    def __init__(self, **env: str) -> None:
        """With KUBECONFIG among `env` the picker watches that cluster instead of the file."""
        self.dir = Path(tempfile.mkdtemp(prefix="moefleet-gw-"))  # short: socket paths have at most 107 bytes
        self.world = FleetFile(self.dir / "world.json")
        self.world.write()
        self.env = env
        self.ports = {
            name: free_port("127.0.0.1")
            for name in ("grpc", "control", "health", "metrics", "openai", "inner", "smg", "smg_metrics")
        }
        self.picker: asyncio.subprocess.Process | None = None
        self.envoy: asyncio.subprocess.Process | None = None
        self.smg: asyncio.subprocess.Process | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._replicas: list[FakeReplica] = []
        self._logs: list[Any] = []

    # --- processes ---

    async def start(self) -> Rig:
        await self.start_picker()
        await self.start_envoy()
        await self.wait_ready()
        return self

    async def start_picker(self) -> None:
        source = () if "KUBECONFIG" in self.env else ("--static", str(self.world.path))
        self.picker = await self._spawn("picker", *source)

    async def start_envoy(self) -> None:
        self.envoy = await self._spawn("envoy")

    async def start_openai(self) -> Rig:
        """All of it with SMG, as with `gateway.openai.enabled`."""
        self.env = {
            "MOEFLEET_OPENAI_LISTEN": f"127.0.0.1:{self.ports['openai']}",
            "MOEFLEET_OPENAI_INNER": f"127.0.0.1:{self.ports['inner']}",
            "MOEFLEET_OPENAI_SMG": f"127.0.0.1:{self.ports['smg']}",
            "MOEFLEET_OPENAI_SMG_METRICS": f"127.0.0.1:{self.ports['smg_metrics']}",
            **self.env,
        }
        await self.start_smg()
        return await self.start()

    async def start_smg(self) -> None:
        self.smg = await self._spawn("smg")

    async def kill_smg(self) -> None:
        assert self.smg is not None
        self.smg.send_signal(signal.SIGKILL)
        await self.smg.wait()

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['openai']}/v1"

    async def kill_picker(self) -> None:
        assert self.picker is not None
        self.picker.send_signal(signal.SIGKILL)
        await self.picker.wait()

    async def kill_envoy(self) -> None:
        """The launcher and Envoy: a container dies whole."""
        assert self.envoy is not None
        os.killpg(self.envoy.pid, signal.SIGKILL)
        await self.envoy.wait()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        for process in (self.envoy, self.smg, self.picker):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        await asyncio.gather(*(replica.stop() for replica in self._replicas))
        for file in self._logs:
            file.close()
        if os.environ.get("MOEFLEET_KEEP_RIG"):
            print(f"kept {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    async def _spawn(self, command: str, *arguments: str) -> asyncio.subprocess.Process:
        log = (self.dir / f"{command}.log").open("ab")
        self._logs.append(log)
        env = {
            **os.environ,
            "MOEFLEET_RUN_DIR": str(self.dir),
            "MOEFLEET_LISTEN": f"127.0.0.1:{self.ports['grpc']}",
            "MOEFLEET_CONTROL_LISTEN": f"127.0.0.1:{self.ports['control']}",
            "MOEFLEET_HEALTH_LISTEN": f"127.0.0.1:{self.ports['health']}",
            "MOEFLEET_METRICS_LISTEN": f"127.0.0.1:{self.ports['metrics']}",
            "MOEFLEET_ENVOY_BINARY": envoy_binary(),
            "MOEFLEET_ENVOY_CONCURRENCY": "1",
            "MOEFLEET_DRAIN_S": "60",
            "POD_NAME": "gateway-0",
            "POD_UID": "gateway-uid",
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "protos")),
            **self.env,
        }
        # A session of its own: what it starts ends with it.
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "moefleet_gateway", command, *arguments,
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def log(self, command: str = "picker") -> str:
        path = self.dir / f"{command}.log"
        return path.read_text() if path.exists() else ""

    # --- replicas ---

    async def replica(
        self, uid: str, ready: bool = True, listed: bool = True, **behaviour: Any
    ) -> FakeReplica:
        replica = await FakeReplica(uid, **behaviour).start()
        self._replicas.append(replica)
        if listed:
            self.world.replica(replica, ready=ready)
        return replica

    def keep(self, replica: FakeReplica) -> FakeReplica:
        self._replicas.append(replica)
        return replica

    # --- as a client ---

    def channel(self, authority: str = "", **options: Any) -> grpc.aio.Channel:
        pairs = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        pairs += [("grpc.max_send_message_length", -1)]
        if authority:
            pairs.append(("grpc.default_authority", authority))
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.ports['grpc']}", options=pairs + list(options.items())
        )
        self._channels.append(channel)
        return channel

    def stub(self, channel: grpc.aio.Channel | None = None) -> Any:
        return inf_rpc.InferenceServiceStub(channel or self.channel())

    async def generate(
        self,
        stub: Any,
        model: str = MODEL,
        prompt: str = "one two three",
        timeout: float = PATIENCE_S,
        **more: Any,
    ) -> list[Any]:
        request = inf.GenerateRequest(model=model, prompt=prompt)
        return [message async for message in stub.Generate(request, timeout=timeout, **more)]

    async def wait_ready(self) -> None:
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.ports['health']}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            loop = asyncio.get_running_loop()
            deadline = loop.time() + PATIENCE_S
            while True:
                try:
                    answer = await stub.Check(
                        health_pb2.HealthCheckRequest(service="readiness"), wait_for_ready=True, timeout=5
                    )
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.aio.AioRpcError:
                    pass
                assert loop.time() < deadline, (
                    f"never ready:\n{self.log()[-3000:]}\n{self.log('envoy')[-3000:]}"
                )
                await asyncio.sleep(0.02)

    # --- as the operator ---

    def control(self) -> Any:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.ports['control']}")
        self._channels.append(channel)
        return gw_rpc.GatewayServiceStub(channel)

    async def endpoints(self) -> dict[str, Any]:
        """The endpoints as a new watcher is told at first."""
        call = self.control().WatchEndpoints(gw.WatchEndpointsRequest())
        first = await call.read()
        call.cancel()
        return {e.pod_uid: e for e in first.endpoints}

    async def registered(self, *uids: str) -> None:
        """Waits until exactly these may be chosen."""
        call = self.control().WatchEndpoints(gw.WatchEndpointsRequest())
        states: dict[str, int] = {}
        async with asyncio.timeout(PATIENCE_S):
            while {u for u, s in states.items() if s == gw.ENDPOINT_STATE_REGISTERED} != set(uids):
                message = await call.read()
                assert message is not grpc.aio.EOF, f"watch ended; {self.log()[-2000:]}"
                states.update({e.pod_uid: e.state for e in message.endpoints})
                for uid in message.gone_pod_uids:
                    states.pop(uid)
        call.cancel()

    async def metrics(self) -> str:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self.ports['metrics']}/metrics") as response:
                return await response.text()

    async def metric_is(self, value: float | Callable[[], float], name: str, **labels: str) -> None:
        """A value that changes meanwhile is asked for each time."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.metric(name, **labels) != (value() if callable(value) else value):  # noqa: ASYNC110  (another process's state)
                await asyncio.sleep(0.02)

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
