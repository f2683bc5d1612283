"""Clusters with real nodes: what pods find there, and that ending leaves nothing behind. Needs root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import Kubectl, background, cgroups, gpu_site, seeds
from moefleet_cluster.images import build_node_archives
from moefleet_cluster.kubectl import KubectlError
from moefleet_cluster.layers import default_store
from moefleet_cluster.namespaces import environment
from moefleet_cluster.programs import missing, programs_folder
from moefleet_cluster.spec import ClusterSpec

pytestmark = [
    pytest.mark.node,
    # The first run makes the images, which takes minutes.
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root"),
]
ROOMY = {"cpu": "1", "memory": "2Gi"}


def pod(name: str, script: str, *, gpus: int = 0, restart: str = "Never") -> dict[str, Any]:
    limits = {**ROOMY, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container = {
        "name": "main",
        "image": "moefleet.test/runtime:dev",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", script],
        "resources": {"limits": limits, "requests": {**limits, "cpu": "50m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "restartPolicy": restart, "terminationGracePeriodSeconds": 0},
    }


def eventually(what: str, ask: Callable[[], object], limit_s: float = 90) -> object:
    until, last = time.monotonic() + limit_s, None
    while time.monotonic() < until:
        try:
            if last := ask():
                return last
        except KubectlError as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"waited {limit_s:.0f} s for {what}; last answer: {last!r}")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster") / "state"


@pytest.fixture(scope="module")
def kubectl(state: Path) -> Iterator[Kubectl]:
    """On the host, through the forwarded port, as a person would have it."""
    if lacking := missing():
        pytest.fail(f"not built: {[p.name for p in lacking]}; run `python -m moefleet_cluster build`")
    site = gpu_site.find()
    archives = build_node_archives(default_store())
    spec = ClusterSpec(
        name="set by up",
        state="",
        programs=str(programs_folder()),
        archives=(str(archives.top),),
        seed=str(seeds.ensure(archives.stable)),
        gpu_site=str(site or ""),
    )
    found = background.up(state, spec)
    before = found.inner_pid
    yield found.kubectl
    assert background.down(state)
    assert not Path(f"/proc/{before}").exists()
    assert not cgroups.exists(cgroups.name_of(found.pid))
    assert str(state) not in Path("/proc/self/mounts").read_text()
    assert not state.exists()


def output_of(kubectl: Kubectl, name: str) -> dict[str, Any]:
    eventually(
        f"pod {name} to end",
        lambda: kubectl.json("get", "pod", name)["status"]["phase"] in {"Succeeded", "Failed"},
    )
    text = kubectl("logs", name)
    assert kubectl.json("get", "pod", name)["status"]["phase"] == "Succeeded", text
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


def test_a_pod_with_gpus_finds_torch_and_cannot_change_it(kubectl: Kubectl) -> None:
    if gpu_site.find() is None:
        pytest.skip("this Python has no torch, so GPUs bring none")
    kubectl.apply(
        pod(
            "gpus",
            "import json, os, torch, numpy, moefleet_runtime\n"
            "site = os.environ['MOEFLEET_GPU_SITE']\n"
            "print(json.dumps({'sum': torch.arange(4).sum().item(), 'torch': torch.__file__.startswith(site),"
            " 'own_numpy': not numpy.__file__.startswith(site), 'writable': os.access(site, os.W_OK), 'uid': os.getuid(),"
            " 'gpus': len(os.environ['NVIDIA_VISIBLE_DEVICES'].split(','))}))",
            gpus=8,
        )
    )
    assert output_of(kubectl, "gpus") == {
        "sum": 6, "torch": True, "own_numpy": True, "writable": False, "uid": 65532, "gpus": 8,
    }  # fmt: skip


def test_a_pod_without_gpus_has_no_torch_but_the_tiny_model(kubectl: Kubectl) -> None:
    kubectl.apply(
        pod(
            "plain",
            "import importlib.util, json, os\n"
            "print(json.dumps({'torch': importlib.util.find_spec('torch') is not None,"
            " 'model': 'model.safetensors' in os.listdir('/models/tiny-deepseek-v2')}))",
        )
    )
    assert output_of(kubectl, "plain") == {"torch": False, "model": True}


def test_three_replicas_of_eight_gpus_fit_and_a_fourth_waits(kubectl: Kubectl) -> None:
    for i in range(4):
        kubectl.apply(pod(f"replica-{i}", "import time; time.sleep(600)", gpus=8))

    def phases() -> list[str]:
        return sorted(kubectl.json("get", "pod", f"replica-{i}")["status"]["phase"] for i in range(4))

    eventually(
        "three to run and one to wait", lambda: phases() == ["Pending", "Running", "Running", "Running"]
    )
    kubectl("delete", "pod", "replica-0", "replica-1", "replica-2", "replica-3", "--wait=false")


def test_pods_reach_each_other_by_service_name_and_the_api(kubectl: Kubectl) -> None:
    serve = (
        "from http.server import *; ThreadingHTTPServer(('', 8080), SimpleHTTPRequestHandler).serve_forever()"
    )
    kubectl.apply(
        pod("web", serve),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    eventually("web to be Ready", lambda: kubectl.condition("pod", "web", "Ready") == "True")
    kubectl.apply(
        pod(
            "caller",
            "import json, ssl, time, urllib.request as u\n"
            "def status(url, **more):\n"
            "    for _ in range(50):\n"
            "        try: return u.urlopen(url, timeout=2, **more).status\n"
            "        except u.HTTPError as e: return e.code\n"
            "        except OSError as e: last = e; time.sleep(0.2)\n"
            "    return str(last)\n"
            "ca = ssl.create_default_context(cafile='/run/secrets/kubernetes.io/serviceaccount/ca.crt')\n"
            "print(json.dumps({'web': status('http://web.default.svc.cluster.local'),"
            " 'short': status('http://web'), 'api': status('https://kubernetes.default.svc/api', context=ca)}))",
        )
    )
    # 403: the API server answered, and an anonymous caller may not list.
    assert output_of(kubectl, "caller") == {"web": 200, "short": 200, "api": 403}
    assert "Python 3.11" in kubectl("exec", "web", "--", "python3", "--version")


def test_a_gpu_that_fails_leaves_the_allocatable_ones(kubectl: Kubectl, state: Path) -> None:
    def allocatable() -> str:
        return str(kubectl.json("get", "node", "node0")["status"]["allocatable"]["nvidia.com/gpu"])

    assert allocatable() == "24"
    (state / "node0/gpu-health.json").write_text('{"gpu-3": "Unhealthy"}')
    eventually("23 GPUs", lambda: allocatable() == "23")
    (state / "node0/gpu-health.json").write_text("{}")
    eventually("24 GPUs again", lambda: allocatable() == "24")


def test_a_command_can_be_run_inside(kubectl: Kubectl, state: Path) -> None:
    done = subprocess.run(
        background.enter(state, ["kubectl", "get", "--raw", "/readyz"]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ok"


# --- run ------------------------------------------------------------------------------------------------------------
def run_command(*command: str, state: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "moefleet_cluster",
        "run",
        "--no-images",
        "--gpus",
        "0",
        "--state",
        str(state),
        "--",
        *command,
    ]


def test_run_passes_the_commands_exit_status_on(tmp_path: Path) -> None:
    script = "kubectl get nodes -o name; exit 7"
    done = subprocess.run(
        run_command("sh", "-c", script, state=tmp_path / "state"),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "node/node0", done.stderr
    assert done.returncode == 7


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_takes_everything_with_it(tmp_path: Path, how: signal.Signals) -> None:
    state = tmp_path / "state"
    outer = subprocess.Popen(
        run_command("sleep", "1000", state=state),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually("the cluster to be ready", (state / "cluster.json").exists, 180)
    inside = processes_that_name(state)
    assert len(inside) >= 8, (
        "etcd, API server, controller manager, scheduler, proxy, DNS, containerd, kubelet"
    )
    outer.send_signal(how)
    outer.wait(30)
    eventually("every process to end", lambda: not processes_that_name(state), 30)
    # Nobody could remove the cgroup folders after SIGKILL; the next cluster does.
    cgroups.remove_leftovers()
    assert not cgroups.exists(cgroups.name_of(outer.pid))


def processes_that_name(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found
