"""Processes in the place of the MPI workers: in sessions of their own, as orphans they live on (notes 4; #16404). The engine
host ignores SIGTERM, and so do those it starts."""

from __future__ import annotations

import shutil
import subprocess


def spawn(count: int) -> list[subprocess.Popen[bytes]]:
    program = shutil.which("sleep")
    assert program is not None
    return [
        subprocess.Popen(
            # What mpi4py's pool looks like in a process list.
            ["python -m mpi4py.futures.server", "100000"],
            executable=program,
            start_new_session=True,
        )
        for _ in range(count)
    ]
