"""Each step of a scenario, done. A wound says whom it hurt, so that the verdict knows whose streams may break."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from moefleet_e2e.fixtures import RESTRICTED
from moefleet_e2e.kube import Kube, Object, eventually, run
from moefleet_e2e.release import WAIT_LIMIT_S, Release

from . import inner
from .load import Streams
from .scenario import (
    Any_,
    Cut,
    DeleteFleet,
    Drain,
    Edit,
    Edits,
    Freeze,
    Helm,
    Kill,
    Occupy,
    Quiet,
    Scale,
)

API = "10.96.0.1"
PAUSE = "moefleet.test/pause:1"
STRANGER = "stranger"
ENVOY_PORT = 8080
PATIENCE_S = 120


@dataclass
class Site:
    """One fleet in its namespace on the cluster that this process runs in."""

    release: Release
    kube: Kube
    fleet: str
    streams: Streams
    hurt: set[str] = field(default_factory=set)
    ran_in_hurt: int = 0
    # Processes in whose network namespaces something is cut.
    _cut: list[int] = field(default_factory=list)
    _frozen: list[int] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return Path(os.environ["MOEFLEET_CLUSTER_STATE"])

    async def do(self, step: Any_) -> None:
        match step:
            case Kill():
                await self._kill(step)
            case Freeze(do="freeze"):
                await self._freeze(f"node{step.node}")
            case Freeze():
                inner.send(self._frozen, signal.SIGCONT)
                self._frozen.clear()
            case Cut(do="cut"):
                await self._sever(step)
            case Cut():
                for pid in self._cut:
                    inner.heal(pid)
                self._cut.clear()
            case Edit():
                await self._patiently(lambda: self.kube.patch("moefleet", self.fleet, {"spec": step.spec}))
            case Edits():
                await asyncio.to_thread(self._edit_often, step)
            case Scale():
                arguments = ("scale", "moefleet", self.fleet, f"--replicas={step.replicas}")
                await self._patiently(lambda: self.kube.kubectl(*arguments))
            case Occupy(do="occupy"):
                await self._occupy(step.gpus)
            case Occupy():
                self.kube.delete("pod", STRANGER, "--grace-period=0", "--force")
            case Drain():
                await asyncio.to_thread(self._drain, f"node{step.node}")
            case Helm():
                await asyncio.to_thread(self._helm, step)
            case DeleteFleet():
                await asyncio.to_thread(self.kube.delete, "moefleet", self.fleet, "--wait=false")
            case Quiet():
                self.streams.quiet()
            case other:
                assert_never(other)

    async def _patiently(self, act: Callable[[], object]) -> None:
        """As a person does it while the API server is not there."""
        await eventually("the API server to take it", lambda: act() or True, PATIENCE_S)

    def undo(self) -> None:
        """What a scenario that failed half-way may have left: a frozen node would spoil the next one."""
        inner.send(self._frozen, signal.SIGCONT)
        for pid in self._cut:
            inner.heal(pid)

    async def _mark(self, *hurt: str) -> None:
        """Just before the wound: who is hurt, and how many streams run there."""
        await self.streams.look()
        self.hurt |= set(hurt)
        self.ran_in_hurt += self.streams.running_in(frozenset(hurt))

    # --- kill ---------------------------------------------------------------------------------------------------
    async def _kill(self, step: Kill) -> None:
        match step.what:
            case "operator":
                pods = await asyncio.to_thread(self._operators, step.whom)
                await self._mark()
                for pod in pods:
                    inner.send(inner.of_container(pod, "operator"), signal.SIGKILL)
            case "picker" | "envoy":
                (pod, *_) = await asyncio.to_thread(self.release.pods, "gateway")
                which = inner.of_container(pod, step.what)
                if step.what == "envoy":
                    which = [pid for pid in which if not inner.is_first(pid)]
                await self._mark(f"{pod['status']['podIP']}:{ENVOY_PORT}")
                inner.send(which, signal.SIGKILL)
            case "engine-host" | "replica":
                pod = await self._replica(step.whom)
                which = inner.of_container(pod, "runtime")
                if step.what == "engine-host":
                    which = [pid for pid in which if not inner.is_first(pid)]
                await self._mark(pod["metadata"]["uid"])
                inner.send(which, signal.SIGKILL)
            case "kubelet" | "containerd":
                await self._mark()
                where = "node0" if step.what == "kubelet" else "node0/"
                inner.send([inner.program(step.what, where)], signal.SIGKILL)
            case "api-server":
                await self._mark()
                pid = inner.program("kube-apiserver")
                log = self.state / "plane/kube-apiserver.log"
                await asyncio.to_thread(inner.restart_after, pid, step.back_after_s, log)
            case other:
                assert_never(other)

    def _operators(self, whom: str) -> list[Object]:
        leader = self.release.leader()
        pods = self.release.pods("operator")
        return pods if whom == "all" else [p for p in pods if p["metadata"]["name"] == leader]

    async def _replica(self, whom: str) -> Object:
        pods = await asyncio.to_thread(self.kube.ready_replicas, self.fleet)
        if whom == "one":
            return pods[0]
        await self.streams.look()
        busy = Counter(r.pods[-1] for r in self.streams.running.values() if r.pods)
        return max(pods, key=lambda p: busy[p["metadata"]["uid"]])

    # --- freeze and cut -----------------------------------------------------------------------------------------
    async def _freeze(self, node: str) -> None:
        cluster = json.loads((self.state / "spec.json").read_text())["name"]
        pods = [p for p in self.kube.replicas(self.fleet) if p["spec"].get("nodeName") == node]
        await self._mark(*(p["metadata"]["uid"] for p in pods))
        self._frozen = inner.of_node(self.state, node, cluster)
        inner.send(self._frozen, signal.SIGSTOP)

    async def _sever(self, step: Cut) -> None:
        match step.between:
            case "gateways-and-busiest-replica":
                pod = await self._replica("busiest")
                gateways = [p["status"]["podIP"] for p in self.release.pods("gateway")]
                await self._mark(pod["metadata"]["uid"])
                self._cut = [inner.of_container(pod, "runtime")[0]]
                inner.cut(self._cut[0], gateways)
            case "leader-and-api-server" | "operators-and-api-server":
                whom = "leader" if step.between.startswith("leader") else "all"
                pods = await asyncio.to_thread(self._operators, whom)
                await self._mark()
                self._cut = [inner.of_container(p, "operator")[0] for p in pods]
                for pid in self._cut:
                    inner.cut(pid, [API])
            case other:
                assert_never(other)

    # --- by the API ---------------------------------------------------------------------------------------------
    def _edit_often(self, step: Edits) -> None:
        path = f"/apis/moefleet.io/v1alpha1/namespaces/{self.kube.namespace}/moefleets/{self.fleet}"
        begin = time.monotonic()
        with _proxy() as connection:
            for index in range(step.count):
                time.sleep(max(0.0, begin + index * step.over_s / step.count - time.monotonic()))
                body: object = step.first + index
                for name in reversed(step.path):
                    body = {name: body}
                headers = {"Content-Type": "application/merge-patch+json"}
                connection.request("PATCH", path, json.dumps({"spec": body}), headers)
                answer = connection.getresponse()
                said = answer.read().decode()
                if answer.status >= 300:
                    raise RuntimeError(f"edit {index} of {step.count}: {answer.status} {said[:300]}")

    async def _occupy(self, gpus: int) -> None:
        gpus = gpus or self._free_gpus()
        stranger = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": STRANGER, "namespace": self.kube.namespace},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "pause",
                        "image": PAUSE,
                        "imagePullPolicy": "Never",
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
                    }
                ],
            },
        }
        await asyncio.to_thread(self.kube.apply, stranger)
        await eventually(
            "the stranger to have its GPUs",
            lambda: ((self.kube.get("pod", STRANGER) or {}).get("status") or {}).get("phase") == "Running",
            60,
        )

    def _free_gpus(self) -> int:
        nodes = json.loads(run("kubectl", "get", "nodes", "-o", "json"))["items"]
        pods = json.loads(run("kubectl", "get", "pods", "-A", "-o", "json"))["items"]
        have = sum(int(n["status"]["allocatable"].get("nvidia.com/gpu", 0)) for n in nodes)
        taken = sum(
            int((c.get("resources", {}).get("limits") or {}).get("nvidia.com/gpu", 0))
            for p in pods
            if p["status"].get("phase") in ("Pending", "Running")
            for c in p["spec"]["containers"]
        )
        return have - taken

    def _drain(self, node: str) -> None:
        try:
            run(
                "kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s",
                limit_s=270,
            )  # fmt: skip
        finally:
            run("kubectl", "uncordon", node)

    def _helm(self, step: Helm) -> None:
        match step.verb:
            case "upgrade":
                self.release.values = step.values
                self.release.upgrade()
            case "rollback":
                run(
                    "helm", "rollback", self.release.name, "-n", self.release.namespace, "--wait",
                    "--timeout", f"{WAIT_LIMIT_S}s", limit_s=WAIT_LIMIT_S + 30,
                )  # fmt: skip
            case "uninstall":
                self.release.uninstall()
            case other:
                assert_never(other)


def namespace(name: str) -> Kube:
    run("kubectl", "create", "namespace", name)
    run("kubectl", "label", "namespace", name, *(f"{k}={v}" for k, v in RESTRICTED.items()))
    return Kube(name)


@contextmanager
def _proxy() -> Iterator[http.client.HTTPConnection]:
    """One open connection to the API server: kubectl itself takes too long for hundreds of edits a minute."""
    process = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        yield http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    finally:
        process.terminate()
        process.wait()
