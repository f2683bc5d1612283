"""What goes wrong in production, done on purpose: stopped, killed and evicted processes and pods."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
from pathlib import Path

from .kube import CommandError, Kube, Object

# Every process of the container but PID 1, which cannot be stopped or killed from inside, and the script itself.
_OTHERS = """
import os, pathlib, signal
for p in pathlib.Path("/proc").iterdir():
    if p.name.isdigit() and int(p.name) not in (1, os.getpid()):
        try: os.kill(int(p.name), signal.{signal})
        except ProcessLookupError: pass
"""


def signal_children(kube: Kube, pod: str, name: str, container: str = "runtime") -> None:
    """SIGSTOP, SIGCONT or SIGKILL for all that PID 1 of the container has started: the engine host, or Envoy."""
    script = _OTHERS.format(signal=signal.Signals[name].name)
    kube.kubectl("exec", pod, "-c", container, "--", "python3", "-c", script)


def kill_children(kube: Kube, pod: str, container: str = "runtime") -> None:
    """SIGKILL for the engine host, or Envoy. Its parent ends then, and the container takes the command with it: a caller
    looks at what came of it."""
    with contextlib.suppress(CommandError):
        signal_children(kube, pod, "SIGKILL", container)


def kill_first_process(pod: Object, container: str) -> None:
    """SIGKILL for PID 1 of a container, which only the node can send: the test must run where it sees the node's processes."""
    statuses = pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", [])
    found = next(s["containerID"].rpartition("/")[2] for s in statuses if s["name"] == container)
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and found in _cgroup(p)]
    if not pids:
        raise LookupError(
            f"no process of {pod['metadata']['name']}/{container} ({found}) can be seen from here"
        )
    # The first of a pid namespace has the lowest number outside, too, unless numbers wrapped: kill all, as an OOM would.
    for pid in sorted(pids):
        os.kill(pid, signal.SIGKILL)


def _cgroup(process: Path) -> str:
    try:
        return (process / "cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_pods(kube: Kube, *names: str) -> None:
    """Gone from the API server at once, their processes killed without a word."""
    kube.kubectl("delete", "pod", *names, "--grace-period=0", "--force")


def evict_together(kube: Kube, pods: list[str]) -> list[str]:
    """Evicts all at the same moment, over connections that are open already: an operator that answers the first eviction
    changes the budget within 100 ms, and two kubectl processes on a busy machine begin seconds apart.

    Empty for each that was allowed, else the API server's refusal.
    """
    proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline().rsplit(":", 1)[1])
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in pods]
        for connection in connections:
            connection.connect()
        for connection, pod in zip(connections, pods, strict=True):
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": kube.namespace},
            }
            path = f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/eviction"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answers = [connection.getresponse() for connection in connections]
        return ["" if a.status < 300 else a.read().decode() for a in answers]
    finally:
        proxy.terminate()
        proxy.wait()
