"""Generated files come from one source and are checked in.

`generated.py` writes them; `generated.py --check` writes them, compares with what was there, puts that back and fails on a difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv/bin/python"

# What makes them, and the files they make.
GENERATORS: list[tuple[list[str], list[str]]] = [
    (
        ["protos/generate.sh"],
        ["protos/moefleet/**/*_pb2.py", "protos/moefleet/**/*_pb2.pyi", "protos/moefleet/**/*_pb2_grpc.py"],
    ),
    ([str(PYTHON), "-m", "moefleet_operator.api.crd"], ["charts/moefleet/files/crds/*.yaml"]),
    ([str(PYTHON), "-m", "moefleet_operator.api.chart_values"], ["charts/moefleet/values.schema.json"]),
]


def contents(patterns: list[str]) -> dict[Path, bytes]:
    return {p: p.read_bytes() for pattern in patterns for p in sorted(ROOT.glob(pattern))}


def main() -> int:
    check = "--check" in sys.argv[1:]
    environment = os.environ | {"GENERATOR_PYTHON": str(ROOT / ".venv-generate/bin/python")}
    different: list[Path] = []
    for command, patterns in GENERATORS:
        before = contents(patterns)
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        after = contents(patterns)
        changed = [p for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
        if not check:
            print(f"{' '.join(command[-1:])}: {len(changed)} of {len(after)} files changed")
            continue
        different += changed
        for path in changed:
            if path in before:
                path.write_bytes(before[path])
            else:
                path.unlink()
    for path in sorted(different):
        print(
            f"{path.relative_to(ROOT)} differs from what its source generates: run `make generate` and commit",
            file=sys.stderr,
        )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
