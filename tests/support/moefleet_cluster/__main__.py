"""`python -m moefleet_cluster COMMAND`: build, run, up, down, shell, status, images. `build` needs only the standard library."""

from __future__ import annotations

import argparse
import sys

from .build import BuildError, build


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build the programs that are missing from the cache")
    building.add_argument("--only", action="append", metavar="PROGRAM", help="only these (repeat it)")
    building.add_argument(
        "--install", action="store_true", help="install missing packages with apt-get first"
    )
    chosen = parser.parse_args(arguments)
    try:
        build(tuple(chosen.only) if chosen.only else None)
    except (BuildError, LookupError) as error:
        print(f"moefleet_cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
