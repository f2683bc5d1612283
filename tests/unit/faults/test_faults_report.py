"""The table: what is written reads back, a later run replaces its row, and what did not hold stands below it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moefleet_faults import report
from moefleet_faults.judge import Numbers
from moefleet_faults.run import Result

GOOD = Result(
    "replica-killed",
    "kill -9",
    [],
    Numbers(ours=3, plain=2, tokens=80, trailer_tokens=80),
    12.34,
    ran_in_hurt=2,
)
BAD = Result("node-frozen", "SIGSTOP", ["3 requests were touched"], Numbers(tokens=9, trailer_tokens=8), None)


def test_a_row_in_the_readme_replaces_the_one_before(tmp_path: Path) -> None:
    path, readme = tmp_path / "faults/report.json", tmp_path / "README.md"
    readme.write_text(f"head\n{report.BEGIN}\nolder\n{report.END}\ntail\n")
    report.write([report.row(BAD, "aaa")], path)
    rows = report.write([report.row(GOOD, "bbb"), report.row(BAD, "ccc")], path)
    assert [r["name"] for r in rows] == ["node-frozen", "replica-killed"]
    report.write_readme(rows, readme)
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert "older" not in text
    assert "`aaa`" not in text
    (line,) = [x for x in text.splitlines() if x.startswith("| replica-killed ")]
    assert "| yes | 12.3 | 2 |" in line
    (line,) = [x for x in text.splitlines() if x.startswith("| node-frozen ")]
    assert "| NO | never |" in line
    assert "9 != 8" in line
    assert "- **node-frozen**: 3 requests were touched" in text
    assert {len(x.split("|")) for x in text.splitlines() if x.startswith("|")} == {len(report.COLUMNS) + 3}


def test_a_row_that_did_not_run_again_stays_with_what_did_not_hold_in_it(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    old = {**report.row(BAD, "aaa"), "machine": "an old one, 1 core"}
    report.write_readme([old], readme)
    report.write_readme([report.row(GOOD, "bbb")], readme)
    text = readme.read_text()
    assert [x.split()[1] for x in text.splitlines() if x.startswith("| ")] == [
        "scenario",
        "node-frozen",
        "replica-killed",
    ]
    assert "`aaa`" in text
    assert "- **node-frozen**: 3 requests were touched" in text
    assert f"Machine: {report.machine()}; an old one, 1 core." in text
    # Run again and well: nothing of it is left.
    report.write_readme([report.row(replace(BAD, broken=[]), "ccc")], readme)
    assert "`aaa`" not in readme.read_text()
    assert readme.read_text().count("node-frozen") == 1
    assert "Everything held." in readme.read_text()
