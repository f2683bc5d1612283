"""A real replica on loopback: what clients of both generating services get."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc
from moefleet_runtime.serving.listening import make_server
from moefleet_runtime_rig import (
    ReplicaProcess,
    ask,
    ask_trtllm,
    first_response_frames,
    generate_request,
    replica,
    trtllm_request,
)
from moefleet_runtime_rig.process import POD_UID
from moefleet_runtime_rig.wire import HEADERS
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import trtllm_service_pb2 as trt

# 128K ids of DeepSeek-V2's vocabulary, with one left to generate.
LONGEST = 131071


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ReplicaProcess]:
    # A fast replica with a small batch, so that queues are easy to fill.
    args = {"calibration": {"base": "deepseek-v2-8xh800", "limits": {"maxSequences": 4}}, "speed": 4.0}
    async with replica(tmp_path, args=args, limits={"queuedRequests": 3}) as running:
        yield running


async def test_tokens_stream_with_usage_at_the_end_and_the_pod_at_the_beginning(
    served: ReplicaProcess,
) -> None:
    answer = await ask(served.inference, generate_request(max_tokens=50))
    assert answer.code is grpc.StatusCode.OK
    assert len(answer.tokens) == 50
    assert len(answer.messages) > 1
    first, last = answer.messages[0], answer.messages[-1]
    assert first.request_id
    assert not first.HasField("usage")
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 50)
    assert [m.request_id for m in answer.messages[1:]] == [""] * (len(answer.messages) - 1)
    assert answer.initial["x-moefleet-pod"] == POD_UID
    assert answer.trailers["x-usage-prompt-tokens"] == "3"
    assert answer.trailers["x-usage-completion-tokens"] == "50"
    assert answer.trailers["x-usage-cached-tokens"] == "0"


async def test_both_services_give_the_same_tokens(served: ReplicaProcess) -> None:
    ours = await ask(served.inference, generate_request((400, 401), max_tokens=40))
    theirs = await ask_trtllm(served.trtllm, trtllm_request((400, 401), max_tokens=40, request_id="a"))
    whole = await ask_trtllm(served.trtllm, trtllm_request((400, 401), max_tokens=40, streaming=False))
    assert len(ours.tokens) == 40
    assert theirs.tokens == ours.tokens
    assert list(theirs.messages[-1].complete.output_token_ids) == ours.tokens
    assert theirs.messages[-1].complete.finish_reason == "length"
    assert {m.request_id for m in theirs.messages} == {"a"}
    assert len(whole.messages) == 1
    assert list(whole.messages[0].complete.output_token_ids) == ours.tokens
    assert theirs.trailers["x-usage-completion-tokens"] == "40"


async def test_a_stop_token_ends_the_answer_and_trtllm_leaves_it_out(served: ReplicaProcess) -> None:
    whole = await ask(served.inference, generate_request((400, 401), max_tokens=20))
    stop = whole.tokens[6]
    at = whole.tokens.index(stop)
    request = generate_request((400, 401), max_tokens=20)
    request.stopping.stop_token_ids.append(stop)
    ours = await ask(served.inference, request)
    assert ours.tokens == whole.tokens[: at + 1]
    assert ours.messages[-1].finish_reason == pb.FINISH_REASON_STOP
    theirs = await ask_trtllm(served.trtllm, trtllm_request((400, 401), max_tokens=20, stop_token_ids=[stop]))
    assert theirs.tokens == whole.tokens[:at]
    assert theirs.messages[-1].complete.finish_reason == "stop"
    assert theirs.messages[-1].complete.matched_token_id == stop
    kept = await ask_trtllm(
        served.trtllm,
        trtllm_request((400, 401), 20, stop_token_ids=[stop], include_stop_token_in_output=True),
    )
    assert kept.tokens == whole.tokens[: at + 1]


async def test_text_goes_in_and_the_same_text_comes_out_of_its_tokens(served: ReplicaProcess) -> None:
    answer = await ask(served.inference, generate_request("Größe ra kobu 🎉", max_tokens=9))
    assert answer.text.startswith(" ")
    counted = await served.inference.CountTokens(pb.CountTokensRequest(model="chat-model", text=answer.text))
    # The begin token, and one for each made word.
    assert counted.tokens == 10
    by_long_name = generate_request("Größe ra kobu 🎉", max_tokens=9, model="team/chat-model")
    assert (await ask(served.inference, by_long_name)).tokens == answer.tokens


async def test_a_prompt_of_128k_ids_passes(served: ReplicaProcess) -> None:
    ids = [300 + i % 100_000 for i in range(LONGEST)]
    answer = await ask(served.inference, generate_request(ids, max_tokens=1))
    assert answer.messages[-1].usage.prompt_tokens == LONGEST
    assert len(answer.tokens) == 1
    theirs = await ask_trtllm(served.trtllm, trtllm_request(ids, max_tokens=1))
    assert theirs.tokens == answer.tokens
    again = await ask(served.inference, generate_request(ids, max_tokens=1))
    cached = again.messages[-1].usage.cached_prompt_tokens
    assert LONGEST - 64 <= cached < LONGEST


async def test_bad_requests_are_told_every_fault_and_never_reach_the_engine(served: ReplicaProcess) -> None:
    def with_(**fields: float) -> pb.GenerateRequest:
        request = generate_request()
        for name, value in fields.items():
            part = request.stopping if name == "max_tokens" else request.sampling
            setattr(part, name, value)
        return request

    neither = generate_request()
    neither.ClearField("token_ids")
    table: list[tuple[pb.GenerateRequest, str]] = [
        (generate_request(()), "token_ids.ids"),
        (generate_request(""), "prompt"),
        (neither, "input"),
        (generate_request([300] * (LONGEST + 1)), "token_ids.ids"),
        (generate_request("x" * (1 << 20)), "prompt"),
        (generate_request((300, 102400)), "token_ids.ids[1]"),
        (generate_request(max_tokens=-1), "stopping.max_tokens"),
        (generate_request(max_tokens=0), "stopping.max_tokens"),
        (generate_request(max_tokens=131072), "stopping.max_tokens"),
        (with_(temperature=-1.0), "sampling.temperature"),
        (with_(temperature=float("nan")), "sampling.temperature"),
        (with_(top_p=0.0), "sampling.top_p"),
        (with_(top_p=1.5), "sampling.top_p"),
        (generate_request(model=""), "model"),
        (generate_request(request_id="i" * 257), "request_id"),
        (generate_request(cache_salt="s" * 257), "cache_salt"),
    ]
    # The canary's four tokens.
    before = await served.sample_when(lambda s: s.output_tokens_total == 4)
    stub = served.inference
    for request, field in table:
        answer = await ask(stub, request)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, (field, answer)
        assert list(answer.violations()) == [field]
        assert answer.reason == "INVALID_REQUEST"
        assert "x-moefleet-refused" not in answer.trailers
    both = with_(temperature=-1.0, max_tokens=-5)
    assert set((await ask(stub, both)).violations()) == {"sampling.temperature", "stopping.max_tokens"}
    # One more request, so that what the engine knows is newer than the bad ones.
    assert len((await ask(stub, generate_request())).tokens) == 8
    after = await served.sample_when(lambda s: s.output_tokens_total >= 12 and s.active == 0)
    assert after.prompt_tokens_total == before.prompt_tokens_total + 3
    assert after.output_tokens_total == before.output_tokens_total + 8
    # The one whose text had to be counted first, and the good one.
    assert after.admitted_total == 2
    told = after.outcomes
    assert (told.ended, told.failed, told.first_tokens, told.paced) == (1, 0, 1, 1)
    assert told.ttft_s > 0
    assert told.tpot_s_squared == pytest.approx(told.tpot_s**2)


async def test_trtllm_refuses_by_name_what_it_would_have_to_leave_out(served: ReplicaProcess) -> None:
    table = [
        (trtllm_request((), 5), "tokenized.input_token_ids"),
        (trtllm_request(max_tokens=0), "max_tokens"),
        (trtllm_request(stop=[""]), "stop[0]"),
        (trtllm_request(bad_token_ids=[3]), "bad_token_ids"),
        (trtllm_request(sampling_config=trt.SamplingConfig(beam_width=4)), "sampling_config.beam_width"),
        (trtllm_request(sampling_config=trt.SamplingConfig(min_p=1.5)), "sampling_config.min_p"),
        # What the Simulated engine has no way to do.
        (trtllm_request(sampling_config=trt.SamplingConfig(min_tokens=2)), "sampling_config.min_tokens"),
        (trtllm_request(output_config=trt.OutputConfig(logprobs=1)), "output_config.logprobs"),
        (
            trtllm_request(guided_decoding=trt.GuidedDecodingParams(guide="{}")),
            "guided_decoding.guide_type",
        ),
    ]
    for request, field in table:
        answer = await ask_trtllm(served.trtllm, request)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, field
        assert list(answer.violations()) == [field]
    neutral = trt.SamplingConfig(beam_width=1, num_return_sequences=1, repetition_penalty=1.0, min_p=0.0)
    assert len((await ask_trtllm(served.trtllm, trtllm_request(sampling_config=neutral))).tokens) == 8


async def test_a_replica_without_a_checkpoint_has_no_tokenizer_to_give_and_says_so(
    served: ReplicaProcess,
) -> None:
    call = served.trtllm.GetTokenizer(common_pb2.GetTokenizerRequest())
    assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "its tokenizer is built in" in await call.details()


async def test_an_unknown_model_is_not_found_with_the_known_names(served: ReplicaProcess) -> None:
    answer = await ask(served.inference, generate_request(model="chat-modle"))
    assert answer.code is grpc.StatusCode.NOT_FOUND
    info = answer.details[error_details_pb2.ErrorInfo]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata["models"] == "chat-model,team/chat-model"


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({"x-moefleet-pod-uids": "another,third"}, "wrong-pod"),
        ({"x-moefleet-model": "another-model"}, "wrong-model"),
        ({"x-moefleet-pod-uids": POD_UID, "x-moefleet-model": "another-model"}, "wrong-model"),
    ],
)
async def test_what_was_meant_for_another_is_refused_before_the_first_byte(
    served: ReplicaProcess, metadata: dict[str, str], refused: str
) -> None:
    for answer in (
        await ask(served.inference, generate_request(), metadata=tuple(metadata.items())),
        await ask_trtllm(served.trtllm, trtllm_request(), metadata=tuple(metadata.items())),
    ):
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.trailers["x-moefleet-refused"] == refused
        assert answer.initial == {}
    frames = await first_response_frames(
        served.grpc_at, "/moefleet.inference.v1.InferenceService/Generate", generate_request(), metadata
    )
    # One HEADERS frame that ends the stream: what Envoy's retriable-headers can see.
    assert [(f.kind, f.ends_stream) for f in frames] == [(HEADERS, True)]
    sample = await served.sample()
    assert sample.refused_total == 3
    assert sample.admitted_total == 0


async def test_the_right_address_among_several_is_served(served: ReplicaProcess) -> None:
    metadata = (("x-moefleet-pod-uids", f"other,{POD_UID}"), ("x-moefleet-model", "chat-model"))
    answer = await ask(served.inference, generate_request(), metadata=metadata)
    assert answer.code is grpc.StatusCode.OK
    assert len(answer.tokens) == 8


async def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    args = {"calibration": {"base": "deepseek-v2-8xh800", "limits": {"maxSequences": 2}}, "speed": 0.05}
    async with replica(tmp_path, args=args, limits={"queuedRequests": 3}) as served:
        stub = served.inference
        calls = [stub.Generate(generate_request((300 + i,), max_tokens=2000)) for i in range(2)]
        for call in calls:
            await call.read()
        calls += [stub.Generate(generate_request((400 + i,), max_tokens=2000)) for i in range(3)]
        waiting = [asyncio.ensure_future(call.read()) for call in calls[2:]]
        sample = await served.sample_when(lambda s: s.queued == 3)
        assert sample.active == 2
        answer = await ask(stub, generate_request((500,)))
        assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert answer.trailers["x-moefleet-refused"] == "full"
        assert answer.reason == "QUEUE_FULL"
        retry = answer.details[error_details_pb2.RetryInfo]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToNanoseconds() > 0
        assert error_details_pb2.QuotaFailure in answer.details
        # The place of one that goes is taken by the next that comes.
        for call in calls:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await served.sample_when(lambda s: s.active + s.queued == 0)
        assert (await ask(stub, generate_request((500,)))).code is grpc.StatusCode.OK


async def test_cancelling_and_deadlines_free_the_engine(tmp_path: Path) -> None:
    # Steps of about 130 ms: slow enough that nothing ends by itself within this test.
    async with replica(tmp_path, args={"speed": 0.1}) as served:
        stub = served.inference
        call = stub.Generate(generate_request(max_tokens=100_000))
        await call.read()
        held = await served.sample_when(lambda s: s.outstanding_decode_tokens > 90_000)
        assert (held.active, held.queued) == (1, 0)
        call.cancel()
        freed = await served.sample_when(lambda s: s.active == 0 and s.outstanding_decode_tokens == 0)
        assert freed.kv_used_tokens == 0
        late = await ask(stub, generate_request(max_tokens=100_000), timeout=0.5)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
        freed = await served.sample_when(lambda s: s.active == 0 and s.outstanding_decode_tokens == 0)
        assert freed.admitted_total == 2
        assert freed.cut_total == 0


async def test_abort_ends_the_stream_that_has_the_id(tmp_path: Path) -> None:
    async with replica(tmp_path, args={"speed": 0.2}) as served:
        stub = served.trtllm
        call = stub.Generate(trtllm_request(max_tokens=50_000, request_id="mine"))
        await call.read()
        twin = await ask_trtllm(stub, trtllm_request(request_id="mine"))
        assert twin.code is grpc.StatusCode.ALREADY_EXISTS
        unknown = await stub.Abort(trt.AbortRequest(request_id="other"))
        assert not unknown.success
        assert (await stub.Abort(trt.AbortRequest(request_id="mine"))).success
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert int(dict(await call.trailing_metadata())["x-usage-completion-tokens"]) > 0
        line = await served.event("request ended", outcome="cancelled")
        assert (line["request_id"], line["prompt_tokens"]) == ("mine", 3)
        assert (await served.event("request ended", outcome="refused"))["reason"] == "REQUEST_ID_RUNS"
        await served.sample_when(lambda s: s.active == 0 and s.outstanding_decode_tokens == 0)
        ours = served.inference.Generate(generate_request(max_tokens=50_000, request_id="ours"))
        await ours.read()
        assert (await stub.Abort(trt.AbortRequest(request_id="ours"))).success
        last = message = await ours.read()
        while message is not grpc.aio.EOF:
            last, message = message, await ours.read()
        assert last.finish_reason == pb.FINISH_REASON_CANCELLED
        assert last.usage.completion_tokens > 0


async def test_a_stream_that_lasts_too_long_ends_with_a_clear_status(tmp_path: Path) -> None:
    async with replica(
        tmp_path, args={"speed": 0.2}, limits={"streamDurationS": 0.7}, drainTimeoutS=1
    ) as served:
        answer = await ask(served.inference, generate_request(max_tokens=50_000))
        assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answer.reason == "STREAM_DURATION_EXCEEDED"
        assert "0.7 s" in answer.message
        assert int(answer.trailers["x-usage-completion-tokens"]) >= len(answer.tokens) > 0
        line = await served.event("request ended", outcome="late")
        assert (line["status"], line["reason"]) == ("DEADLINE_EXCEEDED", "STREAM_DURATION_EXCEEDED")
        assert line["output_tokens"] == int(answer.trailers["x-usage-completion-tokens"])
        await served.sample_when(lambda s: s.active == 0 and s.outstanding_decode_tokens == 0)


async def test_a_client_that_does_not_read_loses_its_place(tmp_path: Path) -> None:
    """What it was sent fills the buffers between, and there the replica waits for it, but not for ever."""
    # A few seconds fill them: 64 KiB at the replica, and a client that takes no more than this ahead.
    small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))
    async with (
        replica(tmp_path, args={"speed": 50.0}, limits={"streamDurationS": 10}, drainTimeoutS=10) as served,
        grpc.aio.insecure_channel(served.grpc_at, options=small) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(generate_request(max_tokens=100_000))
        await call.read()
        line = await served.event("readers stalled")
        assert line["requests"] == 1
        await served.sample_when(lambda s: s.active == 0 and s.outstanding_decode_tokens == 0)
        assert (await ask(served.inference, generate_request())).code is grpc.StatusCode.OK
        call.cancel()


async def test_what_is_too_large_is_refused_and_every_refusal_can_be_read(served: ReplicaProcess) -> None:
    stub = served.inference
    heavy = await ask(stub, generate_request(), metadata=(("x-something", "y" * (17 << 10)),))
    assert heavy.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    big = await ask(stub, generate_request("x" * (33 << 20)))
    assert big.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    name = await ask(stub, generate_request(model="m" * (1 << 20)))
    assert name.code is grpc.StatusCode.NOT_FOUND
    assert len(name.message) < 1100
    # Each is worth a violation; all of them would be more than a client takes of a status.
    many = generate_request()
    many.stopping.stop_token_ids.extend(range(200_000, 200_128))
    answer = await ask(stub, many)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(answer.violations())) == "stopping.stop_token_ids[0]"
    assert answer.message.endswith("more")
    health = health_pb2_grpc.HealthStub(served.channel())
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health.Check(health_pb2.HealthCheckRequest(service="s" * (1 << 20)))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    aborted = await served.trtllm.Abort(trt.AbortRequest(request_id="r" * (1 << 20)))
    assert not aborted.success
    assert len(aborted.message) < 400
    assert (await ask(stub, generate_request())).code is grpc.StatusCode.OK


async def test_more_calls_than_a_server_takes_are_refused() -> None:
    """Two, where a replica takes thousands."""
    server = make_server(2)
    gate = asyncio.Event()

    class Waits(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
        async def Check(self, request: Any, context: Any) -> Any:
            await gate.wait()
            return health_pb2.HealthCheckResponse()

    health_pb2_grpc.add_HealthServicer_to_server(Waits(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Check(health_pb2.HealthCheckRequest()) for _ in range(3)]
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(call.code()) for call in calls], return_when=asyncio.FIRST_COMPLETED
        )
        assert {one.result() for one in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        gate.set()
        ended = [(await call.code()).name for call in calls]
        assert sorted(ended) == ["OK", "OK", "RESOURCE_EXHAUSTED"]
    await server.stop(0)


async def test_health_reflection_information_and_metrics(served: ReplicaProcess) -> None:
    health = health_pb2_grpc.HealthStub(served.channel())
    for service in (
        "",
        "readiness",
        "liveness",
        "moefleet.inference.v1.InferenceService",
        "trtllm.TrtllmService",
    ):
        status = (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
        assert status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health.Check(health_pb2.HealthCheckRequest(service="redines"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {s.name for s in (await call.read()).list_services_response.service}
    assert {
        "moefleet.inference.v1.InferenceService",
        "trtllm.TrtllmService",
        "grpc.health.v1.Health",
    } <= names
    assert "moefleet.replica.v1.ReplicaService" not in names
    model = (await served.inference.GetModel(pb.GetModelRequest(model="chat-model"))).model
    assert (model.name, model.fleet, model.engine) == ("chat-model", "team/chat", "Simulated")
    assert (model.context_length, model.vocabulary_size) == (131072, 102400)
    assert list((await served.inference.ListModels(pb.ListModelsRequest())).models) == [model]
    info = await served.trtllm.GetModelInfo(trt.GetModelInfoRequest())
    assert (info.model_id, info.max_seq_len, info.vocab_size, info.max_batch_size) == (
        "chat-model",
        131072,
        102400,
        4,
    )
    assert (await served.trtllm.HealthCheck(trt.HealthCheckRequest())).status == "OK"
    assert (await served.trtllm.GetServerInfo(trt.GetServerInfoRequest())).world_size == 1
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await served.trtllm.Embed(trt.EmbedRequest())
    assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await ask(served.inference, generate_request(max_tokens=5))
    await ask(served.inference, generate_request(), metadata=(("x-moefleet-model", "other"),))
    idle = {
        f'{name}{{model_name="chat-model"}}': "0.0"
        for name in (
            "trtllm_num_requests_running",
            "trtllm_num_requests_waiting",
            "trtllm_kv_cache_utilization",
        )
    }
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        # What the engine does, its host tells ten times a second.
        while True:
            text = await (await http.get(f"http://{served.metrics_at}/metrics")).text()
            values = dict(
                line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
            )
            if idle.items() <= values.items():
                break
            await asyncio.sleep(0.05)
    assert values['moefleet_runtime_state{state="Serving"}'] == "1.0"
    assert values['moefleet_runtime_requests_total{outcome="length"}'] == "1.0"
    assert values['moefleet_runtime_refused_total{reason="wrong-model"}'] == "1.0"
    assert values["moefleet_runtime_streams_cut_total"] == "0.0"
    assert values["moefleet_runtime_time_to_first_token_seconds_count"] == "1.0"
    assert values["moefleet_runtime_time_per_output_token_seconds_count"] == "1.0"
    assert float(values['trtllm_kv_cache_max_blocks{model_name="chat-model"}']) > 0


async def test_two_thousand_at_once_are_all_answered(tmp_path: Path) -> None:
    """grpc's own limit of pending requests would cancel some of them at random."""
    async with replica(tmp_path, args={"speed": 2.0}, limits={"queuedRequests": 2000}) as served:
        stub = served.inference
        answers = await asyncio.gather(
            *(ask(stub, generate_request((300 + i,), max_tokens=1)) for i in range(2000))
        )
        assert {a.code for a in answers} == {grpc.StatusCode.OK}
        assert (await served.sample()).admitted_total == 2000
