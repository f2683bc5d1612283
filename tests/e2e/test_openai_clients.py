"""An OpenAI client against a release with the edge: chats of a real fleet, and an upgrade of the gateway under a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import openai
import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_e2e.fleets import tiny
from moefleet_e2e.kube import Kube, eventually, ready
from moefleet_e2e.release import Release
from moefleet_load.stream import End, generate
from moefleet_testing.torch_engine import CHECKPOINT
from transformers import AutoTokenizer

ASKED: list[Any] = [{"role": "user", "content": "Tell me of Emma."}]
TOKENS = 24
# About half a minute of the tiny checkpoint on a busy core: longer than the gateway pods need to be replaced.
LONG_TOKENS = 3000


async def test_openai_clients_chat_with_a_fleet_and_an_upgrade_cuts_no_stream(
    kube: Kube, release: Release, gateway: grpc.aio.Channel
) -> None:
    kube.apply(tiny("emma", kube.namespace))
    await ready(kube, "emma")
    await asyncio.to_thread(release.upgrade, "--set", "gateway.openai.enabled=true")
    client = openai.AsyncOpenAI(
        base_url=f"http://{release.gateway_address('openai')}/v1", api_key="any", max_retries=5, timeout=120
    )

    async def chat(**more: Any) -> Any:
        return await client.chat.completions.create(
            model=f"{kube.namespace}/emma", messages=ASKED, temperature=0, **more
        )

    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=True, return_dict=False)
    direct = await generate(
        gateway,
        pb.GenerateRequest(
            request_id="direct",
            model=f"{kube.namespace}/emma",
            token_ids=pb.TokenIds(ids=ids),
            stopping=pb.Stopping(max_tokens=TOKENS),
        ),
    )
    assert direct.end is End.OK, direct
    answer = await chat(max_tokens=TOKENS)
    assert answer.choices[0].message.content == direct.text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        len(ids),
        direct.completion_tokens,
    )
    assert "emma" in {model.id async for model in client.models.list()}
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nobody", messages=ASKED)

    stream = await chat(
        max_tokens=LONG_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    reading = asyncio.create_task(_read(stream))
    old = {pod["metadata"]["name"] for pod in release.pods("gateway")}
    # The pods of the gateway are replaced, SMG's container goes with them.
    await asyncio.to_thread(release.upgrade)
    finish, tokens = await reading
    assert (finish, tokens) == ("length", LONG_TOKENS)
    await eventually(
        "the old gateway pods end when their streams have",
        lambda: not old & {pod["metadata"]["name"] for pod in release.kube.list("pods", "")},
        120,
    )


async def _read(stream: Any) -> tuple[str | None, int]:
    finish, tokens = None, 0
    async for chunk in stream:
        if chunk.choices:
            finish = chunk.choices[0].finish_reason or finish
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return finish, tokens
