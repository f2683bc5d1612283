"""What the server adds to the first token, and what is left of the Torch engine's tokens/s behind gRPC.

The engine that is asked directly runs in a process of its own with one thread, as the replica's does; the two are asked in turns.
First tokens are asked for by the clients of `streams/`: a client in Python spends about as long on a request as the server does, and what
it spends is not added by the server. How long it takes through one stands beside, and how long a bare grpc.aio loop takes to answer at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime_rig import replica
from moefleet_runtime_rig.process import ReplicaProcess
from rich.console import Console

from .report import Bench, Row, ratio_of_pairs
from .server import bare_loop
from .streams import Shape, build, load, write_bodies

CHECKPOINT = Path(__file__).parents[1] / "models" / "tiny-deepseek-v2"
BLOCKS = 1024
# First tokens: one request at a time, some in a row from each side.
PROMPT_TOKENS, FIRSTS, IN_A_ROW = 32, 300, 10
# Tokens/s: so many streams at once, several rounds.
STREAMS, ANSWER_TOKENS, ROUNDS = 32, 96, 5


def prompt(number: int, tokens: int) -> list[int]:
    """Another one for each number, so that no cache has its beginning."""
    return [3 + (number * 131 + i * (7 + number % 11)) % 2000 for i in range(tokens)]


async def measure(console: Console) -> list[Row]:
    numbers = iter(range(1 << 30))
    with tempfile.TemporaryDirectory(prefix="moefleet-bench-") as name:
        model = {"name": "chat-model", "source": f"file://{CHECKPOINT}", "contextLength": 4096}
        args = {"blocks": BLOCKS, "threads": 1}
        async with (
            replica(Path(name), engine="Torch", args=args, model=model) as pod,
            bare_loop(1, 1) as (bare_at, _),
            _Alone() as alone,
        ):
            binary = await build(Path(name))
            direct_ms: list[float] = []
            served_ms: list[float] = []
            python_ms: list[float] = []
            bare_ms: list[float] = []
            for _ in range(FIRSTS // IN_A_ROW):
                prompts = [prompt(next(numbers), PROMPT_TOKENS) for _ in range(3 * IN_A_ROW + 1)]
                direct, python, served = (prompts[i * IN_A_ROW :] for i in range(3))
                direct_ms += [(await alone.ask([tokens], 1))["first_ms"] for tokens in direct[:IN_A_ROW]]
                served_ms += await _firsts_ms(binary, pod.grpc_at, Path(name) / "bodies", served)
                python_ms += [await _first_ms(pod, tokens) for tokens in python[:IN_A_ROW]]
                bare_ms += await _firsts_ms(binary, bare_at, Path(name) / "bodies", served)
            added_ms = median_added(served_ms, direct_ms)
            added_python_ms = median_added(python_ms, direct_ms)
            console.print(
                f"first token: {median(served_ms):.2f} ms served, {median(direct_ms):.2f} ms directly;"
                f" {median(python_ms):.2f} ms through a Python client; {median(bare_ms):.2f} ms from a bare grpc.aio loop",
                highlight=False,
            )
            direct: list[float] = []
            served: list[float] = []
            for _ in range(ROUNDS):
                asked = [prompt(next(numbers), PROMPT_TOKENS) for _ in range(STREAMS)]
                direct.append(STREAMS * ANSWER_TOKENS / (await alone.ask(asked, ANSWER_TOKENS))["took_s"])
                asked = [prompt(next(numbers), PROMPT_TOKENS) for _ in range(STREAMS)]
                served.append(STREAMS * ANSWER_TOKENS / await _served_s(pod, asked))
                console.print(f"{STREAMS} streams: {served[-1]:.0f} tokens/s served, {direct[-1]:.0f} directly", highlight=False)  # fmt: skip
    return [
        Row(
            "server_first_token_ms",
            added_ms,
            "ms added by the server",
            against=f"{median(direct_ms):.2f} ms from the Torch engine directly, {PROMPT_TOKENS} prompt tokens, medians of {FIRSTS};"
            f" {added_python_ms:.2f} ms more through a Python client; a bare grpc.aio loop answers in {median(bare_ms):.2f} ms",
            wanted="at most 2",
        ),
        Row(
            "grpc_tokens",
            median(served),
            "tokens/s",
            against=f"{median(direct):.0f} of the Torch engine directly, {STREAMS} streams",
            ratio=ratio_of_pairs(served, direct),
            wanted="at least 0.9",
        ),
    ]


def median_added(through_ms: list[float], direct_ms: list[float]) -> float:
    """Of rows of IN_A_ROW, asked one after the other: the machine's pace drifts by more than the server takes, and hits both."""
    rows = range(0, len(direct_ms), IN_A_ROW)
    return median(median(through_ms[i : i + IN_A_ROW]) - median(direct_ms[i : i + IN_A_ROW]) for i in rows)


