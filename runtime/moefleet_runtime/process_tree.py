"""Which processes an engine has started, by what Linux says in /proc.

An engine's helpers (MPI workers) may sit in sessions of their own and outlive their parent, so neither a process group nor
parentage finds them all. A variable in the environment does: every process inherits it from the one that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
# In the environment of an engine host and of all that it starts, with a value that no other host has.
HOST_VARIABLE: Final = "MOEFLEET_ENGINE_HOST"
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Between two looks for processes that were just being started while others were ended.
LOOK_AGAIN_S: Final = 0.02


class ProcessId(NamedTuple):
    """A number alone is given to another process some day."""

    pid: int
    # Clock ticks since boot.
    started: int


def processes() -> dict[ProcessId, int]:
    """All that run, with their parents' numbers; ended ones that nobody waited for are left out."""
    found: dict[ProcessId, int] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        # It may end while we read.
        with contextlib.suppress(OSError, ValueError, IndexError):
            # After the name, which may hold anything, in its last parenthesis.
            state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if state not in ("Z", "X"):
                found[ProcessId(int(entry.name), int(rest[17]))] = int(parent)
    return found


def descendants(pid: int) -> dict[ProcessId, str]:
    """Of a process, with their command lines; those whose parent has ended are not found."""
    everyone = processes()
    found: dict[ProcessId, str] = {}
    generation = {pid}
    while generation:
        born = {each for each, parent in everyone.items() if parent in generation and each not in found}
        for each in born:
            with contextlib.suppress(OSError):
                found[each] = _command_line(each)
        generation = {each.pid for each in born}
    return found


def work_bytes(pid: int) -> int:
    """What a process's descendants have read or written by system calls and touched of memory since each began: grows while one
    loads, whether it reads its files or maps them, and stands still while it waits or spins. Not its own: this look reads, too."""
    total = 0
    for each in (found.pid for found in descendants(pid)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = (PROC / str(each) / "io").read_text().splitlines()
            total += int(lines[0].split()[1]) + int(lines[1].split()[1])
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (PROC / str(each) / "stat").read_text().rpartition(")")[2].split()
            # minflt and majflt.
            total += (int(fields[7]) + int(fields[9])) * PAGE_BYTES
    return total


def with_variable(name: str, value: str) -> dict[ProcessId, str]:
    """Processes that were started with this in their environment, ourselves left out, with their command lines."""
    wanted = f"{name}={value}".encode()
    found: dict[ProcessId, str] = {}
    for each in processes():
        with contextlib.suppress(OSError):
            environment = (PROC / str(each.pid) / "environ").read_bytes().split(b"\0")
            if wanted in environment and each.pid != os.getpid():
                found[each] = _command_line(each)
    return found


def _command_line(process: ProcessId) -> str:
    line = (PROC / str(process.pid) / "cmdline").read_bytes()
    return line.replace(b"\0", b" ").decode(errors="replace").strip()


def end_with_variable(name: str, value: str, *, within_s: float) -> Mapping[ProcessId, str]:
    """Kills them until none is found; those that are still there after `within_s` (stuck in a driver)."""
    until_s = time.monotonic() + within_s
    while left := with_variable(name, value):
        kill(each.pid for each in left)
        if time.monotonic() > until_s:
            break
        time.sleep(LOOK_AGAIN_S)
    return left


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
