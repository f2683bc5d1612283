"""Results of runs, kept by what made them: a changed argument, trace or line of code is another key, anything else is read back.

The key of a run is the sha256 of its arguments, of the bytes of its trace files, of its calibration, and of the code that it went
through: the simulator for all, the policy's own module for peers, and the operator's decision and planner for ours. So work on our
policy runs ours again and leaves the peers' results alone.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import os
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from moefleet_replay.compare_run import RunArguments, checked, trace_files
from moefleet_replay.policies import REGISTRY

# Of this package, what no run goes through: studies, reports, plans; and what only ours goes through.
_SHOWING: Final = ("compare", "report", "plan", "fidelity")
_RUN: Final = "compare_run.py"
_OURS: Final = ("ours.py", "planned.py")
# Of moefleet_perf, what everybody's run goes through; ours goes through all of it.
_PERF: Final = ("calibration.py", "capacity.py", "replica.py")
# Of the operator, what decides and what moves our pods.
_OPERATOR: Final = ("scaling", "planning", "rendering", "api", "names.py")


class Cache:
    """One file a run; a run that was cut leaves none, because files appear whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> dict[str, Any] | None:
        try:
            with gzip.open(self._folder / f"{key}.json.gz", "rt", encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError):
            # Half a file, from a full disk: the run is made again.
            return None

    def store(self, key: str, result: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        under_way = self._folder / f".{key}.{os.getpid()}"
        with gzip.open(under_way, "wt", encoding="utf-8") as file:
            json.dump(result, file)
        under_way.replace(self._folder / f"{key}.json.gz")


def run_key(arguments: RunArguments) -> str:
    """Raises what `checked` raises."""
    found = checked(arguments)
    made = {
        # The text of a policy is one of many spellings; its knobs are not.
        "arguments": arguments.to_json() | {"policy": found.spec.name, "knobs": found.knobs, "trace": None},
        "trace": asdict(arguments.trace)
        | {"rates": None, "lengths": None, "trace": _without_path(arguments)},
        "files": [_file_digest(str(p), p.stat().st_mtime_ns) for p in trace_files(arguments.trace)],
        "calibration": repr((found.calibration.step, found.calibration.limits)),
        "code": code_digest(found.spec.name),
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


@cache
def code_digest(policy: str) -> str:
    """sha256 over the sources that a run of this policy goes through, and the numpy that draws its numbers."""
    own_module = REGISTRY[policy].build.__module__
    ours = own_module.endswith(".ours") or own_module.startswith("moefleet_operator")
    replay = _folder("moefleet_replay")
    families = _imported(own_module, replay)
    sources = []
    for path in sorted(replay.rglob("*.py")):
        inside = path.relative_to(replay)
        if inside.parts[0] == "policies":
            run = inside.stem in families
        elif inside.name in _OURS:
            run = ours
        else:
            run = inside.name == _RUN or not inside.name.startswith(_SHOWING)
        if run:
            sources.append(path)
    if ours:
        operator = _folder("moefleet_operator")
        sources += sorted(p for p in operator.rglob("*.py") if p.relative_to(operator).parts[0] in _OPERATOR)
    sources += [p for p in sorted(_folder("moefleet_perf").glob("*.py")) if ours or p.name in _PERF]
    digest = hashlib.sha256(metadata.version("numpy").encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _imported(own_module: str, replay: Path) -> set[str]:
    """Names of the modules of policies/ that this one is made of: itself and what it imports from beside it."""
    under = "moefleet_replay.policies."
    found: set[str] = set()
    left = [own_module.removeprefix(under)] if own_module.startswith(under) else []
    while left:
        name = left.pop()
        path = replay / "policies" / f"{name}.py"
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            if node.module.startswith(under):
                left.append(node.module.removeprefix(under))
            elif node.module == under.rstrip("."):
                left += [alias.name for alias in node.names]
    return found


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(package)
    return Path(next(iter(found.submodule_search_locations)))


def _without_path(arguments: RunArguments) -> str | None:
    trace = arguments.trace.trace
    if trace is None or not trace_files(arguments.trace):
        return trace
    return trace.partition(":")[0]


@cache
def _file_digest(path: str, modified_ns: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
