"""A cluster that stays: `up` leaves it running behind, `down` ends it, `status` and `shell` look at it.

Its state lies in `.cluster` of the repository. `python -m moefleet_cluster.background FOLDER` is the process that stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from . import cgroups, flags
from .images import REPOSITORY
from .kubectl import Kubectl, KubectlError
from .namespaces import END_GRACE_S, Namespaces, environment
from .node_documents import GATEWAY
from .processes import Processes
from .spec import ClusterSpec

START_LIMIT_S = 300.0
POLL_S = 0.2


class BackgroundError(RuntimeError):
    """The cluster did not do what was asked; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Background:
    """A running cluster. `kubeconfig` works on the host, `inner_pid` is process 1 of its namespaces."""

    pid: int
    inner_pid: int
    kubeconfig: Path
    programs: Path

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.programs / "kubectl", self.kubeconfig)


def default_folder() -> Path:
    return REPOSITORY / ".cluster"


def find(folder: Path) -> Background | None:
    """The cluster of this folder, or None when none runs."""
    path = folder / "background.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if not _is_supervisor(found["pid"]):
        return None
    return Background(found["pid"], found["inner_pid"], Path(found["kubeconfig"]), Path(found["programs"]))


def up(folder: Path, spec: ClusterSpec) -> Background:
    """Starts a cluster behind this process and returns when it is ready; the spec's name and state are set here.

    Raises:
        BackgroundError: when one runs already, or it does not start; with the end of its log.
    """
    if find(folder):
        raise BackgroundError(f"a cluster already runs in {folder}; `down` ends it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    replace(spec, state=str(folder)).write(folder / "asked.json")
    with (folder / "background.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moefleet_cluster.background", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True,
        )  # fmt: skip
    until = time.monotonic() + START_LIMIT_S
    try:
        while time.monotonic() < until:
            if found := find(folder):
                return found
            if process.poll() is not None:
                break
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    process.terminate()
    process.wait()
    said = (folder / "background.log").read_text(errors="replace").strip()
    raise BackgroundError(f"the cluster did not start (logs in {folder}):\n{said[-3000:]}")


def down(folder: Path) -> bool:
    """Ends the cluster and removes its state; False when there was nothing to end."""
    found = find(folder)
    if found:
        os.kill(found.pid, signal.SIGTERM)
        until = time.monotonic() + 2 * END_GRACE_S
        while _is_supervisor(found.pid):
            if time.monotonic() > until:
                raise BackgroundError(f"process {found.pid} of the cluster in {folder} does not end")
            time.sleep(POLL_S)
    existed = folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return found is not None or existed


def status(folder: Path) -> str:
    found = find(folder)
    if not found:
        return f"no cluster runs in {folder}"
    facts = json.loads((folder / "cluster.json").read_text())
    try:
        nodes = found.kubectl("get", "nodes", "-o", "wide").rstrip()
    except KubectlError as error:
        nodes = f"the API server does not answer: {error}"
    return f"running since it was ready in {facts['times']['ready_s']} s (process {found.pid}, logs in {folder})\n{nodes}\n{how_to_use(found)}"


def how_to_use(found: Background) -> str:
    return "\n".join(
        (
            f"  export KUBECONFIG={found.kubeconfig} PATH={found.programs}:$PATH",
            "  kubectl get nodes",
            "  python -m moefleet_cluster shell     # a shell inside, where pods and Services can be reached",
            "  python -m moefleet_cluster down",
        )
    )


def enter(folder: Path, command: list[str]) -> list[str]:
    """The command line that runs `command` (a shell when empty) inside the cluster's namespaces.

    Raises:
        BackgroundError: when none runs.
    """
    found = find(folder)
    if not found:
        raise BackgroundError(f"no cluster runs in {folder}; `up` starts one")
    inside = [
        "env",
        f"KUBECONFIG={folder}/plane/admin.kubeconfig",
        f"PATH={found.programs}:{os.environ['PATH']}",
    ]
    inside.append(f"MOEFLEET_CLUSTER_STATE={folder}")
    shell = os.environ.get("SHELL", "/bin/sh")
    enter_all = [
        "nsenter",
        "--target",
        str(found.inner_pid),
        "--mount",
        "--net",
        "--pid",
        f"--wd={Path.cwd()}",
        "--",
    ]
    return [*enter_all, *inside, *(command or [shell])]


def _is_supervisor(pid: int) -> bool:
    """Process ids are used again, so its command line must say that it is one."""
    with contextlib.suppress(OSError):
        return b"moefleet_cluster.background" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


# --- the process that stays -----------------------------------------------------------------------------------------
def supervise(folder: Path, environ: Mapping[str, str] = os.environ) -> int:
    spec = replace(ClusterSpec.read(folder / "asked.json"), name=cgroups.name_of(os.getpid()))
    namespaces = Namespaces(spec, [])
    processes = Processes(folder)
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    namespaces.start()
    door = False
    while namespaces.running and not ending.wait(POLL_S):
        inner = namespaces.inner_pid()
        if not door and inner and (folder / "cluster.json").exists():
            door = _open_door(spec, processes, inner)
        if door:
            processes.check()
    if namespaces.running:
        namespaces.end()
        # Process 1 ends within its own grace; the kernel ends the rest of the namespace with it.
        threading.Timer(END_GRACE_S, namespaces.kill).start()
    status_code = namespaces.wait()
    processes.kill_all()
    (folder / "background.json").unlink(missing_ok=True)
    os._exit(0 if ending.is_set() else status_code or 1)  # no waiting for the timer


def _open_door(spec: ClusterSpec, processes: Processes, inner_pid: int) -> bool:
    """A port of the host that leads to the API server, and the kubeconfig for it."""
    folder = spec.folder
    admin = json.loads((folder / "plane/admin.kubeconfig").read_text())
    target = str(admin["clusters"][0]["cluster"]["server"]).removeprefix("https://")
    assert target.startswith(GATEWAY)
    port_file = folder / "port"
    processes.start(
        "forward", sys.executable, "-m", "moefleet_cluster.forward", str(inner_pid), target, str(port_file)
    )
    processes.wait_until("the forwarded port", port_file.exists, 30)
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    token = str(admin["users"][0]["user"]["token"])
    server = f"https://127.0.0.1:{port_file.read_text()}"
    kubeconfig.write_text(flags.kubeconfig(server, folder / "plane/pki/ca.crt", "admin", token))
    facts = {
        "pid": os.getpid(),
        "inner_pid": inner_pid,
        "kubeconfig": str(kubeconfig),
        "programs": spec.programs,
    }
    partial = folder / "background.partial"
    partial.write_text(json.dumps(facts, indent=1))
    partial.rename(folder / "background.json")
    return True


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1])))
