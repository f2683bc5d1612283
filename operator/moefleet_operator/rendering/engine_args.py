"""Names of engine arguments, checked before a pod is made: a typing error must not end a replica that serves.

The runtime checks names and values again; a test keeps our own names equal to the runtime's. Those of TensorRT-LLM's API come from the
snapshot that the runtime of this release drives, so an operator refuses what a newer runtime image would know.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from moefleet_trtllm.api import check_llm_arguments

from moefleet_operator.api import EngineSpec, conditions

from .problem import Problem

KNOWN_ARGS: Mapping[str, frozenset[str]] = {
    "Simulated": frozenset(
        {"calibration", "speed", "startSeconds", "meanOutputTokens", "vocabularySize", "faults"}
    ),
    "Torch": frozenset({"blocks", "blockTokens", "threads", "cudaGraphs"}),
    # Beside these, all of the LLM API.
    "TensorRTLLM": frozenset({"preset", "gpuMemoryGib", "memoryReserveGib", "autotunerCache"}),
}


def wrong_args(engine: EngineSpec) -> Problem | None:
    known = KNOWN_ARGS[engine.type]
    others = {name: value for name, value in engine.args.items() if name not in known}
    if not others:
        return None
    return _llm_args(others, known) if engine.type == "TensorRTLLM" else _unknown(engine.type, others, known)


def _llm_args(args: Mapping[str, Any], own: frozenset[str]) -> Problem | None:
    wrong = check_llm_arguments(args, tuple(sorted(own)))
    if not wrong:
        return None
    unknown = any(complaint.unknown for complaint in wrong)
    return Problem(
        conditions.ENGINE_ARGUMENT_UNKNOWN if unknown else conditions.ENGINE_ARGUMENT_INVALID,
        f"spec.engine.args: {'; '.join(complaint.text for complaint in wrong)}",
    )


def _unknown(engine: str, args: Mapping[str, Any], known: frozenset[str]) -> Problem:
    unknown = sorted(args)
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return Problem(
        conditions.ENGINE_ARGUMENT_UNKNOWN,
        f"spec.engine.args: the engine {engine} has no argument {_quoted(unknown)}; "
        f"{hint}It has {', '.join(sorted(known))}.",
    )


def _quoted(values: list[Any]) -> str:
    return ", ".join(repr(v) for v in values[:5]) + (
        f" and {len(values) - 5} more" if len(values) > 5 else ""
    )
