"""A real replica's life: starting, draining, ending, and what its death looks like from outside."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet_runtime.ending import Exit
from moefleet_runtime_rig import ReplicaProcess, ask, ask_trtllm, generate_request, replica, trtllm_request
from moefleet_runtime_rig.process import PATIENCE_S, POD_UID

# Steps of about 65 ms: streams that are long in tokens are long in time.
SLOW: dict[str, Any] = {"speed": 0.2}


def drain(pod_uid: str = POD_UID, reason: str = "ScaleDown") -> rep.DrainRequest:
    return rep.DrainRequest(pod_uid=pod_uid, reason=reason)


async def first_token(served: ReplicaProcess, max_tokens: int) -> Any:
    call = served.inference.Generate(generate_request(max_tokens=max_tokens))
    await call.read()
    return call


async def rest(call: Any) -> int:
    """Tokens that still come; how it ended is the caller's to look at."""
    count = 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        while (message := await call.read()) is not grpc.aio.EOF:
            count += len(message.token_ids)
    return count


async def health(served: ReplicaProcess, service: str) -> bool:
    stub = health_pb2_grpc.HealthStub(served.channel())
    status = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


async def test_drain_lets_running_streams_finish_refuses_new_ones_and_resume_undoes_it(
    tmp_path: Path,
) -> None:
    async with replica(tmp_path, args=SLOW) as served:
        call = await first_token(served, 40)
        answered = await served.control.Drain(drain())
        assert (answered.state, answered.active) == (rep.REPLICA_STATE_DRAINING, 1)
        again = await served.control.Drain(drain())
        assert again.state == rep.REPLICA_STATE_DRAINING
        for refused in (
            await ask(served.inference, generate_request()),
            await ask_trtllm(served.trtllm, trtllm_request()),
        ):
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert refused.trailers["x-moefleet-refused"] == "draining"
            assert refused.initial == {}
        assert not await health(served, "readiness")
        assert await health(served, "liveness")
        assert await rest(call) == 39
        assert await call.code() is grpc.StatusCode.OK
        drained = await served.sample_when(lambda s: s.state == rep.REPLICA_STATE_DRAINED)
        assert (drained.active, drained.cut_total, drained.refused_total) == (0, 0, 2)
        resumed = await served.control.Resume(rep.ResumeRequest(pod_uid=POD_UID))
        assert resumed.state == rep.REPLICA_STATE_SERVING
        assert await health(served, "readiness")
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK


async def test_sigterm_lets_running_streams_finish_and_exits_with_0(tmp_path: Path) -> None:
    async with replica(tmp_path, args=SLOW) as served:
        call = await first_token(served, 30)
        host = served.host_pid()
        served.process.send_signal(signal.SIGTERM)
        await served.event("state", state="Draining")
        refused = await ask(served.inference, generate_request())
        assert refused.trailers["x-moefleet-refused"] == "draining"
        with pytest.raises(grpc.aio.AioRpcError) as resumed:
            await served.control.Resume(rep.ResumeRequest(pod_uid=POD_UID))
        assert resumed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await rest(call) == 29
        assert await call.code() is grpc.StatusCode.OK
        assert await served.exit_status() == Exit.DRAINED
        await gone(host)
        assert not served.termination_log.exists()


async def test_a_drained_replica_ends_at_once_on_sigterm_and_its_watchers_hear_the_last_state(
    tmp_path: Path,
) -> None:
    async with replica(tmp_path) as served:
        watch = served.control.WatchLoad(rep.WatchLoadRequest(interval_ms=60000))
        seen = [(await watch.read()).sample.state]
        await served.control.Drain(drain(reason="Rollout"))
        seen.append((await watch.read()).sample.state)
        served.process.send_signal(signal.SIGTERM)
        assert await served.exit_status() == Exit.DRAINED
        assert seen == [rep.REPLICA_STATE_SERVING, rep.REPLICA_STATE_DRAINED]


