"""How long the kubelet's startup probe lets a replica start, learnt from how long starts took.

The budget is not what ends a slow load: near its end a start that gets on is left to the liveness probe (the runtime's `starting`),
which ends it only when it stands still. It bounds how long a server that cannot answer at all is believed to be starting, and how
long `started` stays false. Outside of the revision: pods that exist keep theirs, and nothing rolls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from moefleet_operator.api import parse_duration_s

# Before anything was measured, and the least afterwards: the weights of 236 billion parameters from a slow disk take half an
# hour, a tiny checkpoint on a busy CPU minutes.
START_BUDGET_S: Final[Mapping[str, int]] = {"TensorRTLLM": 3600, "Torch": 1200, "Simulated": 600}
# Besides it, weights that come over the network: 236 GB in four hours are 16 MB/s, and starts with a warm cache say nothing of it.
FETCH_BUDGET_S: Final = 4 * 3600
# Over the slowest start of a hundred: another node, another disk, a cold cache of compiled kernels.
START_FACTOR: Final = 3
# The kubelet counts in an int32, and nobody waits for a week.
BUDGET_MAX_S: Final = 7 * 24 * 3600
# Coarse, so that pods of one fleet do not differ for nothing.
STEP_S: Final = 60


def start_budget_s(engine: str, fetches: bool, slowest_s: float) -> int:
    """`slowest_s`: p99 of the measured cold starts; 0: none."""
    floor = START_BUDGET_S[engine] + (FETCH_BUDGET_S if fetches else 0)
    return min(BUDGET_MAX_S, max(floor, math.ceil(START_FACTOR * slowest_s)))


def slowest_start_s(status: Mapping[str, Any]) -> float:
    """p99 of a fleet's cold starts from its status, in whole steps; 0: not known."""
    said = (
        (status.get("coldStart") or {}).get("p99") if isinstance(status.get("coldStart"), Mapping) else None
    )
    try:
        seconds = parse_duration_s(said) if isinstance(said, str) else 0.0
    except ValueError:
        return 0.0
    return float(math.ceil(seconds / STEP_S) * STEP_S)
