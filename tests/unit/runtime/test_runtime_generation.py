"""From an engine's stream to pieces for the client, with an engine that the test plays."""

import asyncio
from contextlib import aclosing
from typing import cast

import grpc
import pytest
from moefleet_runtime.engine.base import EngineRequest, Finish, TokenDelta
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.host.stream import FaultKind, StreamFault, TokenStream
from moefleet_runtime.life import Life
from moefleet_runtime.metrics import ServerMetrics
from moefleet_runtime.serving.admission import Admission, Guest
from moefleet_runtime.serving.generation import EndedError, Generation, Piece

REQUEST = EngineRequest("r0", (1, 2, 3), 1000)


class Played:
    """The engine client's part that Generation uses."""

    streams = 1

    def __init__(self) -> None:
        self.stream = TokenStream("r0")
        self.aborted = 0

    def submit(self, request: EngineRequest) -> TokenStream:
        return self.stream

    def abort(self, stream: TokenStream) -> None:
        assert stream is self.stream
        self.aborted += 1

    def give(self, *tokens: int, finish: Finish | None = None, error: str = "") -> None:
        self.stream.feed(TokenDelta("r0", tokens, 2, finish, error), now_s=0.0)


class Stage:
    def __init__(self, stream_duration_s: float = 3600.0) -> None:
        self.engine = Played()
        self.admission = Admission(
            pod_uid="u",
            model_name="m",
            queued_requests=1,
            life=lambda: Life(0.0),
            on_change=lambda inside: None,
        )
        self.guest: Guest = self.admission.enter("r")
        self.metrics = ServerMetrics(model="m", kv_block_tokens=16)
        self.generation = Generation(
            cast(EngineClient, self.engine), self.admission, self.metrics, stream_duration_s=stream_duration_s
        )

    async def collect(self) -> list[Piece]:
        async with aclosing(self.generation.run(self.guest, REQUEST)) as pieces:
            return [piece async for piece in pieces]

    def outcomes(self, name: str) -> float:
        return (
            self.metrics.registry.get_sample_value("moefleet_runtime_requests_total", {"outcome": name})
            or 0.0
        )


async def test_what_has_come_since_the_last_piece_is_the_next_one() -> None:
    stage = Stage()
    async with aclosing(stage.generation.run(stage.guest, REQUEST)) as pieces:
        stage.engine.give(7)
        assert (await anext(pieces)).tokens == [7]
        reading = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        assert not reading.done()
        stage.engine.give(8)
        assert (await reading).tokens == [8]
        # The client took its time.
        stage.engine.give(9)
        stage.engine.give(10, 11)
        assert (await anext(pieces)).tokens == [9, 10, 11]
        stage.engine.give(5, finish=Finish.STOP)
        last = await anext(pieces)
        assert (last.tokens, last.finish) == ([5], Finish.STOP)
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (3, 6, 2)
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
    assert stage.outcomes("stop") == 1


async def test_leaving_early_frees_the_engine() -> None:
    stage = Stage()
    task = asyncio.ensure_future(stage.collect())
    await asyncio.sleep(0)
    stage.engine.give(7)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.engine.aborted == 1
    assert stage.outcomes("cancelled") == 1


@pytest.mark.parametrize(
    ("kind", "code", "reason", "refused"),
    [
        ("full", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full"),
        ("invalid", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", None),
        ("step", grpc.StatusCode.INTERNAL, "STEP_FAILED", None),
        ("dead", grpc.StatusCode.UNAVAILABLE, "ENGINE_DIED", None),
        ("cut", grpc.StatusCode.UNAVAILABLE, "STREAM_CUT", None),
        ("late", grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_DURATION_EXCEEDED", None),
    ],
)
async def test_every_fault_has_a_status_and_the_usage_until_then(
    kind: FaultKind, code: grpc.StatusCode, reason: str, refused: str | None
) -> None:
    stage = Stage()
    task = asyncio.ensure_future(stage.collect())
    await asyncio.sleep(0)
    stage.engine.give(7, 8)
    await asyncio.sleep(0)
    stage.engine.stream.end(StreamFault(kind, "so it was"))
    with pytest.raises(EndedError) as ended:
        await task
    problem = ended.value.problem
    assert (problem.code, problem.reason, problem.refused) == (code, reason, refused)
    assert "so it was" in problem.message
    assert ended.value.usage.completion_tokens == 2
    assert stage.outcomes(kind) == 1


async def test_a_stream_may_last_so_long_and_no_longer() -> None:
    stage = Stage(stream_duration_s=0.02)
    with pytest.raises(EndedError) as ended:
        await stage.collect()
    assert ended.value.problem.reason == "STREAM_DURATION_EXCEEDED"
    assert stage.engine.aborted == 1
