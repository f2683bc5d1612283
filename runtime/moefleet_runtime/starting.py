"""Whether a start gets on. Pure: the caller says what time it is and what was seen.

The kubelet counts failures of the startup probe and ends the container after a budget, whatever it does meanwhile. So near the end
of the budget a start that gets on answers the probe with yes: from there on liveness decides, and that says no only of a start
that stands still. What stands still is ended here, with a sentence; the kubelet's counting is for a server that cannot answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Between two looks. /proc of a GPU node has a few thousand processes: 20 ms in a thread.
LOOK_S: Final = 2.0
# Less than this between two looks is what any idle process does: 64 KiB/s, at which 236 GB would take 40 days.
LEAST_BYTES: Final = 128 << 10
# A longer time between two looks was a process, or a machine, that stood still as a whole: nothing can be said of it.
BLIND_S: Final = 30.0
# Of the probe's budget: after it a start that gets on is handed over to the liveness probe.
HANDOVER_SHARE: Final = 0.75
# Without any progress, by engine: building and autotuning a 236B model compiles for minutes without a file to read.
START_STALL_S: Final[Mapping[str, float]] = {"TensorRTLLM": 1800.0, "Torch": 600.0, "Simulated": 600.0}


class StartWatch:
    def __init__(self, born_s: float, stall_s: float, budget_s: float) -> None:
        """`budget_s`: of the startup probe; 0: there is none."""
        self.stall_s = stall_s
        self.handed_over = False
        self.next_look_s = born_s
        self._born_s = born_s
        self._budget_s = budget_s
        self._progress_at_s = born_s
        self._work: int | None = None
        self._marks: tuple[int, ...] | None = None

    def look(self, now_s: float, work: int, marks: tuple[int, ...]) -> None:
        """`work`: bytes that the process tree has moved so far; less of it than before is a process that ended.
        `marks`: whatever else shows progress by changing at all."""
        blind = now_s - self.next_look_s > BLIND_S
        self.next_look_s = now_s + LOOK_S
        if blind or self._work is None or abs(work - self._work) >= LEAST_BYTES or marks != self._marks:
            self._progress_at_s = now_s
        self._work, self._marks = work, marks
        late = self._budget_s > 0 and now_s - self._born_s >= HANDOVER_SHARE * self._budget_s
        if late and now_s - self._progress_at_s < self.stall_s:
            self.handed_over = True

    def stalled_s(self, now_s: float) -> float:
        """Seconds without progress, once they are too many; else 0."""
        silent_s = now_s - self._progress_at_s
        return silent_s if silent_s >= self.stall_s else 0.0
