"""The OpenAI edge: the official client, a real Envoy, picker and SMG; behind them a Torch replica of the tiny checkpoint
(model chat-model), and replicas that do what a test says (model fake)."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from moefleet_gateway_rig import FakeReplica, Rig, until
from moefleet_runtime.serving.tokenizer_bundle import make_bundle
from moefleet_runtime_rig import ReplicaProcess, ask_trtllm, replica, trtllm_request
from moefleet_testing.torch_engine import CHECKPOINT
from transformers import AutoTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the processes are started once
ASKED: list[Any] = [{"role": "user", "content": "Tell me of Emma."}]
TOKENIZER: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
PATIENCE_S = 60.0
# Messages that a replica may still make for a client that is gone.
FEW = 8


class Served:
    def __init__(self, rig: Rig, pod: ReplicaProcess, fake: FakeReplica) -> None:
        self.rig = rig
        self.pod = pod
        self.fake = fake
        self.client = openai.AsyncOpenAI(
            base_url=rig.openai_url, api_key="any", max_retries=0, timeout=PATIENCE_S
        )

    async def chat(self, model: str = "chat-model", **more: Any) -> Any:
        return await self.client.chat.completions.create(
            model=model, messages=ASKED, **{"max_tokens": 24, "temperature": 0, **more}
        )

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of what comes back."""
        url = self.rig.openai_url.removesuffix("/v1") + path
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=data, headers={"content-type": "application/json", **headers}) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, json.loads(await response.read()), headers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(
            replica(
                tmp_path_factory.mktemp("pod"),
                engine="Torch",
                args={"blocks": 256, "threads": 1},
                model={"source": CHECKPOINT.as_uri(), "contextLength": 4096},
            )
        )
        rig = Rig()
        stack.push_async_callback(rig.close)
        rig.world.fleet("chat", "chat-model", "team", contextLength=4096)
        rig.world.fleet("fake", "fake", limits={"hold": "2s", "queuedRequests": 2})
        entry = {"uid": "uid-of-this-pod", "fleet": "team/chat", "address": pod.grpc_at}
        rig.world.replicas = [{**entry, "control": pod.control_at}]
        rig.world.write()
        await rig.start_openai()
        fake = await rig.replica(
            "fake-0",
            model="fake",
            fleet="default/fake",
            complete=True,
            tokenizer=make_bundle(CHECKPOINT).data,
        )
        served = Served(rig, pod, fake)
        await serves(served, "chat-model", "fake")
        yield served


@pytest.fixture
def served(whole: Served) -> Served:
    """What the test before left of the replica's behaviour is gone."""
    whole.fake.change(messages=3, message_s=0.0, first_s=0.0, refuse="", queued=0)
    whole.fake.seen.clear()
    return whole


async def serves(served: Served, *models: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await _listed(served) != set(models):  # noqa: ASYNC110  (another process's state)
            await asyncio.sleep(0.1)


async def _listed(served: Served) -> set[str]:
    try:
        return {model.id async for model in served.client.models.list()}
    except openai.InternalServerError as error:
        # What SMG says before the gateway has told it of any model.
        if "no_models_available" not in str(error):
            raise
        return set()


async def test_a_chat_is_the_prompt_of_its_own_template_and_says_its_usage(served: Served) -> None:
    prompt = TOKENIZER.apply_chat_template(
        ASKED, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    direct = await ask_trtllm(served.pod.trtllm, trtllm_request(prompt, max_tokens=24, request_id="direct"))
    answer = await served.chat()
    assert answer.choices[0].message.content == TOKENIZER.decode(direct.tokens, skip_special_tokens=True)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "chat-model"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        len(prompt),
        24,
        len(prompt) + 24,
    )
    again = await served.chat(model="team/chat-model", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in again]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        answer.choices[0].message.content
    )
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(prompt), 24)


