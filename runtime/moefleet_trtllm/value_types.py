"""Type texts of the API snapshot ("Optional[List[int]]"), held against values that came as JSON."""

from __future__ import annotations

import ast
import functools
from collections.abc import Container, Mapping
from typing import Any, Final

_PLAIN: Final[Mapping[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "Path": (str,),
    "dict": (dict,),
}


def models_of(text: str, models: Container[str]) -> list[str]:
    """Names of configuration classes in a type, in the order they are written."""
    return [n.id for n in ast.walk(_parsed(text)) if isinstance(n, ast.Name) and n.id in models]


def complaint(text: str, value: Any, models: Container[str], enums: Mapping[str, Any]) -> str:
    """ "wanted ..., found ..." or empty. A type that JSON cannot hold (an object, a class without a snapshot) is refused."""
    types = _alternatives(_parsed(text))
    wanted: list[str] = []
    for each in types:
        verdict = _fits(each, value, models, enums)
        if verdict is True:
            return ""
        if verdict:
            wanted.append(verdict)
    if not wanted:
        return f"cannot be given here: it is a {text}, which JSON cannot hold"
    return f"wanted {' or '.join(wanted)}, found {value!r:.80}"


@functools.cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Optional":
            return [*_alternatives(node.slice), ast.Constant(None)]
        if node.value.id == "Union" and isinstance(node.slice, ast.Tuple):
            return [inner for each in node.slice.elts for inner in _alternatives(each)]
    return [node]


def _fits(node: ast.expr, value: Any, models: Container[str], enums: Mapping[str, Any]) -> bool | str:
    """True, or how to say what is wanted; empty: nothing that JSON holds can be it."""
    match node:
        case ast.Constant(None):
            return value is None or "null"
        case ast.Name(name) if name in _PLAIN:
            # A bool is an int to Python and to nobody else.
            fits = isinstance(value, _PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
            return fits or {"Path": "a path", "dict": "an object"}.get(name, name)
        case ast.Name(name) if name in enums:
            members = list(enums[name]["members"])
            return value in members or f"one of {', '.join(members)}"
        case ast.Name(name) if name in models:
            return "an object"
        case ast.Subscript(ast.Name("Literal"), choices):
            values = [
                ast.literal_eval(c) for c in (choices.elts if isinstance(choices, ast.Tuple) else [choices])
            ]
            return value in values or f"one of {', '.join(map(repr, values))}"
        case ast.Subscript(ast.Name("List" | "list"), item):
            return _all_fit(item, value, list, models, enums)
        case ast.Subscript(ast.Name("Dict" | "dict"), ast.Tuple([_, item])):
            return _all_fit(item, value, dict, models, enums)
    return ""


def _all_fit(
    item: ast.expr, value: Any, container: type, models: Container[str], enums: Mapping[str, Any]
) -> bool | str:
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, container) and all(_fits(item, each, models, enums) is True for each in items):
        return True
    return f"{'a list' if container is list else 'an object'} of {ast.unparse(item)}"
