"""The outermost process of a cluster with real nodes: makes its namespaces, passes signals on, tidies up behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from . import cgroups, host_folders
from .processes import DIE_WITH_PARENT
from .spec import ClusterSpec

# The command has 10 s of its own (inside.COMMAND_GRACE_S); after that the kernel ends the pid namespace.
END_GRACE_S = 15.0
UNSHARE = (
    "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
)  # fmt: skip
_SUPPORT = Path(__file__).resolve().parents[1]


class Namespaces:
    """A cluster of `spec` with `command` inside, from `start` to `wait`."""

    def __init__(self, spec: ClusterSpec, command: list[str]) -> None:
        self._spec, self._command = spec, command
        self._process: subprocess.Popen[bytes] | None = None
        self._held = contextlib.ExitStack()

    def start(self) -> None:
        cgroups.remove_leftovers()
        self._held.enter_context(host_folders.held())
        self._spec.folder.mkdir(parents=True, exist_ok=True)
        specification = self._spec.folder / "spec.json"
        self._spec.write(specification)
        inside = [sys.executable, "-m", "moefleet_cluster.inside", str(specification), *self._command]
        # unshare does not pass signals on; when it dies, --kill-child ends process 1 and so the whole namespace.
        self._process = subprocess.Popen([*DIE_WITH_PARENT, *UNSHARE, *inside], env=environment())

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def inner_pid(self) -> int | None:
        """Process 1 of the namespaces, as the host numbers it; None while there is none."""
        if self._process is None:
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                return int(pid)
        return None

    def end(self) -> None:
        """Asks for the end; `wait` returns soon."""
        if (pid := self.inner_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()

    def wait(self) -> int:
        """The exit status, after everything is gone."""
        assert self._process is not None
        status = self._process.wait()
        self._tidy()
        return status

    def _tidy(self) -> None:
        # The kernel frees a cgroup a moment after its last process.
        for _ in range(20):
            cgroups.remove(self._spec.name)
            if not cgroups.exists(self._spec.name):
                break
            time.sleep(0.1)
        self._held.close()


def run(spec: ClusterSpec, command: list[str], *, keep: bool) -> int:
    """Starts a cluster, runs the command inside, and ends it. Without `keep` the state goes too, but for logs after a failure.

    Raises:
        ValueError: when the folder of its state is not empty.
    """
    if spec.folder.exists() and any(spec.folder.iterdir()):
        raise ValueError(
            f"{spec.folder} is not empty: a cluster begins with an empty folder, so that nothing in it is of another one"
        )
    namespaces = Namespaces(spec, command)

    def end(number: int, frame: FrameType | None) -> None:
        namespaces.end()
        signal.signal(signal.SIGALRM, lambda *_: namespaces.kill())
        signal.alarm(int(END_GRACE_S))

    signal.signal(signal.SIGTERM, end)
    # Ctrl-C reaches the command by the terminal; when there is none, whoever sends SIGINT means this process too.
    signal.signal(signal.SIGINT, (lambda number, frame: None) if sys.stdin.isatty() else end)
    namespaces.start()
    status = namespaces.wait()
    if keep:
        return status
    if status == 0:
        shutil.rmtree(spec.folder, ignore_errors=True)
    else:
        keep_logs(spec.folder)
        print(f"cluster: logs of the failed run are in {spec.folder}", file=sys.stderr, flush=True)
    return status


def keep_logs(folder: Path) -> None:
    """Removes everything but logs and facts: etcd's data and keys help nobody."""
    for path in sorted(folder.rglob("*"), reverse=True):
        wanted = path.suffix in {".log", ".json", ".toml"} or "podlogs" in path.parts
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif not wanted:
            path.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Children find this package wherever it was started from."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{_SUPPORT}:{known}" if known else str(_SUPPORT)}
