"""`moefleet cold-starts`: how long a fleet's replicas took to their first token, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from moefleet_operator.api import parse_duration_s
from rich.table import Table

from .exits import Exit
from .fleets import Cluster
from .options import InputError, Output, OutputOption, console

# What helps against each, where the user can do something.
HELP: Mapping[str, str] = {
    "scheduling": "no node had room: a node autoscaler that keeps one spare, or fewer GPUs asked for by others",
    "pulling": "the image: a registry nearby, or an image that is on the nodes already",
    "restarting": "attempts that failed: kubectl describe says why",
    "starting": "the replica tells no more: an image of an older release",
    "fetching": "weights over the network: spec.model.cache on a volume that outlives the pod, pvc:// or oci://",
    "loading": "from disk to GPU: local disks, FP8 weights; engine.args.preset FastStart captures fewer graphs",
    "tuning": "engine.args.autotunerCache on a volume keeps what was tuned",
    "warming": "the canary prompt",
    "registering": "the gateways learn of it",
}
BAR_COLUMNS = 30


def cold_starts_command(
    fleet: Annotated[str, typer.Argument(help="Name of the fleet.")],
    *,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")
    ] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="Default: as kubectl.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show how long replicas took from creation to their first token, by phase, and what helps."""
    cluster = Cluster(kubeconfig, context)
    where = namespace or cluster.namespace
    found = measured(cluster.fleet(where, fleet))
    if output is Output.JSON:
        print(json.dumps({"fleet": fleet, "namespace": where, "coldStart": found}))
        return
    if not found:
        raise InputError(f"{fleet}: no cold start has been measured yet", Exit.FAILED)
    console().print(cold_starts_table(found, f"{where}/{fleet}"))


def measured(body: Mapping[str, Any]) -> dict[str, Any]:
    found = (body.get("status") or {}).get("coldStart")
    return dict(found) if isinstance(found, Mapping) else {}


def cold_starts_table(found: Mapping[str, Any], name: str) -> Table:
    """`found`: status.coldStart."""
    starts = found.get("starts")
    of = f"{starts} starts" if starts != 1 else "1 start"
    quantiles = ", ".join(f"{q} {found[q]}" for q in ("p50", "p90", "p99") if q in found)
    table = Table(
        box=None, pad_edge=False, show_header=False, title_justify="left",
        title=f"{name}: {quantiles}" + (f" of {of}" if starts is not None else ""),
    )  # fmt: skip
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    phases = [(str(p["name"]), str(p["p50"])) for p in found.get("phases") or ()]
    longest_s = max((parse_duration_s(p50) for _, p50 in phases), default=0.0)
    for phase, p50 in phases:
        share = parse_duration_s(p50) / longest_s if longest_s else 0.0
        slowest = phase == found.get("slowestPhase")
        table.add_row(phase, p50, "█" * round(share * BAR_COLUMNS), HELP.get(phase, "") if slowest else "")
    return table
