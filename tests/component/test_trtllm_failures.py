"""How TensorRT-LLM fails, row by row of what is known of 1.2.1, and what the replica makes of it: real processes, fake engine.

In each row the server answers every stream with a status, says why it ends, and leaves no process of the engine behind.
"""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet_runtime.ending import Exit
from moefleet_runtime_rig import ReplicaProcess, ask, generate_request
from moefleet_runtime_rig.process import PATIENCE_S
from moefleet_trtllm_fake.serving import WORKERS, engine_processes, left_of, trtllm_replica

pytestmark = pytest.mark.timeout(90)

STREAMS = 5
LONG = 3000
# Above a host's own heartbeat of 1 s.
STALL_S = 2.0


async def running(
    served: ReplicaProcess, streams: int = STREAMS, tokens: int = LONG
) -> list[asyncio.Future[Any]]:
    calls = [
        asyncio.ensure_future(
            ask(served.inference, generate_request(prompt=(300 + i, 301), max_tokens=tokens), timeout=60)
        )
        for i in range(streams)
    ]
    await served.sample_when(lambda s: s.active == streams)
    return calls


async def ready(served: ReplicaProcess, service: str = "readiness") -> bool:
    stub = health_pb2_grpc.HealthStub(served.channel())
    status = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def why(served: ReplicaProcess) -> tuple[str, str]:
    written = json.loads(served.termination_log.read_text())
    return written["reason"], written["message"]


async def test_it_serves(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path) as served:
        answers = await asyncio.gather(
            *(
                ask(served.inference, generate_request(prompt=(300 + i, 7), max_tokens=20 + i))
                for i in range(8)
            )
        )
        assert [len(a.tokens) for a in answers] == [20 + i for i in range(8)]
        assert {a.code for a in answers} == {grpc.StatusCode.OK}
        delivered = sum(20 + i for i in range(8))
        sample = await served.sample_when(lambda s: s.active == 0 and s.output_tokens_total >= delivered)
        assert sample.steps.count > 0
        assert sample.kv_max_tokens == 65536
        started = engine_processes(served)
        assert len(started) == 1 + WORKERS
        served.process.send_signal(signal.SIGTERM)
        assert await served.exit_status() == Exit.DRAINED
        assert left_of(started) == set()


async def test_row_bad_request_is_the_clients_fault_and_changes_nothing_else(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"refuses_token": 666}) as served:
        beside = asyncio.ensure_future(ask(served.inference, generate_request(max_tokens=200)))
        refused = await ask(served.inference, generate_request(prompt=(666,)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "the engine refused it: ValueError" in refused.message
        assert (await beside).code is grpc.StatusCode.OK
        assert await ready(served)
        assert not [e for e in served.events if e.get("event") == "step failed"]


async def test_row_a_failed_forward_pass_fails_those_in_it_and_the_canary_runs_again(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"forward_errors": [200]}) as served:
        for call in await running(served):
            answer = await call
            assert answer.code is grpc.StatusCode.INTERNAL
            assert answer.reason == "STEP_FAILED"
            assert "RequestError: sampling failed" in answer.message
        await served.event("step failed")
        async with asyncio.timeout(PATIENCE_S):
            # A state read now may be that from before the failure was noticed.
            while sum(e.get("event") == "canary passed" for e in served.events) < 2:  # noqa: ASYNC110  (another process's log)
                await asyncio.sleep(0.02)
        await served.sample_when(lambda s: s.state == rep.REPLICA_STATE_SERVING)
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK


async def test_row_out_of_memory_in_serving_says_what_to_change(tmp_path: Path) -> None:
    behaviour = {"forward_errors": [100], "forward_error": "CUDA out of memory. Tried to allocate 2.00 GiB"}
    async with trtllm_replica(tmp_path, behaviour=behaviour) as served:
        (call,) = await running(served, 1)
        answer = await call
        assert answer.code is grpc.StatusCode.INTERNAL
        assert "lower engine.kvCache.memoryFraction (0.7) or engine.limits.maxBatchTokens" in answer.message


@pytest.mark.parametrize(
    ("behaviour", "reason", "says"),
    [
        pytest.param({"sticky_from": 200}, "EngineDied", "illegal memory access", id="sticky CUDA error"),
        pytest.param(
            {"executor_dies_after": 600}, "EngineHung", "no step of the engine", id="executor thread dies"
        ),
        pytest.param({"hangs_after": 600}, "EngineHung", "no step of the engine", id="hang"),
        pytest.param(
            {"worker_killed_after": 600},
            "EngineDied",
            "1 of its 2 worker processes ended",
            id="worker killed",
        ),
        pytest.param({"worker_raises_after": 600}, "EngineDied", "NVLink error", id="worker future raises"),
    ],
)
async def test_row_the_engine_is_gone_whatever_it_says_of_its_health(
    tmp_path: Path, behaviour: dict[str, int], reason: str, says: str
) -> None:
    async with trtllm_replica(tmp_path, behaviour=behaviour, stall_s=STALL_S) as served:
        started = engine_processes(served)
        calls = await running(served)
        assert await ready(served, "liveness")
        watch = served.control.WatchLoad(rep.WatchLoadRequest(interval_ms=60000))
        for call in calls:
            answer = await call
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.reason == "ENGINE_DIED"
            assert says in answer.message
        states = [response.sample.state async for response in watch]
        assert states[-1] == rep.REPLICA_STATE_FAILED
        # It does not stay up with a dead engine.
        assert await served.exit_status() == Exit.ENGINE_DIED
        assert why(served)[0] == reason
        assert says in why(served)[1]
        assert left_of(started) == set()


async def test_where_an_engine_hung_is_in_the_log(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"hangs_after": 100}, stall_s=STALL_S) as served:
        await asyncio.gather(*await running(served, 1))
        await served.exit_status()
        log = "".join(served.other)
        assert "most recent call first" in log
        assert "_misbehaves" in log


