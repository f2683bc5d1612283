"""The engine's own processes: MPI workers that compute, and that may die without the engine saying a word."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from moefleet_runtime.process_tree import HOST_VARIABLE, ProcessId, descendants, with_variable

# In the command line of a worker: mpi4py's pool under MPI, multiprocessing's with one GPU. Helpers that come and go
# (compilers, resource trackers) have others.
WORKER_MARKS: Final = ("mpi4py.futures", "multiprocessing.spawn")


def ours() -> Mapping[ProcessId, str]:
    """By the mark of the host process, where it has one: MPI's daemon may have left our family tree."""
    mark = os.environ.get(HOST_VARIABLE)
    return with_variable(HOST_VARIABLE, mark) if mark else descendants(os.getpid())


class Workers:
    def __init__(self, look: Callable[[], Mapping[ProcessId, str]] = ours) -> None:
        self._look = look
        self._known: frozenset[ProcessId] = frozenset()

    @property
    def count(self) -> int:
        return len(self._known)

    def remember(self) -> None:
        """Once, when the engine has started: those that run now are the ones it needs."""
        self._known = frozenset(
            each for each, line in self._look().items() if any(mark in line for mark in WORKER_MARKS)
        )

    def lost(self) -> str:
        """Which have ended, as a sentence; empty while all run. An engine without workers has none to lose."""
        if not self._known:
            return ""
        gone = sorted(each.pid for each in self._known.difference(self._look()))
        if not gone:
            return ""
        return f"{len(gone)} of its {self.count} worker processes ended (pid {', '.join(map(str, gone))})"
