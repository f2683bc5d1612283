"""`make test`: all stages in order, each with its minutes, and the promise of how long each may take cold.

Standard library only: it runs before any environment exists. The first failing stage ends the run with its exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    name: str
    command: str
    budget_min: float
    # A stage that outlives this is stuck, not slow: it is ended, so that CI says which one it was.
    limit_min: float


# Budgets are for a machine with 2 cores and nothing cached.
STAGES = (
    Stage("builds", f"PYTHONPATH=tests/support {sys.executable} -m moefleet_cluster build --install", 25, 45),
    Stage("setup", "make setup", 8, 20),
    Stage("check", "make check", 4, 12),
    Stage("unit", "make unit", 8, 15),
    Stage("simulation", "make simulate SEEDS=20", 2, 10),
    Stage("component", "make component", 13, 25),
    Stage("cluster", "make cluster-tests", 10, 20),
    Stage("wheel", "make wheel", 5, 12),
    Stage("e2e", "make e2e", 20, 40),
)


def main() -> int:
    chosen = sys.argv[1:] or [s.name for s in STAGES]
    unknown = set(chosen) - {s.name for s in STAGES}
    if unknown:
        print(f"unknown stages {sorted(unknown)}; there are {[s.name for s in STAGES]}", file=sys.stderr)
        return 2
    took: list[tuple[Stage, float, int]] = []
    for stage in STAGES:
        if stage.name not in chosen:
            continue
        print(f"\n=== {stage.name}: {stage.command}", flush=True)
        begin = time.monotonic()
        code = run(stage)
        took.append((stage, (time.monotonic() - begin) / 60, code))
        if code:
            break
    print("\nstage        minutes  budget  result")
    for stage, minutes, code in took:
        print(
            f"{stage.name:<12} {minutes:7.1f} {stage.budget_min:7.0f}  {'ok' if code == 0 else f'failed ({code})'}"
        )
    print(f"{'all':<12} {sum(m for _, m, _ in took):7.1f}", flush=True)
    return next((code for _, _, code in took if code), 0)


def run(stage: Stage) -> int:
    # A session of its own, so that the limit ends everything the stage started and nothing else.
    environment = os.environ | {"MOEFLEET_NO_SKIPS": "1"}
    process = subprocess.Popen(stage.command, shell=True, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(stage.limit_min * 60)
    except subprocess.TimeoutExpired:
        print(f"{stage.name} did not end within {stage.limit_min:.0f} minutes: ended", file=sys.stderr)
        os.killpg(process.pid, 9)
        process.wait()
        return 124


if __name__ == "__main__":
    sys.exit(main())
