"""`python -m moefleet_faults [--only NAME] [--minutes N]`: breaks clusters of its own, prints the table, writes faults/report.json.

Scenarios that ask for the same cluster share one, one after the other. Exit status: 0 everything held, 1 something did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from moefleet_e2e.kube import CommandError
from moefleet_e2e.kube import run as command
from moefleet_e2e.release import Release
from rich.console import Console

from . import report
from .run import run
from .scenario import FOLDER, Cluster, Helm, Scenario, read_all

REPORT = Path("faults/report.json")
README = FOLDER / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_faults", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", help="this scenario (repeat it)")
    parser.add_argument("--short", action="store_true", help="those of `make test`")
    parser.add_argument("--minutes", type=float, help="how long the scenarios that repeat go on")
    parser.add_argument("--readme", action="store_true", help="write the table into tests/faults/README.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        scenarios = choose(read_all(), chosen.only, short=chosen.short, minutes=chosen.minutes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=200, log_path=False)
    if chosen.inside:
        return asyncio.run(inside(scenarios, console))
    code = 0
    for shape, group in groupby(sorted(scenarios, key=_key), _key):
        code = max(code, _cluster(Cluster.model_validate_json(shape), list(group), chosen.minutes))
    if REPORT.exists():
        rows = [r for r in json.loads(REPORT.read_text()) if r["name"] in {s.name for s in scenarios}]
        report.show(rows, console)
        if chosen.readme:
            report.write_readme(json.loads(REPORT.read_text()), README)
    return code


def choose(
    every: list[Scenario], only: list[str] | None, *, short: bool = False, minutes: float | None = None
) -> list[Scenario]:
    """
    Raises:
        ValueError: for a name that no scenario has.
    """
    names = {s.name for s in every}
    if unknown := set(only or ()) - names:
        raise ValueError(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    # Those that repeat for minutes run only when asked for.
    chosen = [
        s
        for s in every
        if (s.name in only if only else s.short if short else not s.repeat_minutes or minutes)
    ]
    if minutes is None:
        return chosen
    return [s.model_copy(update={"repeat_minutes": minutes}) if s.repeat_minutes else s for s in chosen]


def _key(scenario: Scenario) -> str:
    return scenario.cluster.model_dump_json()


def _cluster(shape: Cluster, group: list[Scenario], minutes: float | None) -> int:
    words = ["--nodes", str(shape.nodes), "--gpus", str(shape.gpus)]
    if shape.quick_node_failure:
        words.append("--quick-node-failure")
    within = [
        sys.executable,
        "-m",
        "moefleet_faults",
        "--inside",
        *(w for s in group for w in ("--only", s.name)),
    ]
    if minutes is not None:
        within += ["--minutes", str(minutes)]
    return subprocess.call([sys.executable, "-m", "moefleet_cluster", "run", *words, "--", *within])


async def inside(scenarios: list[Scenario], console: Console) -> int:
    """In the cluster's namespaces, with its KUBECONFIG."""
    release = Release()
    others = [f"node{i}" for i in range(1, scenarios[0].cluster.nodes)]
    if scenarios[0].cluster.system_on_first_node:
        for node in others:
            command("kubectl", "cordon", node)
    release.upgrade()
    if scenarios[0].cluster.system_on_first_node:
        for node in others:
            command("kubectl", "uncordon", node)
    commit = _commit()
    code = 0
    for scenario in scenarios:
        result = await run(scenario, release, lambda said: console.log(said, highlight=False))
        rows = [report.row(result, commit)]
        report.write(rows, REPORT)
        report.show(rows, console)
        for note in result.notes:
            console.print(note, markup=False, soft_wrap=True)
        if not result.ok:
            code = 1
            _tell(release, console)
        if any(isinstance(step, Helm) for step in scenario.steps):
            release.values = {}
            release.upgrade("--take-ownership")
    return code


def _commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _tell(release: Release, console: Console) -> None:
    try:
        console.print(release.logs(60), markup=False, soft_wrap=True)
    except CommandError as error:
        console.print(f"no logs: {error}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
