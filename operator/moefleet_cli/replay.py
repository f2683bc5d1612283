"""`moefleet replay`: one policy on one trace in virtual time. Its commands `compare` and `fidelity` have files of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .compare import compare_command
from .fidelity import fidelity_command
from .options import Output, OutputOption, console, replay_input, text, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from moefleet_replay.result import RunResult

replay_app = typer.Typer(
    name="replay",
    help="Run a scaling policy against traffic in virtual time: what it costs, and what it holds of the objective.",
    invoke_without_command=True,
    add_completion=False,
)
replay_app.command("compare")(compare_command)
replay_app.command("fidelity")(fidelity_command)


@replay_app.callback()
def replay_command(
    context: typer.Context,
    *,
    rates: Annotated[Path | None, typer.Option(help="ServeGen rates: CSV with t_s, rps, agg_idc.")] = None,
    lengths: Annotated[
        Path | None, typer.Option(help="ServeGen lengths: npz with in_<start>, out_<start>.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:PATH",
            help="Instead: azure, mooncake, burstgpt, bailian, demand (what `moefleet record` wrote) or synthetic:NAME,x=y.",
        ),
    ] = None,
    days: Annotated[
        str | None, typer.Option(metavar="A:B", help="Days from zero of the trace's own clock; default all.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Times the traffic; time is never compressed.")] = 1.0,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME[:knob=value,...]", help="See `moefleet policies`.")
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="What a replica can carry: announcement, aic, or a name of moefleet_perf.")
    ] = "announcement",
    cold_start: Annotated[
        str, typer.Option(metavar="lognormal:MEDIAN,P95", help="Seconds from pod creation to ready.")
    ] = "lognormal:240,420",
    objective: Annotated[str, typer.Option(help="Limits, and the percentage that must be inside both.")]
    = "ttft=2s,tpot=100ms,attainment=99",
    arrivals: Annotated[
        str, typer.Option(help="linear: rates between window centres; step: a rate for each window.")
    ] = "linear",
    minimum: Annotated[int, typer.Option("--min", help="Replicas.")] = 1,
    maximum: Annotated[int, typer.Option("--max", help="Replicas.")] = 200,
    gpu_hour_price: Annotated[float, typer.Option(help="Price of one GPU-hour, for cost_per_mtok.")] = 14.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same arguments: same run.")] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="OUT", help="Write the summary here; - is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with plots here.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:  # fmt: skip
    """Run a scaling policy against traffic in virtual time: what it costs, and what it holds of the objective."""
    if context.invoked_subcommand is not None:
        return
    if policy is None or seed is None:
        missing = " and ".join(n for n, v in (("--policy", policy), ("--seed", seed)) if v is None)
        raise typer.BadParameter(f"{missing} missing; or did you mean `moefleet replay compare`?")
    to_stdout = json_out == "-" or output is Output.JSON
    # What a script reads stands alone on standard output.
    people = console(stderr=to_stdout)
    with replay_input("moefleet replay"):
        from moefleet_replay.compare_run import RunArguments, TraceArguments, checked, execute_on, opened

        arguments = RunArguments(
            trace=TraceArguments(text(rates), text(lengths), trace=trace, days=days, scale=scale, arrivals=arrivals),
            policy=policy, calibration=calibration, cold_start=cold_start, objective=objective,
            min_replicas=minimum, max_replicas=maximum, gpu_hour_price=gpu_hour_price, seed=seed,
        )  # fmt: skip
        found = checked(arguments)
        source = opened(arguments.trace, seed)
        for warning in source.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        with simulated_time(source.duration_s) as progress:
            result = execute_on(source, found, arguments, progress)
    document = json.dumps(replay_json(result, source.warnings))
    if json_out is not None and json_out != "-":
        written(Path(json_out), document + "\n")
    if plot is not None:
        from moefleet_replay.report_run import run_html

        written(plot, run_html(result))
    if to_stdout:
        print(document)
    if output is Output.TEXT:
        people.print(summary_table(result))


def replay_json(result: RunResult, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of the summary by their names; all else is under `setup`."""
    setup = {**result.setup, "compile_s": result.compile_s, "warnings": list(warnings), "extra": result.extra}
    return {**result.summary.to_json(), "setup": setup}


def summary_table(result: RunResult) -> Table:
    s = result.summary
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in (
        ("policy", s.policy),
        ("requests", f"{s.requests:,}"),
        ("inside the objective", f"{100 * s.attainment:.3f} %"),
        ("  time to first token", f"{100 * s.ttft_attainment:.3f} %"),
        ("  time per output token", f"{100 * s.tpot_attainment:.3f} %"),
        ("5-minute windows that hold", f"{100 * s.windows_5min_ok:.2f} %"),
        ("GPU-hours", f"{s.gpu_hours:,.1f}"),
        ("cost per million tokens", f"{s.cost_per_mtok:.3f}"),
        ("time to first token p50 / p99 / p99.9", f"{s.ttft_p50_s:.3f} / {s.ttft_p99_s:.3f} / {s.ttft_p999_s:.3f} s"),
        ("time per output token p99", f"{1e3 * s.tpot_p99_s:.1f} ms"),
        ("replica starts", f"{s.replica_starts:,}"),
        ("scaling actions", f"{s.scaling_actions:,}"),
        ("most replicas", f"{s.peak_replicas:,}"),
        ("took", f"{s.wall_s:.1f} s, and {result.compile_s:.1f} s of compiling"),
    ):  # fmt: skip
        table.add_row(name, value)
    for name, share in hours_by_reason(result).items():
        table.add_row(f"  GPU-hours: {name}", f"{share:,.1f}")
    return table


def hours_by_reason(result: RunResult) -> dict[str, float]:
    """What replicas were kept for, in the order of the law, then hours by state; empty for a policy that does not say."""
    prefix = "hours_for_"
    found = {n.removeprefix(prefix): h for n, h in result.extra.items() if n.startswith(prefix)}
    if not found:
        return {}
    return found | {state: result.extra[f"hours_{state}"] for state in ("draining", "starting")}


@contextmanager
def simulated_time(duration_s: float) -> Iterator[Callable[[float], None]]:
    """A bar over simulated time on a terminal; quiet elsewhere."""
    columns = (TextColumn("{task.fields[at]}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=duration_s, at="simulating")

        def told(now_s: float) -> None:
            at = (
                f"{now_s / 86400:.2f} of {duration_s / 86400:.2f} days"
                if duration_s >= 86400
                else f"{now_s / 3600:.2f} of {duration_s / 3600:.2f} h"
            )
            bar.update(task, completed=min(now_s, duration_s), at=at)

        yield told