async def test_a_second_sigterm_cuts_what_runs_and_counts_it(tmp_path: Path) -> None:
    """The first one never cuts: drainTimeoutS is at least streamDurationS, or the configuration is refused."""
    async with replica(tmp_path, args=SLOW, limits={"streamDurationS": 600}, drainTimeoutS=600) as served:
        call = await first_token(served, 50_000)
        served.process.send_signal(signal.SIGTERM)
        await served.event("state", state="Draining")
        served.process.send_signal(signal.SIGTERM)
        await rest(call)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        cut = await served.event("streams cut")
        assert (cut["streams"], cut["cut_total"]) == (1, 1)
        assert await served.exit_status() == Exit.STREAMS_CUT


async def test_the_death_of_the_engine_answers_every_stream_and_ends_the_process(tmp_path: Path) -> None:
    async with replica(tmp_path, args=SLOW) as served:
        calls = [await first_token(served, 50_000) for _ in range(3)]
        theirs = asyncio.ensure_future(ask_trtllm(served.trtllm, trtllm_request(max_tokens=50_000)))
        await served.sample_when(lambda s: s.active == 4)
        watch = served.control.WatchLoad(rep.WatchLoadRequest(interval_ms=60000))
        await watch.read()
        os.kill(served.host_pid(), signal.SIGKILL)
        for call in calls:
            await rest(call)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "SIGKILL" in await call.details()
        answer = await theirs
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.reason == "ENGINE_DIED"
        assert (await watch.read()).sample.state == rep.REPLICA_STATE_FAILED
        assert await served.exit_status() == Exit.ENGINE_DIED
        written = json.loads(served.termination_log.read_text())
        assert written["reason"] == "EngineDied"
        assert "SIGKILL" in written["message"]


@pytest.mark.parametrize(
    ("faults", "reason"),
    [({"hangAfterTokens": 20}, "EngineHung"), ({"dieAfterTokens": 20}, "EngineDied")],
)
async def test_a_rehearsed_fault_ends_the_replica_with_its_reason(
    tmp_path: Path, faults: dict[str, int], reason: str
) -> None:
    async with replica(tmp_path, args={"faults": faults}, limits={"stallS": 1}) as served:
        answer = await ask(served.inference, generate_request(max_tokens=50_000))
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.reason == "ENGINE_DIED"
        assert await served.exit_status() == Exit.ENGINE_DIED
        assert json.loads(served.termination_log.read_text())["reason"] == reason


async def test_a_stopped_engine_host_counts_as_hung(tmp_path: Path) -> None:
    async with replica(tmp_path, args=SLOW, limits={"stallS": 2}) as served:
        call = await first_token(served, 50_000)
        host = served.host_pid()
        os.kill(host, signal.SIGSTOP)
        await rest(call)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await served.exit_status() == Exit.ENGINE_DIED
        assert json.loads(served.termination_log.read_text())["reason"] == "EngineHung"
        await gone(host)


async def test_a_failed_step_fails_its_requests_and_readiness_until_the_canary_passes(tmp_path: Path) -> None:
    # The canary takes 4 steps and passes between two bad ones.
    async with replica(tmp_path, args={"faults": {"stepErrorEvery": 12}}) as served:
        answer = await ask(served.inference, generate_request(max_tokens=5000))
        assert answer.code is grpc.StatusCode.INTERNAL
        assert answer.reason == "STEP_FAILED"
        warming = await served.event("step failed")
        assert warming
        while sum(e.get("event") == "canary passed" for e in served.events) < 2:
            await served.sample_when(lambda s: s.state == rep.REPLICA_STATE_SERVING)
        assert [e["state"] for e in served.events if e.get("event") == "state"][-2:] == ["Warming", "Serving"]
        assert (await ask(served.inference, generate_request(max_tokens=1))).code is grpc.StatusCode.OK


