"""`moefleet cold-starts`: status.coldStart for people."""

from __future__ import annotations

import io
from typing import Any

from moefleet_cli.cold_starts import HELP, cold_starts_table, measured
from moefleet_operator.planning.cold_start import PHASES
from rich.console import Console

FOUND = {
    "p50": "310s", "p90": "365s", "p99": "420s", "starts": 7, "slowestPhase": "loading",
    "phases": [
        {"name": "scheduling", "p50": "0s"}, {"name": "pulling", "p50": "100s"}, {"name": "loading", "p50": "200s"},
    ],
}  # fmt: skip


def printed(found: dict[str, Any]) -> list[str]:
    out = Console(file=io.StringIO(), width=160)
    out.print(cold_starts_table(found, "team/chat"))
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]


def test_phases_with_bars_and_what_helps_against_the_slowest() -> None:
    title, scheduling, pulling, loading = printed(FOUND)
    assert title == "team/chat: p50 310s, p90 365s, p99 420s of 7 starts"
    assert scheduling.split() == ["scheduling", "0s"]
    assert (pulling.count("█"), loading.count("█")) == (15, 30)
    assert HELP["loading"] in loading
    assert HELP["pulling"] not in pulling


def test_a_status_of_an_older_operator() -> None:
    assert printed({"p50": "5s", "p90": "6s"}) == ["team/chat: p50 5s, p90 6s"]
    assert measured({}) == measured({"status": {"coldStart": None}}) == {}


def test_every_phase_has_its_advice() -> None:
    assert set(HELP) == set(PHASES)
