"""`moefleet convert`: from BF16 to block-scaled FP8. The work is moefleet_weights'; here are arguments, bar and words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from moefleet_weights.failing import WeightsError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from . import exits

if TYPE_CHECKING:
    from moefleet_weights.convert import Conversion

# Matrices that the text shows; all of them are in the report.
SHOWN = 5


class Format(StrEnum):
    FP8_BLOCK = "fp8-block"


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"


def convert_command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of the checkpoint.", exists=True, file_okay=False)
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="New folder; one that was begun is gone on with.")
    ],
    *,
    to: Annotated[
        Format, typer.Option("--to", help="fp8-block: 128x128 blocks, as DeepSeek-V3 is published.")
    ],
    output: Annotated[
        Output, typer.Option("--output", "-o", help="json: the report for scripts.")
    ] = Output.TEXT,
) -> None:
    """Convert a checkpoint. Resumable: after a kill the same command goes on. Needs the extra `torch`."""
    try:
        from moefleet_weights.convert import REPORT_NAME, convert
    except ModuleNotFoundError as error:
        raise _ended(f"convert needs the package {error.name}: install moefleet[cli,torch]") from error
    try:
        with _bar(shown=output is Output.TEXT) as progress:
            done = convert(source, target, progress=progress)
    except WeightsError as error:
        raise _ended(f"{error.reason}: {error.message}") from error
    if output is Output.JSON:
        print(json.dumps({"folder": str(target), "resumedShards": done.resumed, **done.to_json()}))
        return
    _print(done, target / REPORT_NAME)


def _ended(message: str) -> typer.Exit:
    print(f"moefleet convert: {message}", file=sys.stderr)
    return typer.Exit(int(exits.Exit.FAILED))


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("converting", total=None)
        yield lambda done, total, file: progress.update(task, completed=done, total=total, description=file)


def _print(done: Conversion, report: Path) -> None:
    table = Table(box=None, title=f"largest of {len(done.matrices)} errors", title_justify="left")
    for column in ("matrix", "shape", "relative error", "largest error", "became zero"):
        table.add_column(column, justify="left" if column == "matrix" else "right")
    for m in sorted(done.matrices, key=lambda m: -m.relative_error)[:SHOWN]:
        table.add_row(
            m.name,
            f"{m.rows}x{m.columns}",
            f"{m.relative_error:.3%}",
            f"{m.largest_error:.2e}",
            f"{m.zeroed}",
        )
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    again = f", {done.resumed} of them by an earlier run" if done.resumed else ""
    console.print(
        f"{done.folder}: {done.source_bytes / 1e9:.3f} GB became {done.bytes / 1e9:.3f} GB in {done.shards} shards{again}; "
        f"{len(done.matrices)} matrices converted, {done.kept} tensors kept, mean relative error {done.relative_error:.3%}; "
        f"every matrix: {report}"
    )
