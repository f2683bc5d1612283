"""A real replica process with the Torch engine and the tiny checkpoint: what a client gets over gRPC."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime_rig import ReplicaProcess, ask, ask_trtllm, generate_request, replica, trtllm_request
from moefleet_testing.torch_engine import CHECKPOINT
from smg_grpc_proto.generated import trtllm_service_pb2 as trt
from transformers import AutoTokenizer, DeepseekV2ForCausalLM

TEXTS = (
    "Emma was",
    "It is a truth universally acknowledged, that a single man",
    "“My dear Mr. Bennet,” said his lady",
)
NEAR_TIE = 1e-3


def torch_replica(tmp_path: Path, *, source: Path = CHECKPOINT, **changes: Any) -> Any:
    args = {"blocks": 256, "threads": 1, **changes.pop("args", {})}
    return replica(
        tmp_path,
        engine="Torch",
        args=args,
        model={"source": source.as_uri(), "contextLength": changes.pop("context", 4096)},
        **changes,
    )


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ReplicaProcess]:
    async with torch_replica(tmp_path) as running:
        yield running


async def test_greedy_text_and_tokens_are_those_of_transformers(served: ReplicaProcess) -> None:
    """Text in, text out, both services at once: each answer as transformers gives it, or first different at a near tie."""
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
    oracle: Any = DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    answers = await asyncio.gather(
        *(ask(served.inference, generate_request(text, max_tokens=48)) for text in TEXTS),
        *(ask_trtllm(served.trtllm, trtllm_request(p, max_tokens=48, request_id=str(p[1]))) for p in prompts),
    )
    for prompt, answer, other in zip(prompts, answers[: len(TEXTS)], answers[len(TEXTS) :], strict=True):
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert answer.messages[-1].usage.prompt_tokens == len(prompt)
        assert len(answer.messages) > 1
        assert answer.tokens == other.tokens
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
        with torch.inference_mode():
            theirs = oracle.generate(
                torch.tensor([prompt]), max_new_tokens=48, do_sample=False, pad_token_id=2
            )[0, len(prompt) :].tolist()
            logits = oracle(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 :]
        different = next(
            (i for i, (a, b) in enumerate(zip(answer.tokens, theirs, strict=False)) if a != b), None
        )
        if different is not None:
            best = logits[different].topk(2).values
            assert best[0] - best[1] < NEAR_TIE, (prompt, different)
        else:
            assert len(answer.tokens) == len(theirs)


async def test_a_second_request_finds_the_prefix_of_the_first(served: ReplicaProcess) -> None:
    prompt = list(range(300, 400))
    cold = await ask(served.inference, generate_request(prompt, max_tokens=5))
    warm = await ask(served.inference, generate_request(prompt, max_tokens=5))
    salted = await ask(served.inference, generate_request(prompt, max_tokens=5, cache_salt="tenant"))
    assert [a.trailers["x-usage-cached-tokens"] for a in (cold, warm, salted)] == ["0", "96", "0"]
    assert cold.tokens == warm.tokens == salted.tokens


async def test_what_a_client_asks_of_an_answer_holds_over_the_wire(served: ReplicaProcess) -> None:
    """Log-probabilities, penalties, stop texts and guides through both services: what they share is equal."""
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
    oracle: Any = DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    prompt = tokenizer(TEXTS[1]).input_ids
    ours = generate_request(
        prompt,
        max_tokens=None,
        sampling=pb.Sampling(repetition_penalty=1.3),
        stopping=pb.Stopping(max_tokens=24, ignore_eos=True),
        logprobs=3,
    )
    theirs = trtllm_request(
        prompt,
        max_tokens=24,
        ignore_eos=True,
        sampling_config=trt.SamplingConfig(repetition_penalty=1.3),
        output_config=trt.OutputConfig(logprobs=3),
    )
    answer, other = await asyncio.gather(ask(served.inference, ours), ask_trtllm(served.trtllm, theirs))
    assert (answer.code, other.code) == (grpc.StatusCode.OK, grpc.StatusCode.OK), (answer, other)
    assert answer.tokens == other.tokens
    logprobs = [p for m in answer.messages for p in m.logprobs]
    assert [p.token_id for p in logprobs] == answer.tokens
    complete = other.messages[-1].complete
    assert [p.token_id for p in complete.logprobs] == answer.tokens
    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
    for row, one, same in zip(logits.log_softmax(-1), logprobs, complete.logprobs, strict=True):
        best = row.topk(3).values.tolist()
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-4)
        assert [t.logprob for t in one.top] == pytest.approx(best, abs=1e-4)
        assert [t.logprob for t in same.top_logprobs] == pytest.approx(best, abs=1e-4)
    # A stop text from the middle of the answer, across its tokens.
    stop = answer.text[9:14]
    ours.stopping.stop.append(stop)
    theirs.stop.append(stop)
    answer, other = await asyncio.gather(ask(served.inference, ours), ask_trtllm(served.trtllm, theirs))
    last = answer.messages[-1]
    assert (last.finish_reason, last.stop, stop in answer.text) == (pb.FINISH_REASON_STOP, stop, False)
    assert other.messages[-1].complete.matched_stop_str == stop
    assert list(other.messages[-1].complete.output_token_ids) == answer.tokens
    assert last.usage.completion_tokens > len(answer.tokens)
    await served.sample_when(lambda s: s.active == s.kv_used_tokens == 0)
    # A guide's answer is complete: no stop token has to be cut off, in neither service.
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false}'
    kind = trt.GuidedDecodingParams.GUIDE_TYPE_JSON_SCHEMA
    guided = generate_request(prompt, max_tokens=50, guide=pb.Guide(json_schema=schema))
    guided_too = trtllm_request(
        prompt, max_tokens=50, guided_decoding=trt.GuidedDecodingParams(guide_type=kind, guide=schema)
    )
    answer, other = await asyncio.gather(ask(served.inference, guided), ask_trtllm(served.trtllm, guided_too))
    assert json.loads(answer.text)["n"] in (1, 22)
    assert tokenizer.decode(other.tokens, skip_special_tokens=True) == answer.text


async def test_a_guide_that_only_the_engine_can_judge_is_refused_by_its_field(served: ReplicaProcess) -> None:
    answer = await ask(served.inference, generate_request(guide=pb.Guide(regex="(unclosed")))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "unclosed group" in answer.violations()["guide.regex"]
    broken = trt.GuidedDecodingParams(guide_type=trt.GuidedDecodingParams.GUIDE_TYPE_REGEX, guide="(unclosed")
    other = await ask_trtllm(served.trtllm, trtllm_request(guided_decoding=broken))
    assert list(other.violations()) == ["guided_decoding"]


async def test_one_that_waits_past_its_deadline_never_uses_the_engine(served: ReplicaProcess) -> None:
    """The cache holds 256 blocks: beside a running request of 126 and more, one of 132 has to wait for its end."""
    long = served.inference.Generate(
        generate_request([5] * 2000, max_tokens=None, stopping=pb.Stopping(max_tokens=2000, ignore_eos=True))
    )
    assert (await long.read()).token_ids
    before = await served.sample_when(lambda s: s.active == 1)
    late = await ask(served.inference, generate_request([6] * 2100), timeout=0.5)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    after = await served.sample_when(lambda s: s.queued == 0)
    assert (after.active, after.prompt_tokens_total) == (1, before.prompt_tokens_total)
    long.cancel()


async def test_a_cancelled_and_a_late_stream_give_their_blocks_back(served: ReplicaProcess) -> None:
    """The long answers would hold the engine for many seconds: all that is left of them soon is nothing."""
    call = served.inference.Generate(
        generate_request([5, 6, 7], max_tokens=4000, stopping=pb.Stopping(max_tokens=4000, ignore_eos=True))
    )
    late = asyncio.create_task(
        ask(
            served.inference,
            generate_request([8, 9], max_tokens=4000, stopping=pb.Stopping(max_tokens=4000, ignore_eos=True)),
            timeout=1.0,
        )
    )
    assert (await call.read()).token_ids
    await served.sample_when(lambda s: s.active >= 1 and s.kv_used_tokens > 0)
    call.cancel()
    assert (await late).code is grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's own count and the engine's report of its blocks are not of the same instant.
    sample = await served.sample_when(lambda s: s.active == s.queued == s.kv_used_tokens == 0)
    assert sample.outstanding_decode_tokens == 0
    assert 0 < sample.output_tokens_total < 4000
    assert (await ask(served.inference, generate_request([5, 6], max_tokens=3))).code is grpc.StatusCode.OK


async def test_sigterm_lets_running_answers_finish(served: ReplicaProcess) -> None:
    running = [
        asyncio.create_task(
            ask(
                served.inference,
                generate_request(
                    [i, i], max_tokens=None, stopping=pb.Stopping(max_tokens=200, ignore_eos=True)
                ),
            )
        )
        for i in range(10, 14)
    ]
    await served.sample_when(lambda s: s.active == 4)
    served.process.send_signal(signal.SIGTERM)
    for answer in await asyncio.gather(*running):
        assert (answer.code, len(answer.tokens)) == (grpc.StatusCode.OK, 200)
    assert await served.exit_status() == 0


@pytest.mark.parametrize(
    ("damage", "context", "reason", "says"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(b"short"),
            4096,
            "CheckpointUnreadable",
            "model.safetensors",
        ),
        (lambda f: None, 8192, "EngineArgumentInvalid", "at most 4096 tokens"),
    ],
    ids=["cut off", "too long a context"],
)
async def test_a_checkpoint_that_cannot_be_served_ends_the_process_with_its_reason(
    tmp_path: Path, damage: Any, context: int, reason: str, says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    damage(folder)
    async with torch_replica(tmp_path, source=folder, context=context, wait=False) as broken:
        assert await broken.exit_status() != 0
        told = json.loads(broken.termination_log.read_text())
        assert told["reason"] == reason
        assert says in told["message"]
