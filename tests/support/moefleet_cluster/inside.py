"""Process 1 of a cluster's namespaces: network, control plane, nodes, and the caller's command.

`python -m moefleet_cluster.inside SPEC.json [COMMAND...]`; without a command it stays until SIGTERM. Its end ends everything: the pid
namespace takes all containers with it, the mount namespace all mounts, the network namespace the bridge.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from . import node_documents
from .control_plane import ControlPlane
from .flags import SERVICE_CIDR
from .node_documents import BRIDGE, GATEWAY
from .processes import ProcessEndedError, Processes
from .spec import ClusterSpec

NODES_LIMIT_S = 240.0
WATCH_S = 0.5
# Time for the caller's command to say what it was doing when it is told to end.
COMMAND_GRACE_S = 10.0
ENDED_BY_SIGNAL = 143


class Ended(BaseException):
    """SIGTERM arrived."""


@dataclass
class Cluster:
    spec: ClusterSpec
    processes: Processes = field(init=False)
    plane: ControlPlane = field(init=False)
    times: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.processes = Processes(self.spec.folder)
        self.plane = ControlPlane(
            programs=Path(self.spec.programs),
            folder=self.spec.folder / "plane",
            address=GATEWAY,
            kwok=self.spec.kwok or self.spec.fake_nodes > 0,
            audit=self.spec.audit,
            # Never by default: on two busy cores a kubelet may be silent for 10 s, and then the node flaps.
            quick_node_failure=self.spec.quick_node_failure,
            nodes=self.spec.node_names,
        )

    def start(self) -> None:
        begin = time.monotonic()
        network_up(self.spec)
        # Nodes first: they import images while the control plane starts.
        for index, name in enumerate(self.spec.node_names):
            (self.spec.folder / name).mkdir()
            self.processes.start(
                name, "unshare", "--mount", "--propagation", "private",
                sys.executable, "-m", "moefleet_cluster.node", str(self.spec.folder / "spec.json"), str(index),
            )  # fmt: skip
        self.plane.start()
        (self.spec.folder / "plane.ready").touch()
        self._start_services()
        self.processes.wait_until(
            "the nodes", lambda: all(map(self._node_facts, self.spec.node_names)), NODES_LIMIT_S
        )
        if self.spec.fake_nodes:
            self.plane.add_fake_nodes(self.spec.fake_nodes)
        nodes = {name: self._node_facts(name) for name in self.spec.node_names}
        self.times = {
            "ready_s": round(time.monotonic() - begin, 2),
            "control_plane": self.plane.ready_after_s,
            **{name: facts["times"] for name, facts in nodes.items()},
        }
        self._write_facts(nodes)

    def check(self) -> None:
        self.processes.check()
        self.plane.processes.check()

    def stop(self) -> None:
        # Data is thrown away and the namespaces clean the rest, so nothing needs a grace.
        self.processes.kill_all()
        self.plane.kill()

    def environment(self) -> dict[str, str]:
        return {
            "KUBECONFIG": str(self.plane.kubeconfig),
            "PATH": f"{self.spec.programs}:{os.environ['PATH']}",
            "MOEFLEET_CLUSTER_STATE": self.spec.state,
        }

    def _start_services(self) -> None:
        folder, programs = self.spec.folder, Path(self.spec.programs)
        bridge_filter = Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
        proxy = node_documents.kube_proxy_configuration(self.plane.kubeconfig, bridge_filter=bridge_filter)
        (folder / "kube-proxy.json").write_text(json.dumps(proxy, indent=1))
        self.processes.start(
            "kube-proxy", str(programs / "kube-proxy"), "--config", str(folder / "kube-proxy.json")
        )
        (folder / "Corefile").write_text(node_documents.corefile(self.plane.kubeconfig))
        self.processes.start("coredns", str(programs / "coredns"), "-conf", str(folder / "Corefile"))

    def _node_facts(self, name: str) -> dict[str, dict[str, float]]:
        path = self.spec.folder / name / "ready.json"
        facts: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
        return facts

    def _write_facts(self, nodes: dict[str, dict[str, dict[str, float]]]) -> None:
        """Process ids (in this pid namespace) for tests that stop or kill one, and times; appears when the cluster is ready."""
        pids: dict[str, object] = {
            n: p.pid for n, p in {**self.processes.running, **self.plane.processes.running}.items()
        }
        pids |= {
            f"{node}/{name}": pid for node, facts in nodes.items() for name, pid in facts["pids"].items()
        }
        partial = self.spec.folder / "cluster.partial"
        partial.write_text(json.dumps({"pids": pids, "times": self.times}, indent=1))
        partial.rename(self.spec.folder / "cluster.json")


def network_up(spec: ClusterSpec) -> None:
    addresses = [node_documents.node_address(i) for i in range(spec.nodes)]
    commands = [
        ["link", "set", "lo", "up"],
        ["link", "add", BRIDGE, "type", "bridge"],
        *(["addr", "add", f"{address}/24", "dev", BRIDGE] for address in addresses),
        ["link", "set", BRIDGE, "up"],
        # No default route here: Service addresses need one before kube-proxy can translate them.
        ["route", "add", SERVICE_CIDR, "dev", BRIDGE],
    ]
    for command in commands:
        subprocess.run(["ip", *command], check=True, capture_output=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def reap_strangers(mine: set[int]) -> None:
    """Process 1 inherits the shims of ended pods. Those that Popen waits for are left to it."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in mine:
            return
        os.waitpid(ended.si_pid, 0)


def run_command(cluster: Cluster, command: list[str]) -> int:
    """The command's exit status; the cluster's parts are watched meanwhile."""
    process = subprocess.Popen(command, env={**os.environ, **cluster.environment()}) if command else None
    try:
        return _watch(cluster, process)
    except Ended:
        if process and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(COMMAND_GRACE_S)
        raise


def _watch(cluster: Cluster, process: subprocess.Popen[bytes] | None) -> int:
    parts = [
        *cluster.processes.running.values(),
        *cluster.plane.processes.running.values(),
        *([process] if process else []),
    ]
    mine = {p.pid for p in parts}
    told: str = ""
    while process is None or process.poll() is None:
        time.sleep(WATCH_S)
        reap_strangers(mine)
        try:
            cluster.check()
        except ProcessEndedError as error:
            # A test may have killed it on purpose, so the command goes on and judges by itself.
            if str(error) != told:
                told = str(error)
                print(f"cluster: {told}", file=sys.stderr, flush=True)
    return process.returncode


def main() -> int:
    cluster = Cluster(ClusterSpec.read(Path(sys.argv[1])))
    command = sys.argv[2:]

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    # The terminal sends it to everybody; the command decides what it means. A handler and not SIG_IGN, which children inherit.
    signal.signal(signal.SIGINT, (lambda number, frame: None) if command else end)
    try:
        cluster.start()
        print(f"cluster: ready {json.dumps(cluster.times)}", file=sys.stderr, flush=True)
        return run_command(cluster, command)
    except Ended:
        return ENDED_BY_SIGNAL
    except (ProcessEndedError, TimeoutError, OSError, RuntimeError) as error:
        print(f"cluster: did not start: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
