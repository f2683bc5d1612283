"""A replica that starts for longer than anybody planned: it is left alone while it gets on, and ended when it does not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc
from moefleet_runtime_rig import ReplicaProcess, replica
from moefleet_runtime_rig.process import PATIENCE_S

STALL_S = 6
# A child of the replica that reads, as an engine does that loads: for about twice the limit.
READS = """
(for i in $(seq 24); do dd if=/dev/zero of=/dev/null bs=64k count=64 status=none; sleep 0.5; done; touch "{done}") &
"""
SERVING = health_pb2.HealthCheckResponse.SERVING


async def health(one: ReplicaProcess, service: str) -> bool:
    stub = health_pb2_grpc.HealthStub(one.channel())
    return bool((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING)


async def test_a_slow_start_is_left_alone_while_it_gets_on_and_ended_when_it_stands_still(
    tmp_path: Path,
) -> None:
    done = tmp_path / "has read"
    async with replica(
        tmp_path,
        args={"startSeconds": 3600},
        wait=False,
        before=READS.format(done=done),
        environment={"MOEFLEET_START_BUDGET_S": "4"},
        limits={"startStallS": STALL_S},
    ) as one:
        await one.listening()
        # The kubelet would have ended it after 4 s: before that, and because it reads, liveness takes over.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await health(one, "startup"):
                    break
                await asyncio.sleep(0.1)
        assert not done.exists()
        assert not await health(one, "readiness")
        assert await health(one, "liveness")
        assert await one.exit_status() == 75
        assert done.exists()
        said = json.loads(one.termination_log.read_text())
        assert said["reason"] == "StartStalled"
        assert f"(limit {STALL_S} s)" in said["message"]
        assert said["message"].startswith("loading: ")


async def test_startup_follows_the_first_time_that_it_serves(tmp_path: Path) -> None:
    async with replica(tmp_path, args={"startSeconds": 1}, wait=False) as one:
        await one.listening()
        assert not await health(one, "startup")
        await one.serving()
        assert await health(one, "startup")
        sample = await one.sample()
        assert 1.0 <= sample.load_s < sample.start_s
        # It says that there was nothing to tune; an engine that cannot say leaves it out.
        assert (sample.HasField("tune_s"), sample.tune_s) == (True, 0.0)
