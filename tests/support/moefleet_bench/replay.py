"""A day of traffic through the simulated fleet on one core, and how long one decision takes with a week behind it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from moefleet_operator.scaling import (
    DemandTotals,
    Policy,
    Sample,
    ServedTotals,
    State,
    Supply,
    decide,
)
from moefleet_perf import EIGHT_H800, Calibration, Mix, capacity, load_calibration
from rich.console import Console

from .report import Bench, Row

if TYPE_CHECKING:
    from moefleet_replay.compare_run import RunArguments

NAMES = ("replay_day_s", "replay_rss", "replay_compile_s")
DECIDE_NAMES = ("decide_ms", "decide_1000_ms")
# As many requests as a day of ServeGen's m-large: 17 million of chat, quiet nights and busy days.
DAY = "synthetic:sinusoid,duration_s=86400,low=100,high=300,period_s=86400"
WEEK_S, TICK_S = 7 * 86_400, 5
DECISIONS = 2_000


@dataclass(frozen=True, slots=True)
class Day:
    requests: int
    wall_s: float
    compile_s: float
    rss_mib: float


def arguments_of(environ: Mapping[str, str]) -> RunArguments:
    """BENCH_RATES, BENCH_LENGTHS and BENCH_DAYS put a ServeGen trace in the place of the synthetic day."""
    # Local: the other benches need no numba.
    from moefleet_replay.compare_run import RunArguments, TraceArguments
    from moefleet_replay.policies import REGISTRY

    ours = "moefleet" if "moefleet" in REGISTRY else "hpa-arrival"
    rates, lengths = environ.get("BENCH_RATES"), environ.get("BENCH_LENGTHS")
    if bool(rates) != bool(lengths):
        raise ValueError("wanted BENCH_RATES and BENCH_LENGTHS together, found one of them")
    trace = (
        TraceArguments(rates=rates, lengths=lengths, days=environ.get("BENCH_DAYS", "0:1"))
        if rates
        else TraceArguments(trace=DAY)
    )
    return RunArguments(trace, ours)


async def day(console: Console) -> list[Row]:
    """In a process of its own, so that its memory is its own, and on one core."""
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", str(min(os.sched_getaffinity(0)))),
        *(sys.executable, "-m", "moefleet_bench.replay"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the day ended with {process.returncode}; it said why above")
    found = Day(**json.loads(out.splitlines()[-1]))
    console.log(f"{found.requests:,} requests in {found.wall_s:.1f} s, compiled in {found.compile_s:.1f} s")
    return day_rows(found)


def day_rows(found: Day) -> list[Row]:
    what = f"{found.requests / 1e6:.1f} million requests"
    return [
        Row("replay_day_s", found.wall_s, "s", against=what, wanted="at most 60"),
        Row("replay_rss", found.rss_mib, "MiB", against=what, wanted="at most 2048"),
        Row("replay_compile_s", found.compile_s, "s", against="0.2 s when numba has it cached"),
    ]


async def deciding(console: Console) -> list[Row]:
    rows = []
    for name, replicas, wanted in zip(DECIDE_NAMES, (30, 1000), ("at most 0.3", "at most 1.0"), strict=True):
        took_ms = await asyncio.to_thread(decide_times_ms, replicas)
        highest = sorted(took_ms)[math.ceil(0.99 * len(took_ms)) - 1]
        console.log(f"{name}: median {median(took_ms):.3f} ms, p99 {highest:.3f} ms")
        rows.append(Row(name, median(took_ms), "ms", against=f"{replicas} replicas, a week of history", wanted=wanted))  # fmt: skip
    return rows


def decide_times_ms(replicas: int, *, history_s: int = WEEK_S, decisions: int = DECISIONS) -> list[float]:
    """A week of ticks at the pace of the operator, and the processor time of each of the last `decisions`: a decision waits for nothing,
    so that is what it takes on a core that is free."""
    state: State | None = None
    world = _World(replicas)
    took: list[float] = []
    for tick in range(history_s // TICK_S):
        sample, now = world.sample(tick), 1e9 + tick * TICK_S
        begin = time.thread_time()
        decision = decide(state, sample, now)
        took.append((time.thread_time() - begin) * 1e3)
        state = decision.state
        world.target = decision.replicas
    return took[-decisions:]


class _World:
    """A fleet whose demand swings by the day between a third and all of what `replicas` carry, and which follows at once."""

    def __init__(self, replicas: int) -> None:
        self.calibration: Calibration = load_calibration(EIGHT_H800)
        self.replicas, self.target = replicas, replicas
        self.carried = capacity(self.calibration, Mix(600, 200), 0.085).requests_per_s
        self.demand = DemandTotals()

    def sample(self, tick: int) -> Sample:
        swing = (1 - math.cos(2 * math.pi * tick * TICK_S / 86_400)) / 2
        # What surges do, without chance: three per cent more or less from tick to tick.
        arrivals = 0.7 * self.replicas * self.carried * (1 / 3 + 2 / 3 * swing) * (1 + 0.03 * math.sin(tick)) * TICK_S  # fmt: skip
        d = self.demand
        self.demand = replace(
            d, arrivals=d.arrivals + arrivals, prompt_tokens=d.prompt_tokens + 600 * arrivals, output_tokens=d.output_tokens + 200 * arrivals
        )  # fmt: skip
        return Sample(
            policy=Policy(1, 2 * self.replicas, 0.1, 2.0, self.calibration),
            supply=Supply(self.target, self.target, cold_starts_s=(200.0, 240.0, 260.0, 420.0) * 16),
            demand=self.demand,
            served=ServedTotals(
                self.demand.arrivals, self.demand.prompt_tokens, 0.0, self.demand.output_tokens
            ),
            # Above 600 + 200 / 2: the law takes what was measured.
            context_tokens=900.0,
        )


def main() -> int:
    from moefleet_replay.compare_run import execute

    result = execute(arguments_of(os.environ))
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    day_ = Day(result.summary.requests, result.summary.wall_s, result.compile_s, rss_mib)
    print(json.dumps({name: getattr(day_, name) for name in Day.__slots__}))
    return 0


REPLAY = (Bench(NAMES, day), Bench(DECIDE_NAMES, deciding))

if __name__ == "__main__":
    sys.exit(main())
