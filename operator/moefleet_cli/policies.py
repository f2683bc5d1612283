"""`moefleet policies`: who can decide in a replay, with which knobs, and where each is published."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from .options import Output, OutputOption, console, replay_input

if TYPE_CHECKING:
    from moefleet_replay.policies import PolicyRow


def policies_command(output: OutputOption = Output.TEXT) -> None:
    """List the scaling policies that a replay can run: ours and its peers, their knobs and sources."""
    with replay_input("moefleet policies"):
        from moefleet_replay.policies import table

        found = table()
    if output is Output.JSON:
        print(json.dumps([asdict(row) for row in found]))
        return
    console().print(policies_table(list(found)))


def policies_table(rows: list[PolicyRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("POLICY", no_wrap=True)
    table.add_column("KNOB=DEFAULT (RANGE), * IS TUNED")
    table.add_column("WHAT IT DOES, AND ITS SOURCE")
    for row in rows:
        knobs = "\n".join(
            f"{'*' if k.tuned else ' '}{k.name}={k.default:g} ({k.low:g} to {k.high:g}) {k.meaning}"
            for k in row.knobs
        )
        table.add_row(row.name, knobs, f"{row.summary}\n[dim]{row.source}[/dim]")
        table.add_row()
    return table
