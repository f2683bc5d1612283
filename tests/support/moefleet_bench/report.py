"""Rows of `bench/report.json`: later benches add rows to the same file, a repeated one replaces its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One result. `value` is the median of what was repeated; `ratio` is ours to `against`, None when nothing stands against it."""

    name: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    # The bound that the issue names, as people write it: "at most 1.0".
    wanted: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """A measurement and the names of the rows it makes."""

    names: tuple[str, ...]
    run: Callable[[Console], Coroutine[Any, Any, list[Row]]]


def command(bench: Bench, row_name: str) -> str:
    """What repeats a row: an extra row (flat out, 64 streams) comes from a bench that knows only its promised names."""
    return f"make bench ONLY={row_name if row_name in bench.names else bench.names[0]}"


def ratio_of_pairs(ours: list[float], other: list[float]) -> float:
    """Median of the ratios of pairs that were measured one after the other: drift of the machine cancels."""
    return median(a / b for a, b in zip(ours, other, strict=True))


def write(rows: list[Row], path: Path) -> None:
    """Merges by name into what is there."""
    known = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    known.update({row.name: asdict(row) for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="bench")
    for column in ("name", "value", "unit", "ratio", "wanted", "against"):
        table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        table.add_row(row.name, f"{row.value:.4g}", row.unit, ratio, row.wanted, row.against)
    console.print(table)
