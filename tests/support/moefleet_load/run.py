"""Open-loop load: requests start when their time has come, whether or not earlier ones have ended."""

from __future__ import annotations

import asyncio
import csv
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from .stream import End, Outcome, channel, generate, token_request


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_azure(path: Path, keep_every: int = 1) -> list[Arrival]:
    """Rows of the Azure trace as arrivals from 0 s on; thinned by keeping each `keep_every`-th row (never compressed in time)."""
    rows = list(csv.DictReader(path.open()))
    stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [
        Arrival(stamp - stamps[0], int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for index, (stamp, row) in enumerate(zip(stamps, rows, strict=True))
        if index % keep_every == 0
    ]


def quantile(values: Iterable[float], q: float) -> float | None:
    """Nearest rank; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))] if ordered else None


@dataclass
class Load:
    """Runs arrivals against one address and model. `outcomes` grows while it runs; `running` is what is in flight."""

    address: str
    model: str
    channels: int = 4
    deadline_s: float = 300.0
    outcomes: list[Outcome] = field(default_factory=list)
    running: int = 0
    begun: int = 0
    stopped: bool = False

    def stop(self) -> None:
        """No further arrivals; what runs ends by itself."""
        self.stopped = True

    async def run(self, arrivals: list[Arrival], name: str = "load") -> list[Outcome]:
        connections = [channel(self.address) for _ in range(self.channels)]
        begin = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        try:
            for index, arrival in enumerate(arrivals):
                await asyncio.sleep(max(0.0, begin + arrival.at_s - time.monotonic()))
                if self.stopped:
                    break
                request = token_request(
                    f"{name}-{index}", self.model, arrival.prompt_tokens, arrival.output_tokens
                )
                task = asyncio.create_task(self._one(connections[index % self.channels], request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            for connection in connections:
                await connection.close()
        return self.outcomes

    async def _one(self, connection, request) -> None:  # type: ignore[no-untyped-def]
        self.begun += 1
        self.running += 1
        try:
            self.outcomes.append(await generate(connection, request, self.deadline_s))
        finally:
            self.running -= 1

    def count(self, end: End) -> int:
        return sum(o.end is end for o in self.outcomes)
