"""`python -m moefleet_bench [--only NAME]`: runs the benches, prints a table, writes bench/report.json."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from .benches import BENCHES
from .report import Row, command, show, write

REPORT = Path("bench/report.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="the bench that makes this row")
    only = parser.parse_args().only
    chosen = [b for b in BENCHES if only is None or only in b.names]
    if not chosen:
        names = sorted(name for b in BENCHES for name in b.names)
        print(f"no bench makes {only!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    rows: list[Row] = []
    failed = 0
    for bench in chosen:
        console.rule(", ".join(bench.names))
        try:
            made = asyncio.run(bench.run(console))
        except Exception:  # one bench that cannot run must not take the others' results with it
            console.print_exception()
            failed += 1
            continue
        rows += [dataclasses.replace(r, command=command(bench, r.name)) for r in made]
        write(rows, REPORT)
    show(rows, Console())
    print(f"written to {REPORT}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
