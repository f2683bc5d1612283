"""What a model thinks before it answers comes apart from the answer: `gateway.openai.reasoningParser`, read by a real SMG."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from moefleet_gateway_rig import Rig
from moefleet_runtime.serving.tokenizer_bundle import make_bundle
from moefleet_testing.torch_engine import CHECKPOINT
from transformers import AutoTokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the processes are started once
TOKENIZER: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
PATIENCE_S = 60.0
THOUGHT, ANSWER = "They ask for Emma. She was clever.", "Emma was handsome and rich."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    """Of a fleet whose replica answers with a thought, its end mark and an answer."""
    rig = Rig(MOEFLEET_OPENAI_REASONING_PARSER="deepseek_r1")
    try:
        rig.world.fleet("thinks", "thinks")
        await rig.start_openai()
        tokens = tuple(TOKENIZER(f"{THOUGHT}</think>{ANSWER}", add_special_tokens=False).input_ids)
        await rig.replica(
            "thinks-0",
            model="thinks",
            fleet="default/thinks",
            complete=True,
            answer=tokens,
            messages=len(tokens),
            tokenizer=make_bundle(CHECKPOINT).data,
        )
        # Waits for the tokenizer at the edge: the first chat is asked when SMG may know nothing yet.
        yield openai.AsyncOpenAI(base_url=rig.openai_url, api_key="any", max_retries=5, timeout=PATIENCE_S)
    finally:
        await rig.close()


async def chat(client: openai.AsyncOpenAI, **more: Any) -> Any:
    asked: list[Any] = [{"role": "user", "content": "Tell me of Emma."}]
    return await client.chat.completions.create(model="thinks", messages=asked, max_tokens=200, **more)


async def test_a_thought_is_not_the_answer(client: openai.AsyncOpenAI) -> None:
    message = (await chat(client)).choices[0].message
    assert message.content.strip() == ANSWER
    assert message.reasoning_content.strip() == THOUGHT


async def test_a_stream_says_which_is_which(client: openai.AsyncOpenAI) -> None:
    deltas = [c.choices[0].delta async for c in await chat(client, stream=True) if c.choices]
    thought = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    answer = [delta.content or "" for delta in deltas]
    assert "".join(thought).strip() == THOUGHT
    assert "".join(answer).strip() == ANSWER
    assert len([part for part in thought if part]) > 1, "as it comes, not at its end"
