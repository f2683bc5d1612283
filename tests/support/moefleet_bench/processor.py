"""Processor time of processes and of the machine, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """All threads of the process, in user and kernel; not its children."""
    return cpu_of_stat(Path(f"/proc/{pid}/stat").read_text(), TICKS_PER_S)


def cpu_of_stat(text: str, ticks_per_s: int) -> float:
    # The name in parentheses may hold spaces and parentheses; utime and stime are the 12th and 13th field after it.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


def machine_busy_s() -> float:
    """All that was not idle since the machine started, over its processors."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, iowait = fields[3], fields[4]
    return (sum(fields) - idle - iowait) / TICKS_PER_S


def only_child(pid: int) -> int:
    """The process that a launcher started."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    if len(children) != 1:
        raise RuntimeError(f"process {pid}: wanted one child, found {children}")
    return children[0]