async def test_a_chat_that_names_no_length_gets_what_the_context_leaves(served: Served) -> None:
    """SMG asks for 2,048 tokens then: here they do not fit, and nobody asked for them."""
    long: list[Any] = [{"role": "user", "content": "Emma was. " * 800}]
    answer = await served.client.chat.completions.create(
        model="chat-model", messages=long, temperature=0, stop=["a", "e"]
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 4096 - 2048
    assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="leaves"):
        await served.client.chat.completions.create(model="chat-model", messages=long, max_tokens=2048)


async def test_a_seed_gives_the_same_chances_again(served: Served) -> None:
    async def said(**more: Any) -> str:
        answer = await served.chat(temperature=1.0, max_tokens=40, **more)
        return str(answer.choices[0].message.content)

    first = await said(seed=7)
    assert await said(seed=7) == first
    assert len({first, await said(seed=8), await said(seed=-7)}) == 3
    with pytest.raises(openai.BadRequestError, match="64 bits"):
        await said(seed=1 << 64)


async def test_completions_take_one_prompt_or_several(served: Served) -> None:
    text = "It is a truth universally acknowledged, that a single man"
    prompt = TOKENIZER(text, add_special_tokens=False).input_ids
    more: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    one = await served.client.completions.create(model="chat-model", prompt=text, **more)
    assert one.usage is not None
    # SMG adds no begin of text to a bare prompt.
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (len(prompt), 12)
    two = await served.client.completions.create(model="chat-model", prompt=[text, "Emma was"], **more)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    stream = await served.client.completions.create(model="chat-model", prompt=text, stream=True, **more)
    assert "".join([c.choices[0].text async for c in stream if c.choices]) == one.choices[0].text


async def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"married": {"type": "boolean"}},
        "required": ["married"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "note", "parameters": schema}}
    chosen = {"type": "function", "function": {"name": "note"}}
    answer = await served.chat(tools=[tool], tool_choice=chosen, max_tokens=64)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "note"
    assert set(json.loads(call.function.arguments)) == {"married"}
    stream = await served.chat(tools=[tool], tool_choice=chosen, max_tokens=64, stream=True)
    deltas = [c.choices[0].delta async for c in stream if c.choices]
    parts = [call.function for d in deltas for call in d.tool_calls or ()]
    assert [part.name for part in parts if part.name] == ["note"]
    assert set(json.loads("".join(part.arguments or "" for part in parts))) == {"married"}


async def test_only_the_listed_paths_are_open(served: Served) -> None:
    for path in (
        "/workers",
        "/v1/tokenizers",
        "/v1/embeddings",
        "/v1/models",
        "/flush_cache",
        "/v1/responses",
    ):
        status, body, _ = await served.post(path, {"model": "fake", "url": "grpc://127.0.0.1:1"})
        assert (status, body["error"]["code"]) == (404, "not_found"), path
    assert {model.id async for model in served.client.models.list()} == {"chat-model", "fake"}


