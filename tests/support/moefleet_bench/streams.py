"""The cheap replicas and clients of `streams/` (Go), built, started and ended; protobuf messages are made here."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet_load.run import quantile

from .processor import machine_busy_s, process_cpu_s

_SOURCE = Path(__file__).with_name("streams")
# One token and its text.
_TOKEN_ID, _TOKEN_TEXT = 4242, " word"
# Beyond the times that a run was asked to take; for a gateway that stands still.
_PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What the clients do. `requests` ends a run without a window."""

    streams: int
    messages: int
    interval_s: float
    ramp_s: float = 2.0
    window_s: float = 8.0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """What happened while it was open. `cpu_s` in the order of the processes that were asked for; `others_s` is what
    the machine did that is neither these, nor clients, nor replicas."""

    elapsed_s: float
    messages: int
    ended: int
    tokens: int
    firsts_ms: tuple[float, ...]
    cpu_s: tuple[float, ...]
    busy_s: float
    others_s: float

    @property
    def cpu_s_per_million(self) -> float:
        return sum(self.cpu_s) / self.messages * 1e6

    def first_ms(self, q: float) -> float:
        value = quantile(self.firsts_ms, q)
        if value is None:
            raise RuntimeError("no first message came inside the window")
        return value


async def build(folder: Path) -> Path:
    binary = folder / "streams"
    process = await asyncio.create_subprocess_exec(
        "go", "build", "-buildvcs=false", "-o", str(binary), ".", cwd=_SOURCE
    )
    if await process.wait() != 0:
        raise RuntimeError(f"go build of {_SOURCE} failed")
    return binary


@dataclass(frozen=True, slots=True)
class Replicas:
    pid: int
    addresses: tuple[str, ...]  # data and control in one


@contextlib.asynccontextmanager
async def replicas(binary: Path, uids: Sequence[str]) -> AsyncIterator[Replicas]:
    """One process with a replica per uid."""
    samples = [
        rep.WatchLoadResponse(
            sample=rep.LoadSample(pod_uid=uid, incarnation="1", seq=1, state=rep.REPLICA_STATE_SERVING)
        )
        for uid in uids
    ]
    message = inf.GenerateResponse(token_ids=[_TOKEN_ID], text=_TOKEN_TEXT)
    last = inf.GenerateResponse(
        token_ids=[_TOKEN_ID], text=_TOKEN_TEXT, finish_reason=inf.FINISH_REASON_LENGTH, usage=inf.Usage()
    )
    process = await asyncio.create_subprocess_exec(
        str(binary),
        "serve",
        *("--message", message.SerializeToString().hex()),
        *("--last", last.SerializeToString().hex()),
        *("--samples", ",".join(s.SerializeToString().hex() for s in samples)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().strip()
        if not line:
            raise RuntimeError("the bench's replicas did not start")
        yield Replicas(process.pid, tuple(line.split(",")))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def write_bodies(path: Path, requests: Iterable[inf.GenerateRequest]) -> Path:
    with path.open("wb") as file:
        for request in requests:
            body = request.SerializeToString()
            file.write(len(body).to_bytes(4, "big") + body)
    return path


async def load(
    binary: Path,
    targets: Sequence[str],
    bodies: Path,
    shape: Shape,
    *,
    pids: Sequence[int] = (),
    helpers: Sequence[int] = (),
) -> Window:
    """One run. A request that fails is no measurement: it raises. `helpers` are ours but do not count."""
    watched = [*pids, *helpers]
    process = await asyncio.create_subprocess_exec(
        str(binary),
        "load",
        *("--targets", ",".join(targets), "--bodies", str(bodies)),
        *("--streams", str(shape.streams), "--messages", str(shape.messages)),
        *("--interval", f"{shape.interval_s}s", "--requests", str(shape.requests)),
        *("--ramp", f"{0 if shape.requests else shape.ramp_s}s"),
        *("--window", f"{0 if shape.requests else shape.window_s}s"),
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,  # the latencies are one line
    )
    try:
        async with asyncio.timeout(shape.ramp_s + shape.window_s + _PATIENCE_S):
            await _line(process, "open")
            before, busy_s = [process_cpu_s(pid) for pid in watched], machine_busy_s()
            closed = await _line(process, "closed")
            cpu_s = tuple(process_cpu_s(pid) - b for pid, b in zip(watched, before, strict=True))
            busy_s = machine_busy_s() - busy_s
            await process.wait()  # by itself: it has said all
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if closed["failed"] or not closed["messages"]:
        raise RuntimeError(
            f"{closed['failed']} of {closed['ended'] + closed['failed']} requests failed: {closed['failure']}"
        )
    return Window(
        elapsed_s=closed["elapsed_s"],
        messages=closed["messages"],
        ended=closed["ended"],
        tokens=closed["tokens"],
        firsts_ms=tuple(closed["firsts_ms"]),
        cpu_s=cpu_s[: len(pids)],
        busy_s=busy_s,
        others_s=max(0.0, busy_s - sum(cpu_s) - closed["cpu_s"]),
    )


async def _line(process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"the bench's clients ended before {event!r}")
    found: dict[str, Any] = json.loads(line)
    if found["event"] != event:
        raise RuntimeError(f"wanted {event!r} of the bench's clients, found {found['event']!r}")
    return found
