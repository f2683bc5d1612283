"""The operator beside the Deployment controller: 1,000 replicas become ready, how many writes that takes, and then silence.

Both sides run on one control plane by turns, in a network namespace of their own, where pods have ordinary addresses that
the loopback answers for. It needs the right to make a user namespace, or root.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from rich.console import Console

from .operator_numbers import NAMES, Size, World, rows
from .report import Bench, Row

# What the pods' addresses are taken from: see operator_world.
ADDRESSES = "10.64.0.0/12"
_INSIDE = f'ip link set lo up && ip route add local {ADDRESSES} dev lo && exec "$@"'


async def run(console: Console) -> list[Row]:
    size = Size.of(os.environ)
    command = [
        *("unshare", "--user", "--map-root-user", "--net", "--", "setpriv", "--pdeathsig", "KILL", "--"),
        *("sh", "-c", _INSIDE, "sh", sys.executable, "-m", "moefleet_bench.operator_world"),
    ]
    console.log(
        f"{size.fleets} fleets with {size.pods} replicas against as many Deployments and pods, {size.pairs} pairs; "
        "BENCH_FLEETS, BENCH_REPLICAS and BENCH_PAIRS change that"
    )
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[-3:])} ended with {process.returncode}; it said why above")
    return rows(World.read(json.loads(out)), size)


OPERATOR = Bench(NAMES, run)
