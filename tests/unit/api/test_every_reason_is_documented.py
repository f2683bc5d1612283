"""Reasons are API: each word that any part can write as a reason is in the documented table, found in the parts' sources."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from moefleet_operator.api import conditions
from moefleet_operator.planning.failing import RUNTIME_REASONS
from moefleet_operator.scaling import REASONS as SCALING_REASONS
from moefleet_operator.scaling import Reason
from moefleet_runtime import ending

# Where conditions, Events, decisions and drain reasons come from.
OPERATOR_PARTS = ("scaling", "planning", "rendering", "core", "handlers")
# Reasons of effects that nobody but log and metric sees: no object carries them.
EFFECTS_ONLY = {"Wake", "Status", "Lease", "ReadLease", "Relist", "Stopped"}


def sources(package: str, under: str = "") -> list[Path]:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    return sorted((Path(spec.origin).parent / under).rglob("*.py"))


def parsed(files: list[Path]) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


def reason_positions(modules: Mapping[Path, ast.Module]) -> dict[str, set[int]]:
    """Callables that take a `reason`, by name, and at which place it stands."""
    found: dict[str, set[int]] = {}
    for module in modules.values():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                fields = [
                    statement.target.id
                    for statement in node.body
                    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
                ]
                made = [
                    [argument.arg for argument in method.args.args[1:]]
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__"
                ]
                places = made[0] if made else fields
                name = node.name
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                places = [argument.arg for argument in node.args.args if argument.arg != "self"]
                name = node.name
            else:
                continue
            if "reason" in places:
                found.setdefault(name, set()).add(places.index("reason"))
    return found


def words_given(module: ast.Module, positions: Mapping[str, set[int]]) -> Iterator[str]:
    """Words that are written as a reason in place: `Problem("X", ...)`, `reason="X"`."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = [node.args[at] for at in positions.get(called, ()) if at < len(node.args)]
        values += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        for value in values:
            for part in ast.walk(value):
                if (
                    isinstance(part, ast.Constant)
                    and isinstance(part.value, str)
                    and part.value[:1].isupper()
                ):
                    yield part.value


def test_every_word_that_the_operator_writes_as_a_reason_is_documented() -> None:
    modules = parsed([path for part in OPERATOR_PARTS for path in sources("moefleet_operator", part)])
    positions = reason_positions(modules)
    assert {"Problem", "Verdict", "Notice", "Mark", "Leaving"} <= set(positions), (
        "the search still finds them"
    )
    lacking = {
        (path.name, word)
        for path, module in modules.items()
        for word in words_given(module, positions)
        if word not in conditions.REASONS and word not in EFFECTS_ONLY
    }
    assert lacking == set()


def test_every_reason_of_scaling_is_documented() -> None:
    assert set(SCALING_REASONS) == set(Reason)
    assert {str(reason) for reason in Reason} - set(conditions.REASONS) == set()


def runtime_words() -> set[str]:
    """What the runtime can end with."""
    modules = parsed(sources("moefleet_runtime"))
    positions = reason_positions({p: m for p, m in modules.items() if p.name in ("ending.py", "base.py")})
    assert {"FatalError", "Failure", "StartFailed"} <= set(positions)
    # The engine host and the servers have reasons of other kinds (of a request); a process ends with these three.
    ends = {name: positions[name] for name in ("FatalError", "Failure", "StartFailed")}
    given = {
        word
        for module in modules.values()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", "") in ends or getattr(node.func, "attr", "") in ends)
        for word in words_given(ast.Module([ast.Expr(node)], []), ends)
    }
    return given | set(ending._BY_REASON)


def test_every_end_of_the_runtime_has_a_reason_of_the_api() -> None:
    words = runtime_words()
    assert {"EngineStartFailed", "AddressUnavailable", "OutOfMemory", "CanaryFailed"} <= words
    assert words - set(RUNTIME_REASONS) == set(), "planning/failing.py does not know these"


def test_no_end_is_known_that_the_runtime_does_not_have() -> None:
    assert set(RUNTIME_REASONS) - runtime_words() == set()


@pytest.mark.parametrize("word", sorted(RUNTIME_REASONS))
def test_what_the_api_calls_it_is_documented(word: str) -> None:
    assert RUNTIME_REASONS[word] in conditions.REASONS
