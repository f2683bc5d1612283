"""Through gRPC a replica gives transformers' greedy tokens: prompts of 1 to 4,000 tokens, alone and in a batch of 32, cold and
cached, beside requests that are aborted, and after making room for others. First differences are allowed where the oracle itself
could have chosen either (`torch_oracle.NEAR_TIE`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import torch
from moefleet_runtime_rig import Answer, ReplicaProcess, ask, generate_request, replica
from moefleet_testing.torch_engine import CHECKPOINT
from moefleet_testing.torch_oracle import TEXTS, assert_greedy
from transformers import AutoTokenizer, DeepseekV2ForCausalLM

# Around the edges of blocks (16) and of steps (256), and up to what the checkpoint takes.
LENGTHS = (1, 2, 15, 16, 17, 33, 100, 255, 256, 257, 1000, 2048, 4000)
BATCH = 32
TOKENS = 32
# So many that prompts which fit together outgrow the cache together.
MANY_TOKENS = 160
TOKENIZER: Any = AutoTokenizer.from_pretrained(CHECKPOINT)


class Oracle:
    """What was judged once is not computed again: nearly all ways give the very same answer."""

    def __init__(self) -> None:
        self._model: Any = DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self._judged: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def judge(self, prompt: Sequence[int], answer: Answer, *, cached: bool, tokens: int = TOKENS) -> None:
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert len(answer.tokens) == tokens
        assert (int(answer.trailers["x-usage-cached-tokens"]) > 0) is cached
        key = tuple(prompt), tuple(answer.tokens)
        if key not in self._judged:
            assert_greedy(self._model, prompt, answer.tokens)
            self._judged.add(key)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def prompt_of(number: int, length: int) -> list[int]:
    """Of the novels that the checkpoint learnt, beginning elsewhere for each number."""
    at = number % len(TEXTS)
    texts = " ".join((*TEXTS[at:], *TEXTS[:at]))
    ids = TOKENIZER(texts).input_ids
    return [*ids[:1], *islice(cycle(ids[1:]), number, number + length - 1)]


def served(tmp_path: Path, blocks: int) -> Any:
    return replica(
        tmp_path,
        engine="Torch",
        args={"blocks": blocks, "threads": 1},
        model={"source": CHECKPOINT.as_uri(), "contextLength": 4096},
    )


async def greedy(pod: ReplicaProcess, prompt: list[int], salt: str, tokens: int = TOKENS) -> Answer:
    request = generate_request(prompt, max_tokens=tokens, cache_salt=salt)
    request.stopping.ignore_eos = True
    return await ask(pod.inference, request)


async def test_alone_and_in_a_batch_cold_and_cached_beside_aborted_ones(
    tmp_path: Path, oracle: Oracle
) -> None:
    async with served(tmp_path, blocks=2048) as pod:
        for number, length in enumerate(LENGTHS):
            prompt = prompt_of(number, length)
            oracle.judge(prompt, await greedy(pod, prompt, f"alone {number}"), cached=False)
            # Whole blocks of what is before the last token.
            oracle.judge(prompt, await greedy(pod, prompt, f"alone {number}"), cached=length > 16)
        batch = [prompt_of(number, LENGTHS[number % len(LENGTHS)]) for number in range(BATCH)]
        beside = [pod.inference.Generate(generate_request((300 + i,), max_tokens=3000)) for i in range(4)]
        for call in beside:
            await call.read()
        asked = [asyncio.ensure_future(greedy(pod, prompt, f"batch {i}")) for i, prompt in enumerate(batch)]
        for call in beside:
            await call.read()
            call.cancel()
        for prompt, answer in zip(batch, await asyncio.gather(*asked), strict=True):
            oracle.judge(prompt, answer, cached=False)
        sample = await pod.sample_when(lambda s: s.active == 0)
        assert (sample.outcomes.failed, sample.cut_total) == (0, 0)


async def test_after_giving_way_to_others(tmp_path: Path, oracle: Oracle) -> None:
    """Room for one longest request: 32 of a few hundred tokens do not fit at once."""
    async with served(tmp_path, blocks=256) as pod:
        batch = [prompt_of(number, 150 + number) for number in range(BATCH)]
        answers = await asyncio.gather(
            *(greedy(pod, prompt, str(i), MANY_TOKENS) for i, prompt in enumerate(batch))
        )
        for prompt, answer in zip(batch, answers, strict=True):
            # What gave way may find its own beginning again.
            found = int(answer.trailers["x-usage-cached-tokens"]) > 0
            oracle.judge(prompt, answer, cached=found, tokens=MANY_TOKENS)
        async with aiohttp.ClientSession() as http:
            text = await (await http.get(f"http://{pod.metrics_at}/metrics")).text()
        (line,) = (line for line in text.splitlines() if line.startswith("moefleet_runtime_preempted_total{"))
        assert float(line.rsplit(" ", 1)[1]) > 0, "nobody gave way: the test shows nothing"
