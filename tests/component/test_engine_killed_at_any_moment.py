"""kill -9 of the engine at random moments under 64 streams, with a supervisor that starts the replica again as a kubelet does.

`MOEFLEET_KILLS=50 SEED=1 pytest -s tests/component/test_engine_killed_at_any_moment.py` is the long form, and prints how long
things took; a few kills run always.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet_cluster.ports import free_port
from moefleet_gateway_rig import Rig
from moefleet_runtime.process_tree import HOST_VARIABLE, with_variable
from moefleet_runtime_rig import ReplicaProcess, ask, generate_request, replica
from moefleet_runtime_rig.requests import Answer

KILLS = int(os.environ.get("MOEFLEET_KILLS", "4"))
SEED = int(os.environ.get("SEED", "1"))
STREAMS = 64
# Answers of two seconds: a step of 10 ms, whatever is in it.
TOKENS = 200
STEADY = {
    "name": "steady",
    "step": {"aS": 0.01, "bS": 1e-9, "cS": 1e-9, "dS": 0.0},
    "limits": {"maxSequences": 256, "kvMaxTokens": 1_000_000, "maxBatchTokens": 8192},
    "provenance": "a step of one length",
}
PATIENCE_S = 60.0


@dataclass
class Supervised:
    """A replica at addresses of its own, started again whenever it ends."""

    folder: Path
    data: str = field(default_factory=lambda: f"127.0.0.1:{free_port('127.0.0.1')}")
    control: str = field(default_factory=lambda: f"127.0.0.1:{free_port('127.0.0.1')}")
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    _now: ReplicaProcess | None = None
    _task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervised]:
        self._task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def serving(self, start: int) -> ReplicaProcess:
        """Once the start of that number (from 1) serves."""
        async with asyncio.timeout(PATIENCE_S):
            while self.starts < start or self._now is None:
                assert self._task is not None
                assert not self._task.done(), self._task
                await asyncio.sleep(0.01)
            await self._now.serving()
            return self._now

    async def _run(self) -> None:
        while True:
            async with replica(
                self.folder,
                args={"calibration": STEADY},
                wait=False,
                environment={"MOEFLEET_POD_UID": "only"},
                listen=self.data,
                control={"listen": self.control},
            ) as process:
                self._now = process
                self.starts += 1
                self.exits.append(await process.process.wait())
            self._now = None


@dataclass
class Times:
    answered_s: list[float] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)

    def said(self) -> str:
        def worst(name: str, times: list[float]) -> str:
            return f"{name} {sorted(times)[len(times) // 2]:.2f} s at the median, {max(times):.2f} s at most"

        return "; ".join(
            (
                worst("last client answered after", self.answered_s),
                worst("left the gateway after", self.left_s),
                worst("back after", self.back_s),
            )
        )


@pytest.mark.timeout(120 + 60 * KILLS)
async def test_every_client_learns_why_and_the_replica_comes_back_and_nothing_survives(
    tmp_path: Path,
) -> None:
    chance, times, rig = random.Random(SEED), Times(), Rig()
    print(f"MOEFLEET_KILLS={KILLS} SEED={SEED}")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.close)
        pod = await stack.enter_async_context(Supervised(tmp_path).running())
        await pod.serving(1)
        rig.world.fleet("chat", "chat-model", "team")
        rig.world.replicas = [
            {"uid": "only", "fleet": "team/chat", "address": pod.data, "control": pod.control, "ready": True}
        ]
        rig.world.write()
        await rig.start()
        stub = rig.stub()
        for kill in range(1, KILLS + 1):
            process = await pod.serving(kill)
            await rig.registered("only")
            host = process.host_pid()
            mark = _mark(host)
            streams = [asyncio.create_task(ask(stub, _request(chance))) for _ in range(STREAMS)]
            # From before the first token to after some have ended.
            await asyncio.sleep(chance.uniform(0.0, 2.2))
            left = asyncio.create_task(_left(rig))
            await asyncio.sleep(0)
            os.kill(host, signal.SIGKILL)
            killed_s = time.monotonic()
            async with asyncio.timeout(PATIENCE_S):
                answers = await asyncio.gather(*streams)
                times.answered_s.append(time.monotonic() - killed_s)
                times.left_s.append(await left - killed_s)
            _check(answers)
            await pod.serving(kill + 1)
            await rig.registered("only")
            times.back_s.append(time.monotonic() - killed_s)
            assert not with_variable(HOST_VARIABLE, mark), "something that the engine started is still there"
        assert pod.starts == KILLS + 1
        assert all(status not in (0, -signal.SIGKILL) for status in pod.exits), pod.exits
        last = await ask(stub, generate_request(max_tokens=3))
        assert last.code is grpc.StatusCode.OK
    print(times.said())


def _check(answers: list[Answer]) -> None:
    """Whole, or broken off with a reason that says whether asking again is safe: never silence, never half an answer as whole."""
    for answer in answers:
        if answer.code is grpc.StatusCode.OK:
            assert len(answer.tokens) == TOKENS
            assert int(answer.trailers["x-usage-completion-tokens"]) == TOKENS
        else:
            assert answer.code is grpc.StatusCode.UNAVAILABLE, (answer.code, answer.message)
            # NOT_SERVING: it was on its way when the engine died, and there is no other replica.
            assert answer.reason in ("ENGINE_DIED", "NOT_SERVING", "REPLICA_LOST", "REPLICA_UNREACHABLE"), (
                answer
            )
            info = next(d for d in answer.details.values() if d.DESCRIPTOR.name == "ErrorInfo")
            assert info.metadata["safeToRetry"] == "true"  # type: ignore[attr-defined]


def _request(chance: random.Random) -> object:
    prompt = [chance.randrange(300, 2000) for _ in range(16)]
    return generate_request(prompt, max_tokens=TOKENS, stopping={"ignore_eos": True, "max_tokens": TOKENS})


async def _left(rig: Rig) -> float:
    """When the picker stopped choosing it."""
    call = rig.control().WatchEndpoints(gw.WatchEndpointsRequest())
    async for message in call:
        if message.gone_pod_uids or any(e.state != gw.ENDPOINT_STATE_REGISTERED for e in message.endpoints):
            call.cancel()
            return time.monotonic()
    raise AssertionError("the watch of endpoints ended")


def _mark(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(e.split(b"=", 1)[1].decode() for e in environment if e.startswith(HOST_VARIABLE.encode()))
