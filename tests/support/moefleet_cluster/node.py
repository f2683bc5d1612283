"""One real node, in a mount namespace of its own: containerd, kubelet and the GPU device plugin.

`python -m moefleet_cluster.node SPEC.json INDEX` is started by `inside`, prepares images while the control plane still starts,
writes `<node>/ready.json` and then watches over its processes: it starts kubelet and containerd again when they die, as
systemd does on a real node, and ends when another one does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import cgroups, node_documents
from .device_plugin import GpuSpec
from .images import PAUSE
from .kubectl import Kubectl, KubectlError
from .layers import GPU_SITE
from .node_documents import CONTAINERD_RUN, CONTAINERD_SOCKET, PRIVATE_FOLDERS, NodePaths
from .processes import Processes
from .spec import ClusterSpec

START_LIMIT_S = 120.0
WATCH_S = 1.0
GPU_RESOURCE = "nvidia.com/gpu"
# RestartSec of the units that containerd and kubeadm bring.
RESTART_AFTER_S = {"containerd": 5.0, "kubelet": 10.0}


@dataclass
class Node:
    spec: ClusterSpec
    index: int
    processes: Processes = field(init=False)
    times: dict[str, float] = field(default_factory=dict)
    _commands: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.spec.node_names[self.index]
        self.address = node_documents.node_address(self.index)
        self.paths = NodePaths(
            self.spec.folder / self.name, Path(self.spec.programs), self.spec.folder / "plane/pki"
        )
        self.processes = Processes(self.paths.folder)
        self._begin = time.monotonic()

    def start(self) -> None:
        """
        Raises:
            ProcessEndedError, TimeoutError: with what was waited for and the log's end.
        """
        self._mount_private_folders()
        self._start_containerd()
        self._import_images()
        self.processes.wait_until(
            "the control plane", (self.spec.folder / "plane.ready").exists, START_LIMIT_S
        )
        self._start_kubelet()
        self.processes.wait_until(f"{self.name} to be Ready", self._is_ready, START_LIMIT_S)
        self._note("ready")
        if self.spec.gpus:
            self._start_device_plugin()
            self.processes.wait_until(
                f"{self.spec.gpus} GPUs",
                lambda: self._allocatable_gpus() == str(self.spec.gpus),
                START_LIMIT_S,
            )
            self._note("gpus")

    def revive(self) -> None:
        """
        Raises:
            ProcessEndedError: when one has ended that systemd would not start again.
        """
        for name, pause_s in RESTART_AFTER_S.items():
            process = self.processes.running[name]
            if process.poll() is not None:
                time.sleep(pause_s)
                self._start(*self._commands[name])
        self.processes.check()

    def _note(self, what: str) -> None:
        self.times[what] = round(time.monotonic() - self._begin, 2)

    # --- steps --------------------------------------------------------------------------------------------------
    def _mount_private_folders(self) -> None:
        # The kubelet wants shared propagation for its volumes; this is the node's own copy of the mounts.
        _run("mount", "--make-rshared", "/")
        # Images and writable layers in memory: quicker than this disk, and gone with the mount namespace.
        for folder in (*PRIVATE_FOLDERS, str(self.paths.containerd)):
            Path(folder).mkdir(parents=True, exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", folder)

    def _start_containerd(self) -> None:
        cni = self.paths.folder / "cni"
        cni.mkdir(exist_ok=True)
        conflist = node_documents.cni_conflist(self.spec.folder / "ipam")
        (cni / "10-bridge.conflist").write_text(json.dumps(conflist, indent=1))
        if self.spec.seed:
            _run("tar", "-C", str(self.paths.containerd), "-xf", self.spec.seed)
            self._note("seed")
        config = self.paths.folder / "containerd.toml"
        config.write_text(node_documents.containerd_toml(self.paths, PAUSE))
        self._start("containerd", "--config", str(config))
        self.processes.wait_until("containerd", lambda: self._ctr("version").returncode == 0, START_LIMIT_S)
        self._note("containerd")

    def _import_images(self) -> None:
        for archive in self.spec.archives:
            done = self._ctr("images", "import", "--snapshotter", "overlayfs", archive)
            if done.returncode:
                raise RuntimeError(f"{self.name} cannot import {archive}: {done.stderr.strip()}")
        self._note("images")

    def _start_kubelet(self) -> None:
        cgroup_v1 = cgroups.is_v1()
        cgroup = self.spec.cgroup(self.name)
        cgroups.make(cgroup)
        document = node_documents.kubelet_configuration(
            self.paths,
            self.address,
            cgroup,
            cgroup_v1=cgroup_v1,
            dns=True,
            quick_node_failure=self.spec.quick_node_failure,
        )
        config = self.paths.folder / "kubelet.json"
        config.write_text(json.dumps(document, indent=1))
        (self.paths.folder / "resolv.conf").write_text(f"search {node_documents.DNS_DOMAIN}\n")
        self._start(
            "kubelet", "--config", str(config), "--kubeconfig", str(self._kubeconfig(self.name)),
            "--root-dir", str(self.paths.folder / "kubelet"), "--cert-dir", str(self.paths.folder / "kubelet-pki"),
            "--hostname-override", self.name, "--node-ip", self.address, "--v", "1",
        )  # fmt: skip

    def _start_device_plugin(self) -> None:
        gpus = GpuSpec(
            resource=GPU_RESOURCE,
            count=self.spec.gpus,
            site=self.spec.gpu_site,
            mount=GPU_SITE,
            health_file=str(self.paths.folder / "gpu-health.json"),
        )
        path = self.paths.folder / "gpus.json"
        path.write_text(json.dumps(asdict(gpus), indent=1))
        self.processes.start(
            "device-plugin", sys.executable, "-m", "moefleet_cluster.device_plugin", str(path)
        )

    # --- asking -------------------------------------------------------------------------------------------------
    def _kubeconfig(self, user: str) -> Path:
        return self.spec.folder / "plane" / f"{user}.kubeconfig"

    def _get(self, path: str) -> str:
        kubectl = Kubectl(self.paths.programs / "kubectl", self._kubeconfig("admin"))
        try:
            return kubectl("get", "node", self.name, "-o", f"jsonpath={path}")
        except KubectlError:  # not registered yet
            return ""

    def _is_ready(self) -> bool:
        return self._get('{.status.conditions[?(@.type=="Ready")].status}') == "True"

    def _allocatable_gpus(self) -> str:
        return self._get("{.status.allocatable.nvidia\\.com/gpu}")

    def _start(self, program: str, *arguments: str) -> None:
        self._commands[program] = (program, *arguments)
        # containerd finds its shim by PATH.
        path = f"{self.paths.programs}:{os.environ['PATH']}"
        self.processes.start(
            program, str(self.paths.programs / program), *arguments, environment={"PATH": path}
        )

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.paths.programs / "ctr"), "-a", str(CONTAINERD_SOCKET), "-n", "k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    node = Node(ClusterSpec.read(Path(sys.argv[1])), int(sys.argv[2]))
    CONTAINERD_RUN.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        node.start()
        pids = {name: process.pid for name, process in node.processes.running.items()}
        ready = node.paths.folder / "ready.json"
        partial = ready.with_suffix(".partial")
        partial.write_text(json.dumps({"times": node.times, "pids": pids}))
        partial.rename(ready)
        while True:
            time.sleep(WATCH_S)
            node.revive()


if __name__ == "__main__":
    main()
