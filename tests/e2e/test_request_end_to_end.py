"""kubectl apply to tokens: the real checkpoint behind Envoy gives the tokens that transformers gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc
from moefleet_e2e.fleets import tiny
from moefleet_e2e.kube import Kube, eventually, ready, run
from moefleet_e2e.release import Release
from moefleet_load.stream import End, generate

MODEL = Path(__file__).resolve().parents[1] / "support/models/tiny-deepseek-v2"
PROMPTS = ("Emma was", "It is a truth universally acknowledged, that", "Mr. Darcy")
TOKENS = 24
# Two correct float32 implementations differ by about 1e-5; a greedy choice between logits this close may fall either way.
NEAR_TIE = 1e-3


@pytest.fixture(scope="module")
def austen(module_kube: Kube) -> Kube:
    """One fleet of the real checkpoint for all tests here; its first start takes 20 s of processor time."""
    module_kube.apply(tiny("austen", module_kube.namespace))
    return module_kube


def oracle(prompt: str) -> tuple[list[int], list[int], list[float]]:
    """Prompt ids, greedy continuation, and at each step the gap between the two best logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = tokenizer(prompt)["input_ids"]
    chosen: list[int] = []
    gaps: list[float] = []
    with torch.inference_mode():
        for _ in range(TOKENS):
            logits = model(torch.tensor([ids + chosen])).logits[0, -1]
            best = logits.topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            chosen.append(int(best.indices[0]))
    return list(ids), chosen, gaps


async def test_real_tokens_of_a_real_checkpoint_through_the_gateway(
    austen: Kube, gateway: grpc.aio.Channel
) -> None:
    await ready(austen, "austen")
    for prompt in PROMPTS:
        ids, want, gaps = oracle(prompt)
        request = pb.GenerateRequest(
            request_id=f"oracle-{prompt[:6]}", model="austen", token_ids=pb.TokenIds(ids=ids),
            stopping=pb.Stopping(max_tokens=TOKENS, ignore_eos=True),
        )  # fmt: skip
        got = await generate(gateway, request)
        assert got.end is End.OK, got
        first = next((i for i, (a, b) in enumerate(zip(got.tokens, want, strict=True)) if a != b), None)
        if first is not None:
            print(
                f"{prompt!r}: first difference at token {first}, the two best logits {gaps[first]:.2e} apart"
            )
            assert gaps[first] < NEAR_TIE, (prompt, first, got.tokens, want)
        assert got.prompt_tokens == len(ids)
        assert got.completion_tokens == TOKENS

    as_text = await generate(
        gateway,
        pb.GenerateRequest(
            request_id="text",
            model=f"{austen.namespace}/austen",
            prompt=PROMPTS[0],
            stopping=pb.Stopping(max_tokens=8),
        ),
    )
    assert as_text.end is End.OK, as_text
    assert as_text.text.strip()


async def test_bad_requests_get_a_clear_error_and_the_engine_goes_on(
    austen: Kube, gateway: grpc.aio.Channel
) -> None:
    await ready(austen, "austen")
    model = f"{austen.namespace}/austen"
    table = {
        "negative max_tokens": (
            pb.GenerateRequest(model=model, prompt="a", stopping=pb.Stopping(max_tokens=-1)),
            "INVALID_ARGUMENT",
        ),
        "bad token id": (
            pb.GenerateRequest(model=model, token_ids=pb.TokenIds(ids=[4_000_000_000])),
            "INVALID_ARGUMENT",
        ),
        "empty prompt": (pb.GenerateRequest(model=model, prompt=""), "INVALID_ARGUMENT"),
        "too long": (
            pb.GenerateRequest(model=model, token_ids=pb.TokenIds(ids=[5] * 5000)),
            "INVALID_ARGUMENT",
        ),
        "huge message": (pb.GenerateRequest(model=model, prompt="a" * (5 << 20)), "INVALID_ARGUMENT"),
        "unknown model": (pb.GenerateRequest(model="nobody", prompt="a"), "NOT_FOUND"),
    }
    for name, (bad, code) in table.items():
        got = await generate(gateway, bad)
        assert (got.end, got.code) == (End.FAILED, code), (name, got)
        assert got.detail, name
        good = await generate(
            gateway, pb.GenerateRequest(model=model, prompt="Emma", stopping=pb.Stopping(max_tokens=4))
        )
        assert good.end is End.OK, (name, good)


async def test_helm_test_sends_a_request_and_models_are_listed(
    austen: Kube, gateway: grpc.aio.Channel, release: Release
) -> None:
    await ready(austen, "austen")
    # `helm test` asks the first model that the gateway knows: fleets of earlier tests may still be on their way out.
    await eventually(
        "no fleet but this one",
        lambda: (
            run("kubectl", "get", "moefleets", "-A", "-o", "name").split() == ["moefleet.moefleet.io/austen"]
        ),
        120,
    )

    stub = rpc.InferenceServiceStub(gateway)
    listed: list[str] = []
    for _ in range(60):
        models = (await stub.ListModels(pb.ListModelsRequest(), timeout=10)).models
        listed = [m.fleet for m in models]
        if listed == [f"{austen.namespace}/austen"]:
            break
        await asyncio.sleep(0.5)
    assert listed == [f"{austen.namespace}/austen"]
    said = await asyncio.to_thread(release.test)
    assert "Succeeded" in said, said
