"""`make demo`: starts a real cluster, walks the road inside its network, ends the cluster (unless --keep), judges.

Exit status: 0 all promises held; 1 one did not (each is printed); 2 the cluster could not be started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

# One node that claims 48 GPUs holds six replicas of 8: three that serve, and room for the new ones of a rollout.
CLUSTER = ("--nodes", "1", "--gpus", "48")
OUTPUT = Path("demo")
TRY = """the cluster is still up. What to try:
  export KUBECONFIG={kubeconfig}
  kubectl get moefleets -n demo
  kubectl describe moefleet deepseek-v2-rehearsal -n demo
  kubectl port-forward -n moefleet-system svc/moefleet-gateway 8080:8080 &
  .venv/bin/moefleet generate --address 127.0.0.1:8080 --model {model} "Emma was"
  make cluster-down          # ends it and leaves nothing behind"""


def cluster(*arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", "moefleet_cluster", *arguments])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up and say what to try")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        return inside(chosen.began)
    began = time.time()
    if cluster("up", *CLUSTER):
        print("the cluster did not start: the lines above say why", file=sys.stderr)
        cluster("down")
        return 2
    try:
        code = cluster(
            "shell", "--", sys.executable, "-m", "moefleet_demo", "--inside", "--began", str(began)
        )
        if chosen.keep:
            print(TRY.format(kubeconfig=Path(".cluster/kubeconfig").resolve(), model="tiny"))
    finally:
        if not chosen.keep:
            cluster("down")
    return code


def inside(began: float) -> int:
    from .road import Road

    # A log file or CI has no width of its own; the table needs this much.
    console = Console() if sys.stdout.isatty() else Console(width=130)
    road = Road(console, OUTPUT)
    road.report.setup_s = round(time.time() - began, 1)
    report = asyncio.run(road.walk())
    broken = report.judge()
    for sentence in broken:
        console.print(f"[red]broken promise:[/] {sentence}")
    for error in report.errors:
        console.print(f"  {error}")
    console.print(
        json.dumps({"ok": not broken, "requests_ok": report.requests_ok, "streams_cut": report.streams_cut})
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
