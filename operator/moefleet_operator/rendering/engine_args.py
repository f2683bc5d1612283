"""Names of engine arguments, checked before a pod is made: a typing error must not end a replica that serves.

The runtime checks names and values again; a test keeps this list equal to the runtime's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from moefleet_operator.api import EngineSpec, conditions

from .problem import Problem

# TensorRTLLM is absent: its arguments are those of the LLM API in its image, which the runtime knows and we do not.
KNOWN_ARGS: Mapping[str, frozenset[str]] = {
    "Simulated": frozenset(
        {"calibration", "speed", "startSeconds", "meanOutputTokens", "vocabularySize", "faults"}
    ),
    "Torch": frozenset({"blocks", "blockTokens", "threads", "cudaGraphs"}),
}


def unknown_args(engine: EngineSpec) -> Problem | None:
    known = KNOWN_ARGS.get(engine.type)
    if known is None:
        return None
    unknown = sorted(set(engine.args) - known)
    if not unknown:
        return None
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return Problem(
        conditions.ENGINE_ARGUMENT_UNKNOWN,
        f"spec.engine.args: the engine {engine.type} has no argument {_quoted(unknown)}; "
        f"{hint}It has {', '.join(sorted(known))}.",
    )


def _quoted(values: list[Any]) -> str:
    return ", ".join(repr(v) for v in values[:5]) + (
        f" and {len(values) - 5} more" if len(values) > 5 else ""
    )
