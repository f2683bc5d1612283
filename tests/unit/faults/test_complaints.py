"""The table of complaints: no number is missing, and what a row names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "tests/faults/complaints.md"
WANTED = {*range(1, 18), *range(36, 57)}
NAMED = re.compile(r"`(tests/[\w./-]+\.(?:py|yaml))(?:::(\w+))?`(?: \[([^\]]+)\])?")
# How a row may begin to judge.
JUDGEMENTS = ("cannot", "partly", "still can")


def rows(text: str) -> dict[int, list[str]]:
    """Number to cells."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0].strip().isdigit():
            assert int(cells[0]) not in found, f"{cells[0]} twice"
            found[int(cells[0])] = cells
    return found


@cache
def names_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def absent(cell: str) -> list[str]:
    """What the cell names and is not there."""
    out = []
    for path, name, row in NAMED.findall(cell):
        file = ROOT / path
        if not file.exists():
            out.append(path)
        elif path.endswith(".py") and name not in names_of(file):
            out.append(f"{path}::{name}")
        elif row and row not in file.read_text():
            out.append(f"{path} [{row}]")
    return out


ROWS = rows(TABLE.read_text())


def test_no_complaint_is_missing() -> None:
    assert set(ROWS) == WANTED


@pytest.mark.parametrize("number", sorted(ROWS))
def test_each_row_judges_and_names_tests_that_exist(number: int) -> None:
    cells = ROWS[number]
    assert len(cells) == 4, cells
    _, complaint, here, shown = cells
    assert len(complaint) > 20
    assert here.startswith(JUDGEMENTS), here
    assert here.startswith("cannot") or len(here) > 20, "what is left must be said"
    assert NAMED.findall(shown), shown
    assert absent(shown) == []
    assert absent(here) == []


@pytest.mark.parametrize(
    "cell",
    [
        "`tests/unit/nowhere.py::test_it`",
        "`tests/unit/faults/test_complaints.py::test_nothing`",
        "`tests/unit/faults/test_complaints.py`",
        "`tests/faults/nothing.yaml`",
        "`tests/unit/planning/test_plan_stories.py::test_plan` [no such row]",
    ],
)
def test_what_is_not_there_is_found(cell: str) -> None:
    assert len(absent(cell)) == 1
