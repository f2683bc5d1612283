"""The table of a run: on the terminal, as JSON (merged by name, as later runs may repeat one scenario), and in the README."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .run import Result

MACHINE = "Machine: "
# A row of the table, or a sentence below it.
ROW = re.compile(r"(?:\| |- \*\*)([a-z0-9-]*[a-z][a-z0-9-]*)(?: \||\*\*:)(?! held)")
BEGIN, END = "<!-- results: written by `make faults README=1` -->", "<!-- end of results -->"


def machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release()}"


def row(result: Result, commit: str) -> dict[str, Any]:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return {**asdict(result), "ok": result.ok, "when": when, "machine": machine(), "commit": commit}


def write(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Merges by name into what is there; returns all."""
    known = {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    known.update({r["name"]: r for r in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    return list(known.values())


COLUMNS = (
    "scenario",
    "held",
    "recovery s",
    "streams in it",
    "ended by a peer",
    "plain: broke",
    "ours: broke",
    "ours: went on",
    "longest pause s",
    "requests",
    "tokens = usage",
)


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    numbers = found["numbers"]
    statuses = ", ".join(f"{n} {code}" for code, n in numbers["plain_statuses"].items())
    recovery = "never" if found["recovery_s"] is None else f"{found['recovery_s']:.1f}"
    tokens = f"{numbers['tokens']:,}" + (
        "" if numbers["tokens"] == numbers["trailer_tokens"] else f" != {numbers['trailer_tokens']:,}"
    )
    return (
        found["name"],
        "yes" if found["ok"] else "NO",
        recovery,
        str(found["ran_in_hurt"] or ""),
        str(numbers["handed_over"] or ""),
        statuses or "0",
        str(numbers["ours_broke"]),
        str(numbers["ours_resumed"]),
        f"{numbers['longest_pause_s']:.1f}",
        f"{numbers['ours'] + numbers['plain']:,}",
        tokens,
    )


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="faults")
    for column in COLUMNS:
        table.add_column(
            column, justify="left" if column in ("scenario", "held", "plain: broke") else "right"
        )
    for found in rows:
        table.add_row(*cells(found))
    console.print(table)
    for found in rows:
        for sentence in found["broken"]:
            console.print(f"[red]{found['name']}:[/] {sentence}", soft_wrap=True, markup=True)


def markdown(rows: list[dict[str, Any]], before: str = "") -> str:
    """`before`: what stood there; rows of scenarios that have not run again stay, with what did not hold in them."""
    new = {r["name"] for r in rows}
    kept = [line for line in before.splitlines() if (name := _named(line)) and name not in new]
    lines = [line for line in kept if line.startswith("|")]
    lines += ["| " + " | ".join((*cells(r), f"{r['when']} `{r['commit']}`")) + " |" for r in rows]
    broken = [line for line in kept if line.startswith("-")]
    broken += [f"- **{r['name']}**: {sentence}" for r in rows for sentence in r["broken"]]
    tail = ["", "What did not hold:", "", *sorted(broken)] if broken else ["", "Everything held."]
    machines = {r["machine"] for r in rows}
    if len(lines) > len(rows):
        machines |= {m for line in before.splitlines() if line.startswith(MACHINE) for m in _machines(line)}
    table = ["| " + " | ".join(COLUMNS) + " | run |", "|---" * (len(COLUMNS) + 1) + "|", *sorted(lines)]
    return "\n".join([f"{MACHINE}{'; '.join(sorted(machines))}.", "", *table, *tail])


def _named(line: str) -> str:
    """The scenario of a line; empty for any other."""
    found = ROW.match(line)
    return found[1] if found else ""


def _machines(line: str) -> list[str]:
    return line.removeprefix(MACHINE).removesuffix(".").split("; ")


def write_readme(rows: list[dict[str, Any]], path: Path) -> None:
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    before, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{markdown(rows, before)}\n{END}{tail}")