async def test_row_success_without_a_token_is_a_failure_and_the_canary_runs_again(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"empty_answers": [3]}) as served:
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK
        empty = await ask(served.inference, generate_request())
        assert empty.code is grpc.StatusCode.INTERNAL
        assert "without a token" in empty.message
        await served.event("step failed")
        await served.sample_when(lambda s: s.state == rep.REPLICA_STATE_SERVING)
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK


async def test_row_corrupt_from_the_start_never_serves(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"empty_answers": [1]}, wait=False) as served:
        assert await served.exit_status() == Exit.START_FAILED
        assert why(served)[0] == "CanaryFailed"


@pytest.mark.parametrize(
    ("behaviour", "reason", "says"),
    [
        ({"start": "worker-died"}, "EngineStartFailed", "died during initialization"),
        ({"start": "worker-error"}, "EngineStartFailed", "missing weight model.norm.weight"),
        ({"start": "oom"}, "OutOfMemory", "lower engine.kvCache.memoryFraction"),
        ({"version": "1.2.0"}, "EngineUnavailable", "drives tensorrt_llm 1.2.1, the image has 1.2.0"),
    ],
)
async def test_row_a_start_that_fails_has_a_reason(
    tmp_path: Path, behaviour: dict[str, str], reason: str, says: str
) -> None:
    async with trtllm_replica(tmp_path, behaviour=behaviour, wait=False) as served:
        assert await served.exit_status() != 0
        assert why(served)[0] == reason
        assert says in why(served)[1]


async def test_row_a_start_without_end_is_ended_from_outside_and_the_server_answers_until_then(
    tmp_path: Path,
) -> None:
    async with trtllm_replica(tmp_path, behaviour={"start": "hang"}, wait=False) as served:
        await served.listening()
        await served.event("state", state="Loading")
        assert not await ready(served)
        assert await ready(served, "liveness")
        refused = await ask(served.inference, generate_request())
        assert refused.trailers["x-moefleet-refused"] == "not-serving"
        started = engine_processes(served)
        served.process.send_signal(signal.SIGTERM)
        await served.exit_status()
        assert left_of(started) == set()


async def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_loads(tmp_path: Path) -> None:
    engine = {"args": {"gpuMemoryGib": 1}}
    async with trtllm_replica(tmp_path, engine=engine, wait=False) as served:
        assert await served.exit_status() != 0
        reason, message = why(served)
        assert reason == "OutOfMemory"
        assert "are missing before the first token" in message


async def test_row_a_shutdown_without_end_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path, behaviour={"shutdown_hangs": True}) as served:
        (call,) = await running(served, 1, tokens=500)
        started = engine_processes(served)
        served.process.send_signal(signal.SIGTERM)
        await served.event("state", state="Draining")
        # The stream is finished first, then the engine is told, and then not waited for.
        assert (await call).code is grpc.StatusCode.OK
        assert await served.exit_status() == Exit.DRAINED
        assert left_of(started) == set()


@pytest.mark.parametrize("hurt", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_host_process_is_killed_or_stands_still(tmp_path: Path, hurt: signal.Signals) -> None:
    async with trtllm_replica(tmp_path, stall_s=STALL_S) as served:
        started = engine_processes(served)
        calls = await running(served)
        os.kill(served.host_pid(), hurt)
        for call in calls:
            answer = await call
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.reason == "ENGINE_DIED"
        assert await served.exit_status() == Exit.ENGINE_DIED
        assert left_of(started) == set(), "MPI workers sit in sessions of their own and must end too"


async def test_a_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    async with trtllm_replica(tmp_path) as served:
        call = served.inference.Generate(generate_request(max_tokens=LONG))
        await call.read()
        call.cancel()
        sample = await served.sample_when(lambda s: s.active == 0)
        assert sample.outstanding_decode_tokens == 0
        assert sample.output_tokens_total < LONG


@pytest.mark.parametrize("after_ms", [0, 3, 17, 90, 260])
async def test_killed_at_any_moment_every_stream_is_told_and_no_worker_survives(
    tmp_path: Path, after_ms: int
) -> None:
    """Requests that were just sent, half prefilled, streaming: no moment is special."""
    async with trtllm_replica(tmp_path) as served:
        started = engine_processes(served)
        # One connection, as of a gateway: 64 that are still being made when the server ends have no answer to get.
        stub = served.inference
        assert (await ask(stub, generate_request())).code is grpc.StatusCode.OK
        calls = [
            asyncio.ensure_future(
                ask(stub, generate_request(prompt=(300 + i,) * 400, max_tokens=LONG), timeout=60)
            )
            for i in range(64)
        ]
        await asyncio.sleep(after_ms / 1000)
        os.kill(served.host_pid(), signal.SIGKILL)
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*calls)
        odd = [(a.code, a.message, a.trailers) for a in answers if a.code is not grpc.StatusCode.UNAVAILABLE]
        assert odd == []
        # Those whose request had not come yet are refused, and may be tried elsewhere.
        assert all(a.message for a in answers)
        assert await served.exit_status() == Exit.ENGINE_DIED
        assert left_of(started) == set()
