"""Two real replicas with the Torch engine; the one that answers is killed in the middle of its streams."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from moefleet.client import (
    Answer,
    AsyncClient,
    Client,
    FinishReason,
    Options,
    ResumePolicy,
    Sampling,
    Stopping,
    Unavailable,
)
from moefleet_gateway_rig import Rig
from moefleet_runtime_rig import ReplicaProcess, ask, generate_request, replica
from moefleet_testing.torch_engine import CHECKPOINT

LENGTH = 240
# So much has come of each answer when its replica is killed.
BEGUN = 20
TEXT = "It is a truth universally acknowledged, that a single man"
LONG = Stopping(max_tokens=LENGTH, ignore_eos=True)
ASKED: dict[str, tuple[str | list[int], Options]] = {
    "greedy": (TEXT, {"stopping": LONG}),
    "seeded": (TEXT, {"stopping": LONG, "sampling": Sampling(temperature=1.0, seed=11)}),
    "of tokens, with penalties and logprobs": (
        list(range(300, 360)),
        {
            "stopping": LONG,
            "sampling": Sampling(
                temperature=0.7, seed=5, top_p=0.95, repetition_penalty=1.2, frequency_penalty=0.2
            ),
            "logprobs": 2,
        },
    ),
    "with stop texts that hold text back": (
        TEXT,
        {
            "stopping": Stopping(max_tokens=LENGTH, ignore_eos=True, stop=(" the zzz", "e zzz")),
            "sampling": Sampling(temperature=1.0, seed=12),
            "request_id": "mine",
        },
    ),
}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ReplicaProcess, ReplicaProcess]]:
    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(
                replica(
                    tmp_path,
                    engine="Torch",
                    args={"blocks": 512, "threads": 1},
                    model={"source": CHECKPOINT.as_uri(), "contextLength": 4096},
                )
            )
            for _ in range(2)
        ]
        yield both[0], both[1]


def target(*replicas: ReplicaProcess) -> str:
    """One channel over several: gRPC takes the first that can be reached."""
    return "ipv4:" + ",".join(r.grpc_at for r in replicas)


async def answers_with_a_break(
    client: AsyncClient, kill: Any, *, asked: dict[str, tuple[str | list[int], Options]] = ASKED
) -> dict[str, Answer]:
    """All answers at once; `kill` is called when each has begun and none has ended."""
    streams = {name: client.generate("chat-model", p, **o) for name, (p, o) in asked.items()}
    begun = asyncio.Barrier(len(streams) + 1)

    async def read(name: str) -> Answer:
        tokens: list[int] = []
        text, waited = "", False
        async for delta in streams[name]:
            tokens += delta.token_ids
            text += delta.text
            if len(tokens) >= BEGUN and not waited:
                waited = True
                # Read no more until it is dead: what is on the way is lost, or comes late.
                async with begun:
                    pass
        answer = streams[name].answer
        assert (answer.token_ids, answer.text) == (tuple(tokens), text)
        return answer

    async def break_it() -> None:
        async with begun:
            kill()

    *found, _ = await asyncio.gather(*(read(name) for name in streams), break_it())
    return dict(zip(streams, found, strict=True))


@pytest.mark.parametrize("whom", ["server", "engine host"])
async def test_every_answer_goes_on_with_the_tokens_of_an_undisturbed_run(
    pair: tuple[ReplicaProcess, ReplicaProcess], whom: str
) -> None:
    first, second = pair
    async with AsyncClient(target(second)) as undisturbed:
        expected = {
            name: await undisturbed.generate("chat-model", p, **o).collect() for name, (p, o) in ASKED.items()
        }
    async with AsyncClient(target(first, second), timeout_s=120.0) as client:
        pid = first.pid if whom == "server" else first.host_pid()
        found = await answers_with_a_break(client, lambda: os.kill(pid, signal.SIGKILL))
    for name, answer in found.items():
        whole = expected[name]
        assert answer.token_ids == whole.token_ids, name
        assert answer.text == whole.text, name
        assert (answer.finish_reason, answer.stopped_by) == (whole.finish_reason, whole.stopped_by), name
        assert answer.usage is not None
        assert whole.usage is not None
        assert answer.usage.prompt_tokens == whole.usage.prompt_tokens
        assert answer.usage.completion_tokens == whole.usage.completion_tokens
        assert (answer.resumed, whole.resumed) == (1, 0), name
        assert [one.token_id for one in answer.logprobs] == [one.token_id for one in whole.logprobs]
    assert found["greedy"].finish_reason is FinishReason.LENGTH
    assert len(found["greedy"].token_ids) == LENGTH
    assert found["with stop texts that hold text back"].request_id == "mine"


async def test_who_does_not_go_on_learns_what_happened_and_that_a_retry_is_safe(
    pair: tuple[ReplicaProcess, ReplicaProcess],
) -> None:
    first, _ = pair
    asked = generate_request(TEXT, max_tokens=None, stopping={"max_tokens": 2000, "ignore_eos": True})
    plain = asyncio.create_task(ask(first.inference, asked))
    async with AsyncClient(target(first)) as client:
        stream = client.generate("chat-model", TEXT, stopping=LONG, resume=ResumePolicy(most=0))
        delta = await anext(stream)
        await first.sample_when(lambda s: s.active == 2 and s.output_tokens_total > BEGUN)
        os.kill(first.host_pid(), signal.SIGKILL)
        with pytest.raises(Unavailable) as caught:
            await stream.collect()
    error = caught.value
    assert (error.reason, error.safe_to_retry) == ("ENGINE_DIED", True)
    assert error.retry_after_s
    assert error.partial is not None
    assert error.partial.token_ids[: len(delta.token_ids)] == delta.token_ids
    assert error.partial.finish_reason is None
    answer = await plain
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED")
    info = next(d for d in answer.details.values() if d.DESCRIPTOR.name == "ErrorInfo")
    assert info.metadata["safeToRetry"] == "true"  # type: ignore[attr-defined]
    assert int(info.metadata["generatedTokens"]) >= len(answer.tokens) > 0  # type: ignore[attr-defined]


async def test_code_without_an_event_loop_goes_on_too(pair: tuple[ReplicaProcess, ReplicaProcess]) -> None:
    first, second = pair

    def read() -> tuple[Answer, Answer]:
        prompt, options = ASKED["seeded"]
        with Client(target(second)) as undisturbed, Client(target(first, second)) as client:
            whole = undisturbed.generate("chat-model", prompt, **options).collect()
            stream = client.generate("chat-model", prompt, timeout_s=120.0, **options)
            begun = next(stream)
            os.kill(first.pid, signal.SIGKILL)
            text = begun.text + "".join(delta.text for delta in stream)
            assert text == stream.answer.text
            assert client.count_tokens("chat-model", TEXT) == whole.usage.prompt_tokens  # type: ignore[union-attr]
            assert client.get_model("chat-model") == client.list_models()[0]
            return whole, stream.answer

    whole, answer = await asyncio.to_thread(read)
    assert (answer.token_ids, answer.text, answer.resumed) == (whole.token_ids, whole.text, 1)


async def test_behind_a_gateway_only_the_streams_of_the_killed_replica_are_touched(tmp_path: Path) -> None:
    """Half of the streams are with each replica. Ours go on with the right tokens; plain clients get a status or their answer."""
    rig = Rig()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.close)
        pair = [
            await stack.enter_async_context(
                replica(
                    tmp_path,
                    engine="Torch",
                    args={"blocks": 512, "threads": 1},
                    model={"source": CHECKPOINT.as_uri(), "contextLength": 4096},
                    environment={"MOEFLEET_POD_UID": uid},
                )
            )
            for uid in ("a", "b")
        ]
        rig.world.fleet("chat", "chat-model", "team")
        rig.world.replicas = [
            {"uid": uid, "fleet": "team/chat", "address": r.grpc_at, "control": r.control_at, "ready": True}
            for uid, r in zip("ab", pair, strict=True)
        ]
        rig.world.write()
        await rig.start()
        await rig.registered("a", "b")
        asked: dict[str, tuple[str | list[int], Options]] = {
            f"{name} {i}": ([*range(300 + i, 330)], options)
            for i in range(3)
            for name, (_, options) in ASKED.items()
            if "request_id" not in options
        }
        async with AsyncClient(pair[1].grpc_at) as undisturbed:
            expected = {
                name: await undisturbed.generate("chat-model", p, **o).collect()
                for name, (p, o) in asked.items()
            }
        plain = [
            asyncio.create_task(
                ask(
                    rig.stub(),
                    generate_request(
                        list(range(400 + i, 430)),
                        max_tokens=None,
                        stopping={"max_tokens": LENGTH, "ignore_eos": True},
                    ),
                )
            )
            for i in range(4)
        ]
        async with AsyncClient(f"127.0.0.1:{rig.ports['grpc']}", timeout_s=200.0) as client:
            found = await answers_with_a_break(
                client, lambda: os.kill(pair[0].pid, signal.SIGKILL), asked=asked
            )
        for name, answer in found.items():
            assert (answer.token_ids, answer.text) == (expected[name].token_ids, expected[name].text), name
            assert answer.usage is not None
            assert answer.usage.completion_tokens == len(answer.token_ids) == LENGTH
        resumed = sum(answer.resumed for answer in found.values())
        answers = await asyncio.gather(*plain)
        broken = [answer for answer in answers if answer.code is not grpc.StatusCode.OK]
        # Both replicas had some of both, and each answer broke off at most once.
        assert 0 < resumed < len(found)
        assert max(answer.resumed for answer in found.values()) == 1
        assert 0 < len(broken) < len(plain)
        for answer in answers:
            if answer in broken:
                assert answer.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL), answer.code
                assert "x-usage-completion-tokens" not in answer.trailers
            else:
                assert len(answer.tokens) == LENGTH
