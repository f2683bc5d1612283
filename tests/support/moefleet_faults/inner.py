"""Processes and network namespaces of the cluster that this process runs in; it sees no others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from moefleet_e2e.kube import Object

TABLE = "moefleet_faults"


def pids() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def command(pid: int) -> list[str]:
    return _read(pid, "cmdline").split("\0")[:-1]


def program(name: str, *said: str) -> int:
    """The process of a program of the cluster tool, by its arguments.

    Raises:
        LookupError: none or several.
    """
    found = [
        pid
        for pid in pids()
        if (words := command(pid))
        and words[0].endswith(f"/{name}")
        and all(any(s in w for w in words) for s in said)
    ]
    if len(found) != 1:
        raise LookupError(f"wanted one process {name} {' '.join(said)}; found {found}")
    return found[0]


def of_container(pod: Object, container: str) -> list[int]:
    """All processes of a running container.

    Raises:
        LookupError: when there is none.
    """
    statuses = pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", [])
    ids = [
        s["containerID"].rpartition("/")[2]
        for s in statuses
        if s["name"] == container and s.get("containerID")
    ]
    found = sorted(pid for pid in pids() if ids and ids[0] in _read(pid, "cgroup"))
    if not found:
        raise LookupError(f"no process of {pod['metadata']['name']}/{container} runs")
    return found


def is_first(pid: int) -> bool:
    """PID 1 of its container."""
    line = next((x for x in _read(pid, "status").splitlines() if x.startswith("NSpid:")), "")
    return line.split()[-1:] == ["1"]


def send(which: list[int], number: signal.Signals) -> None:
    for pid in which:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def of_node(state: Path, node: str, cluster: str) -> list[int]:
    """kubelet, containerd, shims, device plugin and all containers of a node, but not the cluster tool's own process for it."""
    master = next(
        pid
        for pid in pids()
        if "moefleet_cluster.node" in (words := command(pid)) and words[-1] == node.removeprefix("node")
    )
    mounts = _mounts(master)
    found = []
    for pid in pids():
        in_cgroup = f"{cluster}-{node}/" in _read(pid, "cgroup")
        if pid != master and (in_cgroup or (mounts and _mounts(pid) == mounts)):
            found.append(pid)
    return found


def _mounts(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def restart_after(pid: int, wait_s: float, log: Path) -> subprocess.Popen[bytes]:
    """SIGKILL, a pause, and the same command again. It ends with the pid namespace."""
    words, folder = command(pid), Path(f"/proc/{pid}/cwd").readlink()
    os.kill(pid, signal.SIGKILL)
    time.sleep(wait_s)
    with log.open("ab") as out:
        return subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
        )


def cut(pid: int, addresses: list[str]) -> None:
    """In the network namespace of a container's process: nothing to or from these addresses, and no answer that says so."""
    listed = ", ".join(addresses)
    rules = f"""table inet {TABLE} {{
  chain in {{ type filter hook input priority -300; ip saddr {{ {listed} }} drop; }}
  chain out {{ type filter hook output priority -300; ip daddr {{ {listed} }} drop; }}
}}
"""
    _nft(pid, "-f", "-", stdin=rules)


def heal(pid: int) -> None:
    _nft(pid, "delete", "table", "inet", TABLE)


def _nft(pid: int, *arguments: str, stdin: str | None = None) -> None:
    subprocess.run(
        ["nsenter", "--target", str(pid), "--net", "nft", *arguments],
        input=stdin, text=True, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
