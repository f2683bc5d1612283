"""The canary, with an engine that the test plays: what makes a replica ready, and what does not."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from moefleet_runtime.config import check_config
from moefleet_runtime.engine.base import EngineInfo, EngineLoad, EngineRequest, Finish, TokenDelta
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.host.stream import StreamFault, TokenStream
from moefleet_runtime.life import HostUp, State
from moefleet_runtime.serving import replica as module
from moefleet_runtime.serving.replica import Replica
from moefleet_runtime.settings import Settings

INFO = EngineInfo("m", 4096, 102400, (1,), 10_000, 4, 64, "test")
Answer = Callable[[EngineRequest, TokenStream], None]


class Played:
    load = EngineLoad()
    streams = 0

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[EngineRequest] = []

    def submit(self, request: EngineRequest) -> TokenStream:
        self.requests.append(request)
        stream = TokenStream(request.request_id)
        self.answers.pop(0)(request, stream)
        return stream


def good(request: EngineRequest, stream: TokenStream) -> None:
    tokens = tuple(range(request.max_tokens))
    stream.feed(TokenDelta(request.request_id, tokens, finish=Finish.LENGTH), now_s=1.0)


def short(request: EngineRequest, stream: TokenStream) -> None:
    stream.feed(TokenDelta(request.request_id, (5,), finish=Finish.LENGTH), now_s=1.0)


def failed(request: EngineRequest, stream: TokenStream) -> None:
    stream.feed(TokenDelta(request.request_id, (), finish=Finish.FAILED, error="NaN"), now_s=1.0)


def full(request: EngineRequest, stream: TokenStream) -> None:
    stream.end(StreamFault("full", "2 requests wait already"))


async def warmed(engine: Played, info: EngineInfo = INFO) -> Replica:
    config = check_config({"model": {"name": "m"}, "engine": {"type": "Simulated"}}, "test")
    replica = Replica(Settings(config, "u", "", "", 1))
    replica.client = cast(EngineClient, engine)
    replica.apply(HostUp())
    replica.engine_started(info)
    await settled(replica)
    return replica


async def settled(replica: Replica) -> None:
    async with asyncio.timeout(30):
        while replica.life.state is State.WARMING:  # noqa: ASYNC110 - the life has watchers on the wire only
            await asyncio.sleep(0.001)


async def test_tokens_make_it_serve() -> None:
    engine = Played(good)
    assert (await warmed(engine)).life.state is State.SERVING
    request = engine.requests[0]
    assert request.ignore_eos
    assert max(request.prompt) < INFO.vocabulary_size


@pytest.mark.parametrize(("answer", "says"), [(failed, "NaN"), (short, "got 1")])
async def test_anything_less_fails_it_with_what_was_found(answer: Answer, says: str) -> None:
    life = (await warmed(Played(answer))).life
    assert life.failure is not None
    assert life.failure.reason == "CanaryFailed"
    assert says in life.failure.message


async def test_a_full_queue_is_no_proof_that_the_engine_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANARY_RETRY_S", 0.001)
    engine = Played(full, full, good)
    assert (await warmed(engine)).life.state is State.SERVING
    assert len({r.request_id for r in engine.requests}) == 3


async def test_the_smallest_context_has_room_for_a_canary() -> None:
    engine = Played(good)
    small = EngineInfo("m", 2, 300, (1,), 2, 1, 1, "test")
    assert (await warmed(engine, small)).life.state is State.SERVING
    assert (len(engine.requests[0].prompt), engine.requests[0].max_tokens) == (1, 1)


async def test_a_failed_step_asks_for_the_canary_again_and_another_while_it_runs_does_not() -> None:
    engine = Played(good, good)
    replica = await warmed(engine)
    replica.engine_step_failed("one")
    assert replica.life.state is State.WARMING
    replica.engine_step_failed("two")
    await settled(replica)
    assert replica.life.state is State.SERVING
    assert len(engine.requests) == 2
