"""The demo's exit status is a promise: each way of breaking it is told in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moefleet_demo.report import Moment, Report, plot
from moefleet_load.stream import End, Outcome

GOOD = Report(
    requests_ok=5,
    peak_replicas=3,
    final_replicas=1,
    sample_text="Emma was",
    revisions={"tiny": [["a"], ["b"]]},
)


def test_a_good_run_breaks_nothing() -> None:
    assert GOOD.judge() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"requests_ok": 0}, "no request was answered"),
        ({"requests_failed": 2}, "2 requests failed"),
        ({"streams_cut": 1}, "1 streams were cut"),
        ({"sample_text": " "}, "wrote no text"),
        ({"peak_replicas": 2}, "grew to 2 ready replicas instead of 3"),
        ({"final_replicas": 2}, "ended with 2 replicas"),
        ({"revisions": {"tiny": [["a"], ["a", "b"]]}}, "tiny still serves"),
        ({"revisions": {"tiny": [["a"], []]}}, "tiny still serves nothing"),
    ],
)
def test_each_broken_promise_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    (broken,) = replace(GOOD, **change).judge()
    assert sentence in broken


def test_report_and_plot_hold_what_was_counted(tmp_path: Path) -> None:
    report = Report(timeline=[Moment(0, 1, 2, 1, 1, 1), Moment(1, 2, 30, 3, 2, 3)], decisions=[{"at_s": 1.0}])
    outcomes = [
        Outcome("a", 0, 1, End.OK, tokens=[1, 2]),
        Outcome("b", 0, 1, End.CUT, "INTERNAL", "gone", tokens=[1]),
    ]
    report.count(outcomes)
    written = json.loads(report.write(tmp_path).read_text())
    assert (written["requests_ok"], written["streams_cut"], written["output_tokens"]) == (1, 1, 3)
    assert written["errors"] == ["b: INTERNAL gone"]
    plot(report, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
