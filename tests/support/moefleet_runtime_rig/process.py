"""One replica as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from moefleet.inference.v1 import inference_pb2_grpc
from moefleet.replica.v1 import replica_pb2, replica_pb2_grpc
from smg_grpc_proto.generated import trtllm_service_pb2_grpc

POD_UID = "uid-of-this-pod"
# Only bounds how long a broken test hangs: starting takes a second on an idle machine.
PATIENCE_S = 60.0
_ROOT = Path(__file__).resolve().parents[3]


class ReplicaProcess:
    def __init__(self, process: asyncio.subprocess.Process, termination_log: Path) -> None:
        self.process = process
        self.termination_log = termination_log
        self.events: list[dict[str, Any]] = []
        # What was printed and is no event: a traceback, most likely.
        self.other: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())
        self._channels: list[grpc.aio.Channel] = []
        self.grpc_at = self.control_at = self.metrics_at = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def host_pid(self) -> int:
        """The engine host process, by its command line: the server may have other children."""
        for pid in self.children():
            if b"moefleet_runtime.host" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"replica {self.pid} has no engine host among {self.children()}")

    def children(self) -> list[int]:
        found: set[int] = set()
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found.update(int(pid) for pid in (task / "children").read_text().split())
        return sorted(found)

    async def listening(self) -> None:
        event = await self.event("listening")
        self.grpc_at, self.control_at, self.metrics_at = event["grpc"], event["control"], event["metrics"]

    async def serving(self) -> None:
        await self.event("state", state="Serving")

    async def event(self, name: str, **fields: object) -> dict[str, Any]:
        """The first event with these fields, now or later; fails when the process ends without it."""

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event.get("event") == name and all(event.get(k) == v for k, v in fields.items()):
                    return event
            return None

        async with asyncio.timeout(PATIENCE_S):
            async with self._news:
                while (event := found()) is None:
                    assert not self._reading.done(), (
                        f"ended without {name} {fields}: {self.events} {self.other}"
                    )
                    await self._news.wait()
                return event

    async def exit_status(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            status = await self.process.wait()
            await self._reading
            return status

    def channel(self) -> grpc.aio.Channel:
        # A connection of its own each: tests kill servers that share an address with earlier ones.
        channel = grpc.aio.insecure_channel(
            self.grpc_at,
            options=(("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)),
        )
        self._channels.append(channel)
        return channel

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel())

    @property
    def trtllm(self) -> Any:
        return trtllm_service_pb2_grpc.TrtllmServiceStub(self.channel())

    @property
    def control(self) -> replica_pb2_grpc.ReplicaServiceStub:
        channel = grpc.aio.insecure_channel(self.control_at, options=(("grpc.use_local_subchannel_pool", 1),))
        self._channels.append(channel)
        return replica_pb2_grpc.ReplicaServiceStub(channel)

    async def sample(self, **metadata: str) -> replica_pb2.LoadSample:
        call = self.control.WatchLoad(replica_pb2.WatchLoadRequest(), metadata=tuple(metadata.items()))
        response = await call.read()
        call.cancel()
        return response.sample

    async def sample_when(self, wanted: Any) -> replica_pb2.LoadSample:
        """The first sample for which `wanted` holds."""
        call = self.control.WatchLoad(replica_pb2.WatchLoadRequest(interval_ms=100))
        async with asyncio.timeout(PATIENCE_S):
            async for response in call:
                if wanted(response.sample):
                    call.cancel()
                    return response.sample
        raise AssertionError("WatchLoad ended before")

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                self.other.append(line.decode(errors="replace"))
                continue
            async with self._news:
                self.events.append(event)
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


@contextlib.asynccontextmanager
async def replica(
    tmp_path: Path,
    *,
    engine: str = "Simulated",
    args: dict[str, Any] | None = None,
    wait: bool = True,
    before: str = "",
    environment: dict[str, str] | None = None,
    **config: Any,
) -> AsyncIterator[ReplicaProcess]:
    """A replica that serves (with `wait`), after shell words `before` in the same process, configured as a pod is; `config` is merged into the top level."""
    termination_log = tmp_path / "termination-log"
    data: dict[str, Any] = {
        "fleet": "team/chat",
        "model": {"name": "chat-model", "contextLength": 131072},
        "engine": {"type": engine, "args": args or {}},
        "listen": "127.0.0.1:0",
        "control": {"listen": "127.0.0.1:0"},
        "metricsListen": "127.0.0.1:0",
    }
    for name, value in config.items():
        data[name] = {**data[name], **value} if isinstance(data.get(name), dict) else value
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(_ROOT / folder) for folder in ("runtime", "protos")),
        "MOEFLEET_RUNTIME_CONFIG": json.dumps(data),
        "MOEFLEET_POD_UID": POD_UID,
        "MOEFLEET_POD_NAME": "chat-0123abcd-0",
        "MOEFLEET_POD_NAMESPACE": "team",
        "MOEFLEET_TERMINATION_LOG": str(termination_log),
        "MOEFLEET_CPU_LIMIT_MILLIS": "1000",
        **(environment or {}),
    }
    command = f'{before}\nexec "{sys.executable}" -m moefleet_runtime'
    process = await asyncio.create_subprocess_shell(
        command,
        env=env,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    running = ReplicaProcess(process, termination_log)
    try:
        if wait:
            await running.listening()
            await running.serving()
        yield running
    finally:
        await running.close()
