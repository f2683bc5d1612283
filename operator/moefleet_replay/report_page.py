"""HTML by hand: one page, one style, tables of text. Nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; } h3 { margin-top: 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #eee; vertical-align: top; }
td.word { font-weight: 600; } td.PASS { color: #1b7f3b; } td.FAIL { color: #c1121f; } td.UNDECIDED { color: #8a6d00; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; } svg { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
"""


def page(title: str, body: str) -> str:
    """`body` is HTML; `title` is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], classes: Mapping[int, str] | None = None
) -> str:
    """Cells are text. A column of `classes` gets that class and its own first word as another."""
    marked = classes or {}

    def cell(column: int, text: str) -> str:
        name = (
            f' class="{marked[column]} {escape(text.partition(" ")[0], quote=True)}"'
            if column in marked
            else ""
        )
        return f"<td{name}>{escape(text)}</td>"

    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
