"""What people see: rich tables made from rows."""

from __future__ import annotations

from collections.abc import Sequence

from moefleet.inference.v1 import inference_pb2 as pb
from rich.table import Table
from rich.text import Text

from .fleets import Row

_READY_STYLE = {"True": "green", "False": "red", "Unknown": "yellow"}
NOT_MEASURED = "-"


def top_table(rows: Sequence[Row], *, namespaces: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    if namespaces:
        table.add_column("NAMESPACE")
    table.add_column("FLEET")
    table.add_column("READY")
    for name in ("REPLICAS", "IN TOK/S", "OUT TOK/S", "UTIL", "TTFT P99", "COST/M"):
        table.add_column(name, justify="right")
    table.add_column("DECISION")
    table.add_column("REASON", overflow="fold")
    for r in rows:
        cells: list[str | Text] = [r.namespace] if namespaces else []
        cells += [
            r.fleet,
            Text(r.ready, style=_READY_STYLE.get(r.ready, "")),
            r.replicas,
            _number(r.input_tokens_per_second),
            _number(r.output_tokens_per_second),
            NOT_MEASURED if r.utilization_percent is None else f"{r.utilization_percent}%",
            r.ttft_p99 or NOT_MEASURED,
            f"{r.cost_per_million_tokens} {r.currency or ''}".strip()
            if r.cost_per_million_tokens
            else NOT_MEASURED,
            r.decision or NOT_MEASURED,
            # Ready fleets need no explanation beyond the reason of their size.
            Text(r.decision_message or r.reason if r.ready == "True" else f"{r.reason}: {r.message}"),
        ]
        table.add_row(*cells)
    return table


def models_table(models: Sequence[pb.Model]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("MODEL", "FLEET", "ENGINE"):
        table.add_column(name)
    table.add_column("CONTEXT", justify="right")
    for m in models:
        table.add_row(
            m.name, m.fleet or NOT_MEASURED, m.engine or NOT_MEASURED, _number(m.context_length or None)
        )
    return table


def _number(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,}"
