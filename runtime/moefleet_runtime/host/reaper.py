"""Children: the engine host, and whatever is left to us.

As PID 1 the server inherits every orphan of the pod (helpers of an engine, shells of `kubectl exec`); unreaped they fill the
pod's process table. One thread sits in waitpid. The subreaper flag gives the same behaviour when we are not PID 1.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36


class Reaper:
    def __init__(self, on_exit: Callable[[int, int], None]) -> None:
        """`on_exit(pid, status)` is called in the reaper's thread; status as os.waitstatus_to_exitcode."""
        self._on_exit = on_exit
        self._work = threading.Semaphore(0)

    def start(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def expect_child(self) -> None:
        """Call after each spawn: waitpid without children would spin."""
        self._work.release()

    def _reap(self) -> None:
        while True:
            self._work.acquire()
            while True:
                try:
                    pid, status = os.waitpid(-1, 0)
                except ChildProcessError:
                    break
                self._on_exit(pid, os.waitstatus_to_exitcode(status))