def _request(tokens: list[int], answer: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model="chat-model",
        token_ids=pb.TokenIds(ids=tokens),
        stopping=pb.Stopping(max_tokens=answer, ignore_eos=True),
    )


async def _firsts_ms(binary: Path, address: str, file: Path, prompts: list[list[int]]) -> list[float]:
    """One after the other on one connection; the first one, which makes it, does not count."""
    bodies = write_bodies(file, [_request(tokens, 1) for tokens in prompts])
    window = await load(binary, (address,), bodies, Shape(1, 0, 0.0, requests=len(prompts)))
    return list(window.firsts_ms[1:])


async def _first_ms(pod: ReplicaProcess, tokens: list[int]) -> float:
    stub = _stub(pod)
    begin_s = time.perf_counter()
    call = stub.Generate(_request(tokens, 1))
    await call.read()
    took_s = time.perf_counter() - begin_s
    await call.code()
    return took_s * 1e3


async def _served_s(pod: ReplicaProcess, asked: list[list[int]]) -> float:
    stub = _stub(pod)

    async def one(tokens: list[int]) -> int:
        return sum([len(m.token_ids) async for m in stub.Generate(_request(tokens, ANSWER_TOKENS))])

    begin_s = time.perf_counter()
    made = await asyncio.gather(*map(one, asked))
    took_s = time.perf_counter() - begin_s
    if made != [ANSWER_TOKENS] * len(asked):
        raise RuntimeError(f"wanted {ANSWER_TOKENS} tokens of each of {len(asked)} requests, found {made}")
    return took_s


def _stub(pod: ReplicaProcess) -> Any:
    found = getattr(pod, "_bench_stub", None)
    if found is None:
        found = pod.inference
        pod._bench_stub = found  # type: ignore[attr-defined]
    return found


class _Alone:
    """The engine without server: `python -m moefleet_bench.first_token`, asked by lines of JSON."""

    async def __aenter__(self) -> _Alone:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moefleet_bench.first_token"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            limit=1 << 24,
        )
        await self.ask([prompt(1 << 29, PROMPT_TOKENS)], 2)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def ask(self, prompts: list[list[int]], answer: int) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "answer": answer}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine without a server has ended; it said why above")
        found: dict[str, float] = json.loads(line)
        return found


def main() -> None:
    import threading

    from moefleet_runtime.engine.arguments import TorchArguments
    from moefleet_runtime.engine.base import EngineRequest, EngineSettings
    from moefleet_runtime.engine.torch import make_engine

    class Sink:
        """When the first token came, and when all have ended."""

        def __init__(self) -> None:
            self.change = threading.Condition()
            self.first_s = 0.0
            self.ended = 0

        def deltas(self, batch: Any) -> None:
            now_s = time.perf_counter()
            with self.change:
                self.first_s = self.first_s or now_s
                self.ended += sum(delta.finish is not None for delta in batch)
                self.change.notify_all()

        def died(self, reason: str) -> None:
            raise SystemExit(reason)

    sink = Sink()
    arguments = TorchArguments(blocks=BLOCKS, threads=1)
    engine = make_engine(EngineSettings("chat-model", CHECKPOINT, context_length=4096, arguments=arguments))
    engine.start(sink)
    number = 0
    for line in sys.stdin:
        asked = json.loads(line)
        sink.first_s, sink.ended = 0.0, 0
        begin_s = time.perf_counter()
        for tokens in asked["prompts"]:
            number += 1
            engine.submit(EngineRequest(f"r{number}", tuple(tokens), asked["answer"], ignore_eos=True))
        with sink.change:
            while sink.ended < len(asked["prompts"]):
                sink.change.wait()
        took_s = time.perf_counter() - begin_s
        print(json.dumps({"first_ms": (sink.first_s - begin_s) * 1e3, "took_s": took_s}), flush=True)
    engine.stop()


FIRST_TOKEN = Bench(("server_first_token_ms", "grpc_tokens"), measure)

if __name__ == "__main__":
    main()