async def test_those_who_wait_behind_a_failed_step_are_served(tmp_path: Path) -> None:
    args = {
        "calibration": {"base": "deepseek-v2-8xh800", "limits": {"maxSequences": 1}},
        "speed": 0.5,
        "faults": {"stepErrorEvery": 60},
    }
    async with replica(tmp_path, args=args, limits={"queuedRequests": 2}) as served:
        stub = served.inference
        failing = asyncio.ensure_future(ask(stub, generate_request((300,), max_tokens=5000)))
        await served.sample_when(lambda s: s.active == 1)
        waiting = [
            asyncio.ensure_future(ask(stub, generate_request((400 + i,), max_tokens=15))) for i in range(2)
        ]
        assert (await failing).reason == "STEP_FAILED"
        answers = await asyncio.gather(*waiting)
        assert [(a.code, len(a.tokens)) for a in answers] == [(grpc.StatusCode.OK, 15)] * 2
        await served.sample_when(lambda s: s.state == rep.REPLICA_STATE_SERVING)
        assert sum(e.get("event") == "canary passed" for e in served.events) == 2


async def test_the_server_dying_takes_the_engine_host_with_it(tmp_path: Path) -> None:
    async with replica(tmp_path) as served:
        host = served.host_pid()
        served.process.kill()
        await served.exit_status()
        await gone(host)


async def test_orphans_of_the_pod_are_reaped(tmp_path: Path) -> None:
    """A child that the server did not start, as PID 1 has many."""
    # It ends when told to, and by itself if nobody does: how long a start takes on a busy machine is nobody's to say.
    go = tmp_path / "go"
    before = f'for _ in $(seq 600); do [ -e "{go}" ] && break; sleep 0.1; done &'
    async with replica(tmp_path, before=before) as served:
        host = served.host_pid()
        (other,) = set(served.children()) - {host}
        go.touch()
        # A zombie would stay in /proc for ever.
        await gone(other)
        assert served.children() == [host]
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        # Another process has no event for us.
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110, ASYNC240, PTH110
            await asyncio.sleep(0.05)


async def test_the_control_port_wants_the_token_and_the_right_pod(tmp_path: Path) -> None:
    token = "a-token"
    digest = sha256(token.encode()).hexdigest()
    good = (("authorization", f"Bearer {token}"),)
    async with replica(tmp_path, control={"listen": "127.0.0.1:0", "tokenSha256": digest}) as served:
        control = served.control
        calls: list[Callable[..., Any]] = [
            lambda **kw: control.Drain(drain(), **kw),
            lambda **kw: control.Resume(rep.ResumeRequest(pod_uid=POD_UID), **kw),
            lambda **kw: control.WatchLoad(rep.WatchLoadRequest(), **kw).read(),
        ]
        for call in calls:
            for metadata in ((), (("authorization", "Bearer another"),), (("authorization", token),)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(metadata=metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await served.sample(authorization=f"Bearer {token}")).state == rep.REPLICA_STATE_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as wrong_pod:
            await control.Drain(drain("another-uid"), metadata=good)
        assert wrong_pod.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError) as wrong_reason:
            await control.Drain(drain(reason="Whim"), metadata=good)
        assert wrong_reason.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # The request port does not know the service.
        with pytest.raises(grpc.aio.AioRpcError) as elsewhere:
            await served.channel().unary_unary("/moefleet.replica.v1.ReplicaService/Drain")(
                b"", metadata=good
            )
        assert elsewhere.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await control.Drain(drain(), metadata=good)).state == rep.REPLICA_STATE_DRAINED
        assert not any(e.get("event") == "control port unchecked" for e in served.events)


