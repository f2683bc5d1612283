"""`moefleet explain`: the terms of a decision as a person reads them.

Terms come from the ring of the last 200 decisions in the fleet's ConfigMap `<fleet>-scaling`, key `decisions`: one JSON object a line,
oldest first, `{"at": unix seconds, "from": 2, "to": 3, "reason": ..., "message": ..., "terms": {...}}`. The operator writes it every
few minutes, so the very last decision may be known only by its sentence in the fleet's status; then that is what is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from moefleet_operator.api import MoEFleet
from moefleet_operator.scaling import REASONS, Reason
from pydantic import ValidationError
from rich.table import Table

from .exits import Exit
from .fleets import Cluster
from .options import InputError, Output, OutputOption, console

CONFIG_MAP_SUFFIX = "-scaling"
DECISIONS_KEY = "decisions"

BOUNDS = {
    "TPOT": "a fuller step would be slower than timePerOutputToken allows",
    "Slots": "no more sequences fit into the batch",
    "KVCache": "the contexts fill the KV cache",
    "BatchTokens": "the prompts fill the tokens of a step",
}


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision with its terms; without them it is only the sentence of the status."""

    at_s: float
    before: int
    after: int
    reason: str
    message: str
    terms: Mapping[str, float | int | str] = field(default_factory=dict)


def explain_command(
    fleet: Annotated[str, typer.Argument(help="Name of the fleet.")],
    *,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The decision in force then: 2026-01-31T12:00:00Z, or HH:MM of today, UTC."),
    ] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="Default: as kubectl.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:  # fmt: skip
    """Say why a fleet has its size: arriving work, capacity, headroom, pending, backlog, hold and limits."""
    wanted_s = None if at is None else parse_time(at, datetime.now(UTC))
    cluster = Cluster(kubeconfig, context)
    where = namespace or cluster.namespace
    body = cluster.fleet(where, fleet)
    learnt = cluster.config_map(where, fleet + CONFIG_MAP_SUFFIX)
    records = decisions(learnt)
    if (last := of_status(body)) is not None and (not records or newer(last, records[-1])):
        records.append(last)
    chosen = in_force(records, wanted_s)
    if chosen is None:
        raise InputError(no_decision(records, fleet, wanted_s), Exit.FAILED)
    if output is Output.JSON:
        print(json.dumps({"fleet": fleet, "namespace": where, **record_json(chosen)}))
        return
    console().print(explanation(chosen, f"{where}/{fleet}", limits(body)))


def decisions(config_map: Mapping[str, Any] | None) -> list[DecisionRecord]:
    """Oldest first; a line that cannot be read is of a newer release, and is left out."""
    found: list[DecisionRecord] = []
    for line in str(((config_map or {}).get("data") or {}).get(DECISIONS_KEY, "")).splitlines():
        try:
            row = json.loads(line)
            found.append(
                DecisionRecord(float(row["at"]), int(row["from"]), int(row["to"]), str(row["reason"]), str(row.get("message", "")), dict(row.get("terms") or {}))
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda d: d.at_s)


def of_status(body: Mapping[str, Any]) -> DecisionRecord | None:
    last = ((body.get("status") or {}).get("scaling") or {}).get("lastDecision")
    if not last:
        return None
    return DecisionRecord(parse_time(last["time"], datetime.now(UTC)), last["from"], last["to"], last["reason"], last.get("message", ""))  # fmt: skip


def newer(status: DecisionRecord, recorded: DecisionRecord) -> bool:
    """The status has whole seconds: the same decision is not newer than itself."""
    same = (status.after, status.reason) == (recorded.after, recorded.reason)
    return status.at_s > recorded.at_s and not (same and status.at_s - recorded.at_s < 1)


def in_force(records: Sequence[DecisionRecord], at_s: float | None) -> DecisionRecord | None:
    """The newest, or the last one made at or before the time."""
    fitting = [r for r in records if at_s is None or r.at_s <= at_s]
    return fitting[-1] if fitting else None


def no_decision(records: Sequence[DecisionRecord], fleet: str, at_s: float | None) -> str:
    if at_s is None or not records:
        return f"{fleet}: no decision yet; `kubectl describe moefleet {fleet}` says what it waits for"
    return f"{fleet}: no decision is kept from {_time(at_s)}; the oldest is from {_time(records[0].at_s)}"


def limits(body: Mapping[str, Any]) -> str:
    try:
        scaling = MoEFleet.parse(dict(body)).spec.scaling
    except ValidationError:
        return ""
    return f"minReplicas {scaling.min_replicas}, maxReplicas {scaling.max_replicas}, mode {scaling.mode}"


def record_json(record: DecisionRecord) -> dict[str, Any]:
    return {
        "at": record.at_s, "time": _time(record.at_s), "from": record.before, "to": record.after,
        "reason": record.reason, "message": record.message, "terms": dict(record.terms),
    }  # fmt: skip


