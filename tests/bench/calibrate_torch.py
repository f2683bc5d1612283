"""Measures the Torch engine's step time on this machine and prints it as a calibration of moefleet_perf.

    python tests/bench/calibrate_torch.py --model tests/support/models/tiny-deepseek-v2 --name tiny-cpu

Steps are run directly, without the engine's thread, on a grid of decoding sequences, contexts and prompt chunks. A point
is the median of its steps; the fit weighs every point by its own time, so that small steps count as much as big ones.
Throughput of whole answers (64 tokens in, 64 out, greedy) is measured beside it, as the check of the fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported, as the engine itself does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from moefleet_perf.calibration import StepModel
from moefleet_runtime.engine.base import EngineSettings
from moefleet_runtime.engine.torch.requests import Row
from moefleet_runtime.engine.torch.starting import Started, start
from moefleet_testing.torch_engine import RunningEngine, generation, request, settings

SEQUENCES = (0, 1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 512, 1536)
PREFILLS = (0, 16, 64, 192)
STREAMS = (1, 8, 32)
ANSWER = 64


@dataclass(frozen=True, slots=True)
class Point:
    prefill: int
    sequences: int
    kv: int
    wall_s: float
    # Of the thread that steps: what the wall would show on a core of one's own.
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default="measured")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    wanted = settings(options.model, blocks=8192, kv_reuse=False)
    for streams in STREAMS:
        wall, cpu = throughput(wanted, streams, options.repeats)
        print(f"{streams} streams: {wall:.0f} tokens/s ({cpu:.0f} per second of processor)", file=sys.stderr)
    points = measure(wanted, options.repeats)
    model = fit([(p.prefill, p.sequences, p.kv, p.cpu_s) for p in points])
    errors = [model.step_time_s(p.prefill, p.sequences, p.kv) / p.cpu_s - 1 for p in points]
    lost = sum(p.wall_s for p in points) / sum(p.cpu_s for p in points)
    print(
        f"{len(points)} points, mean error {statistics.mean(map(abs, errors)):.1%}, worst "
        f"{max(errors, key=abs):+.1%}; wall {lost:.2f} times the processor time",
        file=sys.stderr,
    )
    step = {f"{k}S": float(f"{v:.4g}") for k, v in zip("abcd", coefficients(model), strict=True)}
    print(json.dumps({"name": options.name, "step": step}, indent=2))


def throughput(wanted: EngineSettings, streams: int, repeats: int) -> tuple[float, float]:
    """Median tokens per second of wall and of processor time over whole answers."""
    chance = random.Random(0)
    walls, cpus = [], []
    with RunningEngine(wanted) as engine:
        engine.answers(request("first", [5] * 64, 8))
        for n in range(repeats):
            asked = [
                request(f"{n}-{i}", [chance.randrange(3, 2048) for _ in range(64)], ANSWER, ignore_eos=True)
                for i in range(streams)
            ]
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            engine.answers(*asked)
            walls.append(streams * ANSWER / (time.perf_counter() - wall_s))
            cpus.append(streams * ANSWER / (time.process_time() - cpu_s))
    return statistics.median(walls), statistics.median(cpus)


def measure(wanted: EngineSettings, repeats: int) -> list[Point]:
    parts = start(wanted)
    torch.set_num_threads(1)
    points = []
    for sequences, context, prefill in itertools.product(SEQUENCES, CONTEXTS, PREFILLS):
        # Without sequences the context of none is only measured once.
        if sequences + prefill == 0 or (sequences == 0 and context != CONTEXTS[0]):
            continue
        if sequences * context <= 64 * 512:
            points.append(point(parts, sequences, context, prefill, repeats))
    return points


def point(parts: Started, sequences: int, context: int, prefill: int, repeats: int) -> Point:
    """The same step again and again: the rows' state is not advanced, so each repeats the last exactly."""
    chance = random.Random(sequences * 7919 + context * 31 + prefill)
    pool = parts.scheduler.pool
    rows = []
    for i in range(sequences + (prefill > 0)):
        length = context if i < sequences else prefill
        g = generation(str(i), [chance.randrange(3, 2048) for _ in range(length)], max_tokens=1)
        g.blocks = [pool.take() for _ in range(pool.blocks_for(length))]
        decodes = i < sequences
        rows.append(Row(g, length - 1 if decodes else 0, 1 if decodes else prefill, decodes))
    walls, cpus = [], []
    for _ in range(repeats + 2):
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        parts.runner.run(rows)
        walls.append(time.perf_counter() - wall_s)
        cpus.append(time.thread_time() - cpu_s)
    for row in rows:
        pool.release(row.generation.blocks)
    # The first two warm caches and allocators.
    return Point(
        prefill, sequences, sequences * context, statistics.median(walls[2:]), statistics.median(cpus[2:])
    )


def fit(points: list[tuple[float, float, float, float]]) -> StepModel:
    """Least squares of relative errors; a coefficient that would be negative is 0 and the rest fitted again."""
    x = torch.tensor([[1.0, p, s, kv] for p, s, kv, _ in points], dtype=torch.float64)
    t = torch.tensor([[time_s] for *_, time_s in points], dtype=torch.float64)
    kept = list(range(4))
    while True:
        solution = torch.linalg.lstsq(x[:, kept] / t, torch.ones_like(t)).solution[:, 0].tolist()
        worst = min(range(len(kept)), key=solution.__getitem__)
        if solution[worst] >= 0:
            break
        del kept[worst]
    values = dict(zip(kept, solution, strict=True))
    return StepModel(*(values.get(i, 0.0) for i in range(4)))


def coefficients(model: StepModel) -> tuple[float, float, float, float]:
    return model.a_s, model.b_s, model.c_s, model.d_s


if __name__ == "__main__":
    main()