async def test_samples_come_at_once_at_each_interval_and_say_who_and_how_much(tmp_path: Path) -> None:
    async with replica(tmp_path, args=SLOW) as served:
        call = await first_token(served, 50_000)
        watch = served.control.WatchLoad(rep.WatchLoadRequest(interval_ms=100))
        samples = [(await watch.read()).sample for _ in range(8)]
        assert {s.pod_uid for s in samples} == {POD_UID}
        assert len({s.incarnation for s in samples}) == 1
        assert [s.seq for s in samples] == sorted({s.seq for s in samples})
        last = samples[-1]
        assert (last.active, last.queued, last.admitted_total) == (1, 0, 1)
        assert last.oldest_active_s > 0
        assert last.start_s > 0
        assert last.message == ""
        assert last.steps.count > samples[0].steps.count
        assert last.kv_used_tokens > 3
        assert last.kv_max_tokens == 6_000_000
        assert last.output_tokens_total > samples[0].output_tokens_total
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as too_often:
            await served.control.WatchLoad(rep.WatchLoadRequest(interval_ms=99)).read()
        assert too_often.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_before_it_serves_it_refuses_and_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    async with replica(tmp_path, args={"startSeconds": 3600}, wait=False) as served:
        await served.listening()
        answer = await ask(served.inference, generate_request())
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.trailers["x-moefleet-refused"] == "not-serving"
        assert await health(served, "liveness")
        assert not await health(served, "readiness")
        sample = await served.sample()
        assert (sample.state, sample.start_s) == (rep.REPLICA_STATE_LOADING, 0)
        assert sample.message
        served.process.send_signal(signal.SIGTERM)
        assert await served.exit_status() == Exit.DRAINED


@pytest.mark.parametrize(
    ("config", "reason", "status", "says"),
    [
        ({"args": {"sped": 2}}, "EngineArgumentInvalid", Exit.CONFIGURATION, "did you mean 'speed'"),
        ({"modle": {}}, "ConfigurationInvalid", Exit.CONFIGURATION, "did you mean 'model'"),
        (
            {"args": {"calibration": "h900"}},
            "EngineArgumentInvalid",
            Exit.CONFIGURATION,
            "deepseek-v2-8xh800",
        ),
        (
            {"args": {"faults": {"failStart": "no such GPU"}}},
            "EngineStartFailed",
            Exit.START_FAILED,
            "no such GPU",
        ),
        (
            {"engine": "Torch", "model": {"source": "file:///nowhere/model"}},
            "ModelSourceMissing",
            Exit.MODEL_SOURCE,
            "/nowhere/model",
        ),
        (
            {"engine": "Torch", "model": {"source": "ftp://org/name"}},
            "ModelSourceInvalid",
            Exit.CONFIGURATION,
            "one of hf, s3",
        ),
        (
            {"engine": "TensorRTLLM", "model": {"source": "file:///tmp"}},
            "EngineUnavailable",
            Exit.ENGINE_UNAVAILABLE,
            "tensorrt_llm",
        ),
        ({"args": {"faults": {"stepErrorEvery": 1}}}, "CanaryFailed", Exit.START_FAILED, "step 1 failed"),
    ],
)
async def test_a_permanent_fault_leaves_its_reason_for_the_operator(
    tmp_path: Path, config: dict[str, Any], reason: str, status: Exit, says: str
) -> None:
    async with replica(tmp_path, wait=False, **config) as served:
        assert await served.exit_status() == status
        written = json.loads(served.termination_log.read_text())
        assert written["reason"] == reason
        assert says in written["message"]
        assert served.other == [], "a person gets a sentence, not a traceback"


async def test_a_taken_address_ends_the_start_and_leaves_no_engine(tmp_path: Path) -> None:
    async with replica(tmp_path) as first:
        async with replica(tmp_path, wait=False, listen=first.grpc_at) as second:
            assert await second.exit_status() == Exit.LISTEN
            assert json.loads(second.termination_log.read_text())["reason"] == "AddressUnavailable"


async def test_sigterm_ends_a_process_that_has_hardly_begun() -> None:
    """As PID 1, to which the kernel gives only what it has a handler for: here SIGTERM is ignored until there is one."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"trap '' TERM; exec {sys.executable} -m moefleet_runtime",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(until_it_catches, process.pid, signal.SIGTERM)
            process.terminate()
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    # Nothing was begun: it has not even read that it has no configuration.
    assert (process.returncode, said) == (0, b"")


def until_it_catches(pid: int, number: signal.Signals) -> None:
    """Raises FileNotFoundError when it ends before."""
    caught = 0
    while not caught >> (number - 1) & 1:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(x for x in status.splitlines() if x.startswith("SigCgt:")).split()[1], 16)
        time.sleep(0.001)