def explanation(record: DecisionRecord, name: str, bounds: str) -> Table:
    table = Table(
        box=None, pad_edge=False, show_header=False,
        title=f"{name}: {record.before} -> {record.after} replicas, {record.reason}, {_time(record.at_s)}", title_justify="left",
    )  # fmt: skip
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if record.reason in set(Reason):
        table.add_row("means", REASONS[Reason(record.reason)])
    for head, said in sentences(record.terms):
        table.add_row(head, said)
    if not record.terms:
        table.add_row("in a sentence", record.message)
        table.add_row("", "(its terms are not recorded yet: the operator writes them every few minutes)")
    if bounds:
        table.add_row("limits", bounds)
    return table


def sentences(terms: Mapping[str, float | int | str]) -> list[tuple[str, str]]:
    """What is zero is said where zero is news, and left out where it is not. Terms that we do not know are shown as they are."""
    if not terms:
        return []
    left = dict(terms)

    def take(name: str) -> float:
        value = left.pop(name, 0)
        return float(value) if not isinstance(value, str) else 0.0

    arriving, prefill = take("arriving"), take("arriving_prefill")
    rate, inputs, outputs = take("arrival_rps"), take("mean_input_tokens"), take("mean_output_tokens")
    said = [
        (
            "arriving work",
            f"{arriving:.2f} replicas' (prefill {prefill:.2f}, decode {arriving - prefill:.2f}): {rate:.3g} requests/s of"
            f" {inputs:,.0f} prompt and {outputs:,.0f} generated tokens" if arriving > 0 else "nothing arrives",
        )
    ]  # fmt: skip
    carried, bound = take("capacity_rps"), str(left.pop("bound", ""))
    in_tok, out_tok = take("capacity_input_tok_s"), take("capacity_output_tok_s")
    if carried > 0:
        why = f"; what limits it: {BOUNDS.get(bound, bound)}" if bound else ""
        said.append(("capacity", f"each carries {carried:.3g} requests/s of these ({in_tok:,.0f} prompt and {out_tok:,.0f} generated tokens/s){why}"))  # fmt: skip
    else:
        said.append(("capacity", "not known: no request has been seen"))
    forecast, headroom = take("forecast"), take("headroom_ratio")
    lead_s = take("lead_s")
    source = str(left.pop("headroom_source", ""))
    said.append(("forecast", f"{forecast:.2f} replicas over the longer windows"))
    season, skill = take("season_ratio"), take("season_skill")
    if season > 0:
        said.append(("hour of the day", f"adds {100 * season:.0f} %: knowing other days has spared {100 * skill:.0f} % of the forecast's loss of late"))  # fmt: skip
    if (level := take("level")) > forecast:
        said.append(
            (
                "level",
                f"{level:.2f} replicas not long ago: demand is believed to fall by half an hour, not faster",
            )
        )
    said.append(
        (
            "headroom",
            f"{headroom:.0%} of it, for what arrives during a cold start of {lead_s:.0f} s".replace("%", " %")
            + (f" ({source})" if source else ""),
        )
    )
    allowed, balance = take("allowed_share"), take("budget_balance")
    if allowed > 0:
        said.append(
            (
                "misses allowed",
                f"{100 * allowed:.3g} % of requests are left out by the headroom;"
                f" {100 * max(balance, 0.0):.0f} % of what may be saved up is unspent",
            )
        )
    if (backlog := take("backlog")) > 0:
        said.append(("backlog", f"{backlog:.2f} replicas, so that what waits is gone in time"))
    if (kv := take("kv")) > 0:
        said.append(("KV caches", f"the contexts that are held fill {kv:.2f} replicas' caches"))
    need, wanted = take("need"), take("wanted")
    said.append(("need", f"{need:.2f} replicas, rounded to {wanted:.0f}"))
    if (pending := take("pending")) > 0:
        said.append(
            ("pending", f"{pending:.0f} on their way count as supply: they are part of the target already")
        )
    if (dead := take("dead")) > 0:
        said.append(("failed starts", f"{dead:.0f} should long be ready and are replaced"))
    enough, held, hold_s = take("enough"), take("held"), take("hold_s")
    if held > wanted or enough > wanted:
        said.append(("hold", f"not below {max(held, enough):.0f}: the most that was called enough in the last {hold_s:.0f} s"))  # fmt: skip
    if (cold := take("cold_cache_share")) > 0:
        said.append(("cold caches", f"{100 * cold:.0f} % of the replicas are new: nothing is counted on in their prefix caches yet"))  # fmt: skip
    if (ratio := take("step_time_ratio")) > 0:
        more = ", a quarter more is kept than when it was right" if ratio > 1 else ""
        said.append(("step model", f"steps take {ratio:.2f} times what it says: nothing goes down{more}"))
    if (flaps := take("flaps")) > 0:
        said.append(("flaps", f"{flaps:.0f} starts of the last hour came soon after a scale-down"))
    if take("bypass"):
        said.append(("bypass", "replicas served more than the gateways sent: the larger count is used"))
    said += [(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in left.items() if value]  # fmt: skip
    return said


def parse_time(text: str, now: datetime) -> float:
    """Unix seconds of an ISO time (UTC when it names no zone) or of HH:MM on the day of `now`."""
    try:
        if len(text) <= len("HH:MM:SS") and ":" in text:
            clock = datetime.strptime(text if text.count(":") == 2 else f"{text}:00", "%H:%M:%S")
            found = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
        else:
            found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"at: wanted a time as 2026-01-31T12:00:00Z or 12:00, found {text!r}") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
