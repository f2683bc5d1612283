"""`moefleet plan`: replicas over the day, GPU-hours, cost and margin, before anything is bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .options import Output, OutputOption, console, replay_input, text, written
from .replay import simulated_time

if TYPE_CHECKING:
    from moefleet_replay.plan import Plan

# Characters of the line of bars: two a hour of a day.
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 72


def plan_command(
    *,
    rate: Annotated[float | None, typer.Option(metavar="RPS", help="Requests per second, mean of the day.")] = None,
    input_tokens: Annotated[float | None, typer.Option(metavar="N", help="Mean prompt tokens of a request.")] = None,
    output_tokens: Annotated[float | None, typer.Option(metavar="N", help="Mean generated tokens of a request.")] = None,
    peak_factor: Annotated[float, typer.Option(help="Busiest moment of the day over its mean.")] = 2.0,
    headroom: Annotated[
        float, typer.Option(help="Share kept free in the closed form; a trace lets our policy learn it instead.")
    ] = 0.25,
    rates: Annotated[Path | None, typer.Option(help="As in `moefleet replay`.")] = None,
    lengths: Annotated[Path | None, typer.Option(help="As in `moefleet replay`.")] = None,
    trace: Annotated[str | None, typer.Option(metavar="KIND:PATH", help="As in `moefleet replay`.")] = None,
    days: Annotated[str | None, typer.Option(metavar="A:B")] = None,
    scale: Annotated[float, typer.Option(help="Times the traffic.")] = 1.0,
    replay: Annotated[bool, typer.Option(help="With a trace: run the policy on every request of it.")] = True,
    policy: Annotated[str, typer.Option(metavar="NAME[:knob=value,...]", help="With a trace: who decides.")] = "moefleet",
    calibration: Annotated[str, typer.Option(help="What a replica can carry.")] = "announcement",
    objective: Annotated[str, typer.Option(help="Limits, and the percentage that must be inside both.")]
    = "ttft=2s,tpot=100ms,attainment=99",
    cold_start: Annotated[str, typer.Option(metavar="lognormal:MEDIAN,P95")] = "lognormal:240,420",
    minimum: Annotated[int, typer.Option("--min", help="Replicas.", min=1)] = 1,
    maximum: Annotated[int, typer.Option("--max", help="Replicas.", min=1)] = 200,
    input_price: Annotated[float, typer.Option(help="For a million prompt tokens.", min=0)] = 1.0,
    output_price: Annotated[float, typer.Option(help="For a million generated tokens.", min=0)] = 2.0,
    gpu_hour_price: Annotated[float, typer.Option(help="For one GPU-hour.", min=0)] = 14.0,
    currency: Annotated[str, typer.Option()] = "CNY",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html")] = None,
    output: OutputOption = Output.TEXT,
) -> None:  # fmt: skip
    """Answer what a fleet would need and earn: from a rate with lengths, or from a trace."""
    with replay_input("moefleet plan"):
        from moefleet_replay.compare_run import (
            RunArguments,
            TraceArguments,
            checked,
            execute_on,
            opened,
            parse_objective,
            usable_calibration,
        )
        from moefleet_replay.plan import PlanError, Prices, from_rate, from_trace, replayed

        prices = Prices(input_price, output_price, gpu_hour_price)
        traced = any(option is not None for option in (rates, lengths, trace))
        wanted = parse_objective(objective)
        model = usable_calibration(calibration, wanted)
        if traced and rate is not None:
            raise PlanError("rate: give a rate with lengths, or a trace, not both")
        if traced:
            arguments = RunArguments(
                trace=TraceArguments(text(rates), text(lengths), trace=trace, days=days, scale=scale), policy=policy if replay else "static",
                calibration=calibration, cold_start=cold_start, objective=objective, min_replicas=minimum,
                max_replicas=maximum, gpu_hour_price=gpu_hour_price, seed=seed,
            )  # fmt: skip
            found = checked(arguments)
            source = opened(arguments.trace, seed)
            for warning in source.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            plan = from_trace(source, headroom=headroom, calibration=model, objective=wanted, prices=prices, min_replicas=minimum)  # fmt: skip
            if replay:
                with simulated_time(source.duration_s) as progress:
                    result = execute_on(source, found, arguments, progress)
                plan = replayed(plan, result, prices)
        else:
            if rate is None or input_tokens is None or output_tokens is None:
                raise PlanError("rate: wanted --rate, --input-tokens and --output-tokens, or a trace")
            plan = from_rate(
                rate, input_tokens, output_tokens, peak_factor=peak_factor, headroom=headroom, calibration=model,
                objective=wanted, prices=prices, min_replicas=minimum,
            )  # fmt: skip
        if plot is not None:
            from moefleet_replay.report_run import plan_html

            written(plot, plan_html(plan, currency))
        document = plan_json(plan, currency)
        if output is Output.JSON:
            print(json.dumps(document))
            return
        people = console()
        people.print(plan_table(plan, currency))


def plan_json(plan: Plan, currency: str) -> dict[str, Any]:
    return {
        "source": plan.source, "days": plan.days, "gpu_hours": plan.gpu_hours, "static_gpu_hours": plan.static_gpu_hours,
        "least_replicas": plan.least_replicas, "most_replicas": plan.most_replicas,
        "input_tokens": plan.input_tokens, "output_tokens": plan.output_tokens, "currency": currency, "cost": plan.cost,
        "revenue": plan.revenue, "cost_per_mtok": plan.cost_per_mtok, "margin_percent": plan.margin_percent,
        "attainment": plan.attainment, "bounds": plan.bounds,
        "windows": [
            {"start_s": w.start_s, "requests_per_s": w.requests_per_s, "need": w.need, "replicas": w.replicas, "bound": w.bound}
            for w in plan.windows
        ],
    }  # fmt: skip


def plan_table(plan: Plan, currency: str) -> Table:
    from moefleet_replay.plan import bound_sentences

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    per_day = 1 / plan.days
    margin = plan.margin_percent
    replicas = [w.replicas for w in plan.windows]
    rows = [
        ("replicas over time", sparkline(replicas, SPARK_WIDTH)),
        ("", f"{plan.least_replicas:.0f} to {plan.most_replicas:.0f} replicas of 8 GPUs, from the {plan.source}"),
        ("GPU-hours a day", f"{plan.gpu_hours * per_day:,.0f} ({plan.static_gpu_hours * per_day:,.0f} with {plan.most_replicas:.0f} replicas all day)"),
        ("tokens a day", f"{plan.input_tokens * per_day / 1e6:,.0f} M prompt, {plan.output_tokens * per_day / 1e6:,.0f} M generated"),
        ("cost per million tokens", f"{plan.cost_per_mtok:.3f} {currency}"),
        ("a day", f"costs {plan.cost * per_day:,.0f} {currency}, earns {plan.revenue * per_day:,.0f} {currency}"),
        ("margin", "nothing is earned" if margin is None else f"{margin:.1f} % of what is earned"),
    ]  # fmt: skip
    if plan.attainment is not None:
        rows.append(("inside the objective", f"{100 * plan.attainment:.3f} % of requests"))
    rows += [("what binds" if i == 0 else "", said) for i, said in enumerate(bound_sentences(plan))]
    for row in rows:
        table.add_row(*row)
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """Bars from 0 to the highest value; values that share a character are shown by their highest."""
    count = len(values)
    width = min(width, count)
    parts = [max(values[i * count // width : (i + 1) * count // width]) for i in range(width)]
    highest = max(parts, default=0.0)
    if highest <= 0:
        return SPARKS[0] * width
    return "".join(SPARKS[round(v / highest * (len(SPARKS) - 1))] for v in parts)
