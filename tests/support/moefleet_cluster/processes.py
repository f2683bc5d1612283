"""Child processes that never outlive this one, and waiting for them with an answer when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The kernel kills the program when the thread that started it ends. A preexec function would do the same, but Python between fork
# and exec is unsafe beside the threads of a test run (gRPC has many).
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
POLL_S = 0.05
# Enough of a dying program's log to see why; whole logs stay in the state folder.
LOG_TAIL_LINES = 15


class ProcessEndedError(RuntimeError):
    """A process that should run has ended; the message holds the end of its log."""


@dataclass
class Processes:
    """The processes of one cluster part. Their logs lie as `<name>.log` in `folder`.

    Start and stop them from a thread that lives as long as they should: the kernel counts the thread as the parent.
    """

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self, name: str, *command: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*DIE_WITH_PARENT, *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )
        self.running[name] = process
        return process

    def check(self) -> None:
        """
        Raises:
            ProcessEndedError: when one has ended, with the last lines of its log.
        """
        for name, process in self.running.items():
            if process.poll() is not None:
                raise ProcessEndedError(f"{name} ended with {process.returncode}:\n{self.log_tail(name)}")

    def log_tail(self, name: str, lines: int = LOG_TAIL_LINES) -> str:
        path = self.folder / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(self, what: str, ask: Callable[[], object], limit_s: float) -> float:
        """Asks until the answer is truthy and returns the seconds it took. Network errors mean "not yet".

        Raises:
            ProcessEndedError: as soon as one of the processes ends.
            TimeoutError: with the last answer or error.
        """
        begin = time.monotonic()
        last: object = None
        while (passed := time.monotonic() - begin) < limit_s:
            self.check()
            try:
                last = ask()
                if last:
                    return passed
            except OSError as error:  # URLError and HTTPError are OSErrors
                last = error
            time.sleep(POLL_S)
        raise TimeoutError(f"waited {limit_s:.0f} s for {what}; last answer: {last!r}")

    def stop(self, name: str, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace; a process that ended already is fine."""
        process = self.running.pop(name, None)
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_all(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
        for process in self.running.values():
            process.wait()
        self.running.clear()
