"""A replica that cannot end its answers hands them over: any client sees one unbroken stream, and a note in the trailers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from moefleet_runtime.ending import Exit
from moefleet_runtime_rig import Answer, ReplicaProcess, ask, generate_request, replica
from moefleet_testing.torch_engine import CHECKPOINT

TEXT = "It is a truth universally acknowledged, that a single man"
ASKED = (
    {},
    {"sampling": {"temperature": 1.0, "seed": 11}, "logprobs": 1, "request_id": "mine"},
    {"sampling": {"temperature": 1.0, "seed": 12, "frequency_penalty": 0.2}},
)
LENGTH = 300


@asynccontextmanager
async def torch_replica(tmp_path: Path, peers: str = "") -> AsyncIterator[ReplicaProcess]:
    async with replica(
        tmp_path,
        engine="Torch",
        args={"blocks": 512, "threads": 1},
        model={"source": CHECKPOINT.as_uri(), "contextLength": 4096},
        environment={"MOEFLEET_PEERS": peers},
    ) as running:
        yield running


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ReplicaProcess, ReplicaProcess]]:
    """The first knows the second."""
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(torch_replica(tmp_path))
        first = await stack.enter_async_context(torch_replica(tmp_path, f"ipv4:{second.grpc_at}"))
        yield first, second


def ask_all(served: ReplicaProcess) -> list[asyncio.Task[Answer]]:
    stub = served.inference
    stopping = {"max_tokens": LENGTH, "ignore_eos": True}
    return [
        asyncio.create_task(ask(stub, generate_request(TEXT, max_tokens=None, stopping=stopping, **fields)))
        for fields in ASKED
    ]


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    assert found[1].messages[0].request_id == "mine"
    for answer, whole in zip(found, expected, strict=True):
        assert answer.code is grpc.StatusCode.OK, answer.message
        assert (answer.tokens, answer.text) == (whole.tokens, whole.text)
        assert len(answer.tokens) == LENGTH
        assert answer.messages[0].request_id
        assert not any(message.request_id for message in answer.messages[1:])
        assert sum(len(m.logprobs) for m in answer.messages) == sum(len(m.logprobs) for m in whole.messages)
        for name in ("x-usage-prompt-tokens", "x-usage-completion-tokens"):
            assert answer.trailers[name] == whole.trailers[name]
        assert (answer.trailers["x-moefleet-handover"], whole.trailers.get("x-moefleet-handover")) == (
            "1",
            None,
        )


async def test_answers_of_a_dead_engine_are_ended_by_a_peer(
    pair: tuple[ReplicaProcess, ReplicaProcess],
) -> None:
    first, second = pair
    expected = await asyncio.gather(*ask_all(second))
    running = ask_all(first)
    await first.sample_when(lambda s: s.active == len(ASKED) and s.output_tokens_total > 60)
    os.kill(first.host_pid(), signal.SIGKILL)
    assert_same(await asyncio.gather(*running), expected)
    # The process ends as one whose engine died, once its relays have ended, and is started anew.
    assert await first.exit_status() == Exit.ENGINE_DIED


async def test_answers_of_a_process_that_may_not_wait_are_moved_and_not_cut(
    pair: tuple[ReplicaProcess, ReplicaProcess],
) -> None:
    first, second = pair
    expected = await asyncio.gather(*ask_all(second))
    running = ask_all(first)
    await first.sample_when(lambda s: s.active == len(ASKED) and s.output_tokens_total > 60)
    first.process.send_signal(signal.SIGTERM)
    await first.event("told to stop")
    first.process.send_signal(signal.SIGTERM)
    assert_same(await asyncio.gather(*running), expected)
    assert (await first.event("ends"))["moved"] == len(ASKED)
    assert await first.exit_status() == Exit.DRAINED


async def test_without_a_peer_that_answers_the_consumer_learns_what_happened(tmp_path: Path) -> None:
    async with torch_replica(tmp_path, "ipv4:127.0.0.1:1") as served:
        running = ask_all(served)
        await served.sample_when(lambda s: s.active == len(ASKED) and s.output_tokens_total > 60)
        served.process.send_signal(signal.SIGTERM)
        await served.event("told to stop")
        served.process.send_signal(signal.SIGTERM)
        for answer in await asyncio.gather(*running):
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_CUT")
            assert int(answer.trailers["x-usage-completion-tokens"]) >= len(answer.tokens) > 0
        assert (await served.event("ends"))["cut"] == len(ASKED)
        assert await served.exit_status() == Exit.STREAMS_CUT


async def test_a_request_that_engines_die_of_is_tried_on_one_peer_and_no_more(tmp_path: Path) -> None:
    """Tokens of both replicas were delivered, and then the truth."""
    dying = {"faults": {"dieAfterTokens": 40}, "speed": 1.0}
    async with AsyncExitStack() as stack:
        healthy = await stack.enter_async_context(replica(tmp_path, args={"speed": 1.0}))
        second = await stack.enter_async_context(replica(tmp_path, args=dying))
        peers = {"MOEFLEET_PEERS": f"ipv4:{second.grpc_at}"}
        first = await stack.enter_async_context(replica(tmp_path, args=dying, environment=peers))
        asked = generate_request(range(300, 330), max_tokens=200)
        whole = await ask(healthy.inference, asked)
        answer = await ask(first.inference, asked)
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED")
        # What a replica makes in the moment of its death may be lost on the way; what came is right and in order.
        assert 0 < len(answer.tokens) < len(whole.tokens) == 200
        assert answer.tokens == whole.tokens[: len(answer.tokens)]
        assert await first.exit_status() == Exit.ENGINE_DIED
        assert await second.exit_status() == Exit.ENGINE_DIED


async def test_a_simulated_replica_hands_over_too(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(replica(tmp_path, args={"speed": 1.0}))
        first = await stack.enter_async_context(
            replica(
                tmp_path,
                args={"faults": {"dieAfterTokens": 40}, "speed": 1.0},
                environment={"MOEFLEET_PEERS": f"ipv4:{second.grpc_at}"},
            )
        )
        asked = generate_request("Once upon a time", max_tokens=200)
        whole = await ask(second.inference, asked)
        moved = await ask(first.inference, asked)
        assert moved.code is grpc.StatusCode.OK, moved.message
        assert (moved.tokens, moved.text) == (whole.tokens, whole.text)
        assert moved.trailers["x-moefleet-handover"] == "1"
        assert moved.trailers["x-usage-completion-tokens"] == "200"
