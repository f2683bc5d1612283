"""A server that does nothing but answer: `python -m moefleet_bench.bare`, the least that grpc.aio costs in the same loop as ours.

Prints its address; ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import grpc
import uvloop
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as services


class Bare(services.InferenceServiceServicer):
    """`messages` of `tokens` words each, one every `interval_s`, whatever is asked."""

    def __init__(self, messages: int, tokens: int, interval_s: float) -> None:
        self._messages = messages
        self._interval_s = interval_s
        self._message = pb.GenerateResponse(token_ids=[4242] * tokens, text=" word" * tokens)
        usage = pb.Usage(prompt_tokens=1, completion_tokens=tokens * messages)
        self._last = pb.GenerateResponse(
            token_ids=[4242] * tokens,
            text=" word" * tokens,
            finish_reason=pb.FINISH_REASON_LENGTH,
            usage=usage,
        )

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for number in range(self._messages):
            await context.write(self._last if number == self._messages - 1 else self._message)
            due_s += self._interval_s
            await asyncio.sleep(max(due_s - loop.time(), 0.0))


async def serve(options: argparse.Namespace) -> None:
    server = grpc.aio.server()
    services.add_InferenceServiceServicer_to_server(
        Bare(options.messages, options.tokens, options.interval_s), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m moefleet_bench.bare", description=__doc__)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--interval-s", type=float, required=True)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
