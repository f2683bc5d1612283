"""`moefleet replay fidelity`: a recorded replica, and the simulated one under the same arrivals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .exits import Exit
from .options import Output, OutputOption, console, replay_input

if TYPE_CHECKING:
    from moefleet_replay.fidelity import Fidelity


def fidelity_command(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING.npz", help="As moefleet_replay.fidelity describes it.")],
    *,
    fit: Annotated[
        str, typer.Option(help="steps: model of a block's own even steps; blocks: of those that were set aside for its load.")
    ] = "steps",
    output: OutputOption = Output.TEXT,
) -> None:  # fmt: skip
    """Play a recorded replica's arrivals in virtual time: how far off is the simulator? Ends with 1 where a bound is broken."""
    with replay_input("moefleet replay fidelity"):
        from moefleet_replay.fidelity import FidelityError, fidelity, load_recording

        held = load_recording(recording)
        match fit:
            case "steps" | "blocks":
                found = fidelity(held, fit)
            case _:
                raise FidelityError(f"fit: wanted steps or blocks, found {fit!r}")
    if output is Output.JSON:
        print(json.dumps(fidelity_json(found, held.what)))
    else:
        people = console()
        people.print(held.what)
        people.print(fidelity_table(found))
        people.print(
            f"{found.requests:,} requests, {found.steps:,} steps; with the recorded step times {found.steps_alike:.3%} of the steps are the same"
        )
    if not found.holds:
        raise typer.Exit(int(Exit.FAILED))


def fidelity_json(found: Fidelity, what: str) -> dict[str, Any]:
    return {
        "what": what, "holds": found.holds, "step": asdict(found.step), "requests": found.requests, "steps": found.steps,
        "steps_alike": found.steps_alike,
        "rows": [{**asdict(row), "off": row.off, "holds": row.holds} for row in found.rows],
    }  # fmt: skip


def fidelity_table(found: Fidelity) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "", "RECORDED", "SIMULATED", "", "OFF", "BOUND"):
        table.add_column(name, no_wrap=True, justify="right" if name else "left")
    for row in found.rows:
        word = "" if row.bound is None else "[green]ok[/]" if row.holds else "[red]OFF[/]"
        bound = "" if row.bound is None else f"{row.bound:.0%}"
        table.add_row(word, row.what, f"{row.recorded:,.3f}", f"{row.simulated:,.3f}", row.unit, f"{row.off:+.2%}", bound)  # fmt: skip
    return table