async def test_wrong_requests_are_refused_in_openais_words_and_reach_no_replica(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await served.chat(model="gpt-5")
    assert unknown.value.code == "model_not_found"
    assert "known models: chat-model, fake" in unknown.value.message
    chat, path = {"model": "fake", "messages": ASKED}, "/v1/chat/completions"
    for body, status in (
        (b"{", 400),
        ({"messages": ASKED}, 400),
        ({**chat, "rid": "forged"}, 403),
        ({**chat, "messages": "none"}, 400),
        (b" " * (6 << 20), 413),
    ):
        found, answer, _ = await served.post(path, body)
        assert (found, set(answer["error"]) >= {"message", "type", "code"}) == (status, True), answer
    assert [seen.method for seen in served.fake.seen] == []


async def test_headers_of_clients_steer_nothing(served: Served) -> None:
    status, _, headers = await served.post(
        "/v1/chat/completions",
        {"model": "fake", "messages": ASKED},
        **{
            "x-request-id": "mine",
            "x-moefleet-fleet": "team/chat",
            "x-moefleet-pod-uids": "uid-of-this-pod",
            "x-gateway-destination-endpoint": served.pod.grpc_at,
            "authorization": "Bearer secret",
        },
    )
    assert status == 200
    assert not [name for name in headers if name.startswith(("x-smg-", "x-moefleet-", "x-envoy-"))]
    (seen,) = served.fake.seen
    assert seen.headers["x-moefleet-pod-uids"] == "fake-0"
    assert seen.headers["x-moefleet-cluster"] == "default/fake"
    assert seen.request.request_id.startswith("mfo.")
    assert seen.headers["x-moefleet-open-ended"] == "1"
    assert "authorization" not in seen.headers


async def test_a_client_that_goes_away_stops_the_replica_within_a_few_messages(served: Served) -> None:
    served.fake.change(messages=1000, message_s=0.05)
    finished, sent = served.fake.finished, served.fake.sent
    stream = await served.chat("fake", stream=True)
    got = 0
    async for chunk in stream:
        got += bool(chunk.choices and chunk.choices[0].delta.content)
        if got == 3:
            break
    await stream.close()
    await until(lambda: served.fake.aborted and served.fake.active == 0, "the replica is told")
    asked, abort = served.fake.seen
    assert (asked.method, abort.method) == ("trtllm.Generate", "Abort")
    assert abort.request.request_id == asked.request.request_id
    assert served.fake.finished == finished
    assert served.fake.sent - sent <= got + FEW
    # The real one too, long before its 3,000 tokens.
    before = await served.rig.metric("moefleet_gateway_output_tokens_total", fleet="chat")
    stream = await served.chat(max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
    await anext(aiter(stream))
    await stream.close()
    await served.rig.metric_is(0, "moefleet_gateway_in_flight_requests", fleet="chat")
    made = await served.rig.metric("moefleet_gateway_output_tokens_total", fleet="chat") - before
    assert made < 1500


async def test_a_client_that_goes_away_while_it_waits_waits_no_more(served: Served) -> None:
    served.fake.change(queued=1000)
    await until(lambda: served.fake.active == 0)
    await asyncio.sleep(0.5)  # the replica's sample is on its way
    waiting = asyncio.create_task(served.chat("fake"))
    await served.rig.metric_is(1, "moefleet_gateway_queue_requests", fleet="fake")
    waiting.cancel()
    await served.rig.metric_is(0, "moefleet_gateway_queue_requests", fleet="fake")
    assert [seen.method for seen in served.fake.seen] == []


async def test_refusals_keep_their_status_and_when_to_come_again_and_are_picked_once(served: Served) -> None:
    """SMG would try five times, and close the whole fleet after ten."""
    served.fake.change(refuse="not-serving")
    before = await served.rig.metric("moefleet_gateway_requests_total", fleet="fake")
    for _ in range(12):
        with pytest.raises(openai.InternalServerError) as caught:
            await served.chat("fake")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
    assert await served.rig.metric("moefleet_gateway_requests_total", fleet="fake") == before + 12
    served.fake.change(refuse="")
    assert (await served.chat("fake")).choices[0].finish_reason == "stop"


async def test_a_full_fleet_says_429_with_the_pickers_own_time(served: Served) -> None:
    served.fake.change(queued=1000)
    await asyncio.sleep(0.5)
    with pytest.raises(openai.RateLimitError) as caught:
        await served.chat("fake")
    assert "stayed full for 2 s (limits.hold)" in caught.value.message
    # Half of what the oldest waited, in whole seconds; 1 would be the edge's word for "nobody said".
    assert caught.value.response.headers["retry-after"] == "2"


async def test_a_fleet_that_sleeps_is_woken_by_a_chat_and_counts_it_once(served: Served) -> None:
    """Nobody ever had its tokenizer."""
    rig = served.rig
    rig.world.fleet("asleep", "asleep")
    await until(lambda: True)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            waiting = asyncio.create_task(served.chat("asleep"))
            await asyncio.wait({waiting}, timeout=1.0)
            if not waiting.done():
                break
            with pytest.raises(openai.NotFoundError):  # the picker reads its file ten times a second
                await waiting
    assert await rig.metric("moefleet_gateway_queue_requests", fleet="asleep") == 1
    pod = await rig.replica(
        "asleep-0", model="asleep", fleet="default/asleep", complete=True, tokenizer=served.fake.tokenizer
    )
    assert (await waiting).choices[0].finish_reason == "stop"
    assert await rig.metric("moefleet_gateway_requests_total", fleet="asleep") == 1
    await serves(served, "chat-model", "fake", "asleep")
    rig.world.remove(pod)
    rig.world.fleets = [f for f in rig.world.fleets if f["name"] != "asleep"]
    rig.world.write()
    await serves(served, "chat-model", "fake")


async def test_a_rollout_that_brings_another_chat_template_is_noticed(served: Served, tmp_path: Path) -> None:
    rig = served.rig
    await served.chat("fake")
    before = list(served.fake.seen[0].request.tokenized.input_token_ids)
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(CHECKPOINT / name, tmp_path / name)
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": "Now: {{ messages[0]['content'] }}"})
    )
    wanted = TOKENIZER("Now: Tell me of Emma.", add_special_tokens=False).input_ids
    assert wanted != before
    new = await rig.replica(
        "fake-1", model="fake", fleet="default/fake", complete=True, tokenizer=make_bundle(tmp_path).data
    )
    rig.world.remove(served.fake)
    # One that is in SMG when the tokenizer changes is told to come again, as clients do by themselves.
    client = served.client.with_options(max_retries=2)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await client.chat.completions.create(model="fake", messages=ASKED)
            asked = [seen.request for seen in new.seen if seen.method == "trtllm.Generate"]
            if asked and list(asked[-1].tokenized.input_token_ids) == wanted:
                break
            await asyncio.sleep(0.1)
    rig.world.replica(served.fake)
    rig.world.remove(new)


async def test_a_picker_that_dies_cuts_no_answer(served: Served) -> None:
    served.fake.change(messages=40, message_s=0.1)
    stream = await served.chat("fake", stream=True)
    first = await anext(aiter(stream))
    assert first.choices
    await served.rig.kill_picker()
    await served.rig.start_picker()
    rest = [c async for c in stream]
    assert rest[-1].choices[0].finish_reason == "stop"
    await served.rig.wait_ready()
    served.fake.change(messages=3, message_s=0.0)
    await serves(served, "chat-model", "fake")
    await again(served)


async def test_smg_that_dies_is_told_everything_again(served: Served) -> None:
    await served.rig.kill_smg()
    status, body, headers = await served.post("/v1/chat/completions", {"model": "fake", "messages": ASKED})
    # Envoy's word, or the picker's, which has noticed already and would have waited for it.
    assert (status, body["error"]["type"]) == (503, "server_error")
    assert body["error"]["code"] in ("gateway_unavailable", "no_tokenizer")
    assert int(headers["retry-after"]) >= 1
    await served.rig.start_smg()
    await again(served)


async def again(served: Served) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                answer = await served.chat("fake")
                break
            except openai.InternalServerError:
                # Never NotFoundError: the fleet is there all the while, and clients do not come again after it.
                await asyncio.sleep(0.2)
    assert answer.choices[0].finish_reason == "stop"


async def test_a_gateway_pod_that_goes_lets_its_answers_end(served: Served) -> None:
    """Last: no request comes in after it."""
    rig = served.rig
    served.fake.change(messages=80, message_s=0.1)
    stream = await served.chat("fake", stream=True)
    await anext(aiter(stream))
    assert rig.envoy is not None
    rig.envoy.send_signal(signal.SIGTERM)
    rest = [c async for c in stream]
    assert rest[-1].choices[0].finish_reason == "stop"
    assert await rig.envoy.wait() == 0
