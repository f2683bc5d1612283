"""What the runtime's server costs: messages and tokens per second of its processor time, and the first token's way through it.

The engine is the Simulated one with a step of a given length, in a process of its own that does not count; beside it a bare
grpc.aio server writes as many messages of the same size at the same pace. Clients are those of `streams/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from moefleet_load.stream import token_request
from moefleet_runtime.host.batches import WINDOW_S
from moefleet_runtime_rig import replica
from moefleet_runtime_rig.process import ReplicaProcess
from rich.console import Console

from .processor import process_cpu_s
from .report import Bench, Row, ratio_of_pairs
from .streams import Shape, Window, build, load, write_bodies

SPANS = 3
# The bare loop itself differs by a quarter from run to run.
PAIRS = 5
STREAMS = 64
# Tokens that come within the window in which the server lets them wait for each other.
TOKENS_A_MESSAGE = (1, 5, 10)
MESSAGES_AN_ANSWER = 200
SHAPE = Shape(STREAMS, MESSAGES_AN_ANSWER, WINDOW_S, ramp_s=2.0, window_s=6.0)
# The pod that the yardstick speaks of makes 50,000 tokens/s of answers. At speed 1 this calibration does with 8,192 sequences, and 32,000
# with 1,000; both costs are measured with 1,000, since messages cost the same per second at either pace.
CALIBRATION, FULL_STREAMS, FULL_PROMPT, FULL_ANSWER = "deepseek-v2-8xh800", 1000, 16, 1000
YARDSTICK_TOKENS_S, YARDSTICK_SPEED = 50_000, 1.65
RAMP_S, SPAN_S = 8.0, 6.0
MEMORY_REQUESTS = 100_000


def steady(step_s: float) -> dict[str, Any]:
    """A calibration whose steps take so long whatever is in them."""
    limits = {"maxSequences": 4096, "kvMaxTokens": 8_000_000, "maxBatchTokens": 65_536}
    step = {"aS": step_s, "bS": 1e-9, "cS": 1e-9, "dS": 0.0}
    return {
        "name": "steady",
        "step": step,
        "limits": limits,
        "provenance": "for the bench: a step of one length",
    }


@dataclass(frozen=True, slots=True)
class _At:
    binary: Path
    folder: Path
    console: Console

    def bodies(self, prompt: int, answer: int) -> Path:
        request = token_request("", "chat-model", prompt, answer)
        return write_bodies(self.folder / f"bodies-{prompt}-{answer}", [request])

    async def measure(
        self, name: str, address: str, bodies: Path, shape: Shape, pids: tuple[int, ...]
    ) -> Window:
        window = await load(self.binary, (address,), bodies, shape, pids=pids)
        rate = window.messages / window.elapsed_s
        self.console.print(
            f"{name:22} {rate:8.0f} messages/s, {window.cpu_s_per_million:5.1f} us of processor a message,"
            f" {window.busy_s / window.elapsed_s:.2f} cores busy",
            highlight=False,
        )
        return window


@contextlib.asynccontextmanager
async def _at(console: Console) -> AsyncIterator[_At]:
    with tempfile.TemporaryDirectory(prefix="moefleet-bench-") as name:
        folder = Path(name)
        yield _At(await build(folder), folder, console)


@contextlib.asynccontextmanager
async def bare_loop(tokens: int, messages: int = MESSAGES_AN_ANSWER) -> AsyncIterator[tuple[str, int]]:
    """Address and pid."""
    arguments = {"messages": messages, "tokens": tokens, "interval-s": WINDOW_S}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moefleet_bench.bare", *_flags(arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise RuntimeError("the bare server did not start")
        yield address, process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _flags(arguments: Mapping[str, object]) -> list[str]:
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]


async def messages(console: Console) -> list[Row]:
    rows = []
    async with _at(console) as at:
        for tokens in TOKENS_A_MESSAGE:
            ours: list[float] = []
            bare: list[float] = []
            answer = tokens * MESSAGES_AN_ANSWER
            engine = {"calibration": steady(WINDOW_S / tokens)}
            async with (
                replica(at.folder, args=engine, limits={"queuedRequests": 1000}) as pod,
                bare_loop(tokens) as (address, pid),
            ):
                for _ in range(PAIRS):
                    window = await at.measure(f"ours, {tokens} tokens", pod.grpc_at, at.bodies(16, answer), SHAPE, (pod.pid,))  # fmt: skip
                    ours.append(1e6 / window.cpu_s_per_million)
                    window = await at.measure(
                        f"bare, {tokens} tokens", address, at.bodies(16, answer), SHAPE, (pid,)
                    )
                    bare.append(1e6 / window.cpu_s_per_million)
            rows.append(
                Row(
                    f"server_messages_{tokens}",
                    median(ours),
                    "messages per CPU s of the server",
                    against=f"{median(bare):.0f} of a bare grpc.aio loop; {STREAMS} streams, a message of {tokens} tokens each every {WINDOW_S * 1e3:g} ms",
                    ratio=ratio_of_pairs(ours, bare),
                    wanted="at least 0.8",
                )
            )
    return rows


async def simulated(console: Console) -> list[Row]:
    """A pod at the pace of 8xH800, and one that makes as many tokens as the yardstick says: server and engine host together."""
    per_core, made = await _simulated(console, speed=1.0)
    at_full_per_core, at_full_made = await _simulated(console, speed=YARDSTICK_SPEED)
    return [
        Row(
            "simulated_tokens_per_core",
            per_core,
            "tokens per CPU s of the pod",
            against=f"{made:.0f} tokens/s made in {FULL_STREAMS} streams",
            wanted="at least 50000",
        ),
        Row(
            "simulated_cores",
            YARDSTICK_TOKENS_S / at_full_per_core,
            f"cores for {YARDSTICK_TOKENS_S:,} tokens/s",
            against=f"{at_full_made:.0f} tokens/s made in {FULL_STREAMS} streams at speed {YARDSTICK_SPEED:g}",
            wanted="at most 1",
        ),
    ]


async def _simulated(console: Console, *, speed: float) -> tuple[float, float]:
    """Tokens per CPU second and per second, as the replica itself counts them: medians of several spans."""
    shape = Shape(FULL_STREAMS, 0, 0.0, ramp_s=RAMP_S, window_s=SPANS * SPAN_S + RAMP_S)
    per_core: list[float] = []
    rates: list[float] = []
    engine = {"calibration": CALIBRATION, "speed": speed}
    async with _at(console) as at, replica(at.folder, args=engine) as pod:
        pids = (pod.pid, pod.host_pid())
        bodies = at.bodies(FULL_PROMPT, FULL_ANSWER)
        running = asyncio.create_task(load(at.binary, (pod.grpc_at,), bodies, shape, pids=pids))
        await asyncio.sleep(RAMP_S)
        for _ in range(SPANS):
            before, began_s = await _counted(pod, pids), time.monotonic()
            await asyncio.sleep(SPAN_S)
            after, took_s = await _counted(pod, pids), time.monotonic() - began_s
            tokens, cpu_s = (b - a for a, b in zip(before, after, strict=True))
            per_core.append(tokens / cpu_s)
            rates.append(tokens / took_s)
            console.print(
                f"{tokens / took_s:.0f} tokens/s in {FULL_STREAMS} streams, {cpu_s / took_s:.2f} cores",
                highlight=False,
            )
        await running
    return median(per_core), median(rates)


async def memory(console: Console) -> list[Row]:
    """Short answers by the hundred thousand: what the pod holds after the first tenth, and what it holds after all."""
    first = Shape(STREAMS, 0, 0.0, requests=MEMORY_REQUESTS // 10)
    # The window only bounds how long a stuck run waits.
    rest = Shape(STREAMS, 0, 0.0, window_s=600.0, requests=MEMORY_REQUESTS)
    async with _at(console) as at, replica(at.folder, args={"calibration": steady(0.002)}) as pod:
        bodies = at.bodies(16, 2)
        await load(at.binary, (pod.grpc_at,), bodies, first)
        before = {pid: _rss_mib(pid) for pid in (pod.pid, pod.host_pid())}
        window = await load(at.binary, (pod.grpc_at,), bodies, rest)
        grown = [_rss_mib(pid) - was for pid, was in before.items()]
        console.print(
            f"{window.ended} requests in {window.elapsed_s:.0f} s: server {before[pod.pid]:.1f} {grown[0]:+.1f} MiB, host {grown[1]:+.1f} MiB",
            highlight=False,
        )
    return [
        Row(
            "server_memory_growth",
            sum(grown),
            "MiB",
            against=f"{sum(before.values()):.0f} MiB held before {MEMORY_REQUESTS:,} requests, server and engine host",
            wanted="flat",
        )
    ]


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


async def _counted(pod: ReplicaProcess, pids: tuple[int, ...]) -> tuple[float, float]:
    """Tokens made so far, processor time so far."""
    return float((await pod.sample()).output_tokens_total), sum(map(process_cpu_s, pids))


SERVER = (
    Bench(tuple(f"server_messages_{n}" for n in TOKENS_A_MESSAGE), messages),
    Bench(("simulated_tokens_per_core", "simulated_cores"), simulated),
    Bench(("server_memory_growth",), memory),
)
