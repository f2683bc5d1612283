"""The load generator is the judge of "no stream was cut", so it has to notice when one is."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc
from moefleet_load.run import Arrival, Load, quantile
from moefleet_load.stream import End, channel, generate, token_request


class Server(rpc.InferenceServiceServicer):
    def __init__(self) -> None:
        self.ends = "well"

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self.ends == "refused":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        yield pb.GenerateResponse(token_ids=[5, 6], text="ab")
        if self.ends == "aborted":
            await context.abort(grpc.StatusCode.INTERNAL, "gone")
        if self.ends == "silent":
            return
        usage = pb.Usage(prompt_tokens=len(request.token_ids.ids), completion_tokens=3)
        yield pb.GenerateResponse(token_ids=[7], text="c", finish_reason=pb.FINISH_REASON_LENGTH, usage=usage)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Server, str]]:
    server, servicer = grpc.aio.server(), Server()
    rpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize(
    ("ends", "want", "tokens"),
    [("well", End.OK, 3), ("refused", End.FAILED, 0), ("aborted", End.CUT, 2), ("silent", End.CUT, 2)],
)
async def test_each_end_is_told_apart(served: tuple[Server, str], ends: str, want: End, tokens: int) -> None:
    servicer, address = served
    servicer.ends = ends
    async with channel(address) as open_channel:
        outcome = await generate(open_channel, token_request("r", "m", 4, 3))
    assert (outcome.end, len(outcome.tokens)) == (want, tokens)


async def test_open_loop_load_ends_with_every_request_accounted_for(served: tuple[Server, str]) -> None:
    load = Load(served[1], "m", channels=2)
    await load.run([Arrival(0.0, 3, 3), Arrival(0.01, 5, 3), Arrival(0.02, 7, 3)])
    assert load.running == 0
    assert sorted(o.prompt_tokens for o in load.outcomes) == [3, 5, 7]
    assert load.count(End.OK) == 3


@pytest.mark.parametrize(("q", "want"), [(0.5, 2.0), (0.99, 3.0), (0.0, 1.0)])
def test_quantile_is_nearest_rank(q: float, want: float) -> None:
    assert quantile([3.0, 1.0, 2.0], q) == want
    assert quantile([], q) is None
