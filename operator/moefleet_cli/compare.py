"""`moefleet replay compare`: a study file run in parallel processes, judged by its own criterion, written as JSON and HTML."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .exits import Exit
from .options import Output, OutputOption, console, replay_input, written

if TYPE_CHECKING:
    from moefleet_replay.compare_jobs import Results
    from moefleet_replay.compare_verdict import Line

_WORD_STYLE = {"PASS": "green", "FAIL": "red", "UNDECIDED": "yellow"}


def compare_command(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="As operator/studies/production.toml.")],
    *,
    traces: Annotated[Path, typer.Option(help="Folder that the study's paths begin at.", file_okay=False, exists=True)],
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = os.cpu_count() or 1,
    cache: Annotated[Path, typer.Option(help="Results of runs; a study that was cut goes on from here.")]
    = Path(".moefleet-replay"),
    subset: Annotated[
        str | None, typer.Option(help="A quick look: 'segments=A|B;policies=X|Y;seeds=0;calibrations=aic;defaults', any part.")
    ] = None,
    prune: Annotated[bool, typer.Option(help="Leave out what cannot change the verdict (rules are in the study).")] = True,
    cached: Annotated[
        bool, typer.Option("--cached", help="Run nothing: report and judge what the cache has of the study.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write verdict and tables here, to be read without a browser.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write all numbers here.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:  # fmt: skip
    """Compare policies as a study file says: frontiers, ratios and the verdict on its criterion. Resumable."""
    command = ["moefleet", "replay", "compare", *sys.argv[3:]] if sys.argv[1:3] == ["replay", "compare"] else ["moefleet", "replay", "compare", str(study_file)]  # fmt: skip
    with replay_input("moefleet replay compare"):
        from moefleet_replay.compare import StudyError, load_study
        from moefleet_replay.compare_cache import Cache
        from moefleet_replay.compare_jobs import cached_runs, run_study
        from moefleet_replay.compare_verdict import judged
        from moefleet_replay.report import comparison_html, comparison_json
        from moefleet_replay.report_text import comparison_markdown

        study = load_study(study_file, traces, subset)
        if cached:
            study, results = cached_runs(study, Cache(cache))
            if not results.runs:
                raise StudyError(f"cache {cache}: has no run of {study_file} by this code")
        else:
            with runs_bar() as told:
                results = run_study(study, Cache(cache), jobs=jobs, prune=prune, told=told)
        document = comparison_json(study, results, command)
        if json_out is not None:
            written(json_out, json.dumps(document, indent=1) + "\n")
        if html is not None:
            written(html, comparison_html(study, results, command))
        if markdown is not None:
            written(markdown, comparison_markdown(study, results, command))
        lines = judged(study, results.summaries)
    for key, error in results.failed.items():
        print(f"failed: {key.setting} on {key.segment}, {key.calibration}, seed {key.seed}: {error}", file=sys.stderr)  # fmt: skip
    if output is Output.JSON:
        print(json.dumps(document))
    else:
        console().print(verdict_table(lines))
    if results.failed:
        raise typer.Exit(int(Exit.FAILED))


def verdict_table(lines: list[Line]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "RULE", "CALIBRATION"):
        table.add_column(name, no_wrap=True)
    table.add_column("WHAT WAS FOUND", overflow="fold")
    for line in lines:
        table.add_row(
            f"[{_WORD_STYLE[line.word]}]{line.word}[/]", line.rule, line.calibration, f"{line.text}"
        )
    return table


@contextmanager
def runs_bar() -> Iterator[Callable[[Results, int], None]]:
    """Runs of the wave under way, on a terminal; elsewhere a line for each tenth run."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("runs", total=None)

        def told(results: Results, waiting: int) -> None:
            done = len(results.runs) + len(results.failed)
            bar.update(task, completed=done, total=done + waiting)
            if not errors.is_terminal and (done % 10 == 0 or waiting == 0):
                print(f"{done} runs are there, {waiting} of this wave are left", file=sys.stderr, flush=True)

        yield told
