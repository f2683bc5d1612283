"""Fixtures for cluster tests of the operator: the CRD, operators that end with the test, and the world behind its pods."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import AuditedWrite, ControlPlane, Kubectl

from .process import OperatorProcess
from .stubs import StubWorld

CRD = Path(__file__).parents[3] / "charts/moefleet/files/crds/moefleets.yaml"
WAIT_S = 60.0
POLL_S = 0.1


@dataclass
class Bench:
    """One test's namespace with fleets, its operators and the stubs behind its pods."""

    plane: ControlPlane
    namespace: str
    kubectl: Kubectl
    world: StubWorld
    folder: Path
    key_file: Path
    operators: list[OperatorProcess] = field(default_factory=list)
    writes_before: int = 0

    def operator(self, **options: Any) -> OperatorProcess:
        """Started; the operator's namespace is the fleets' own unless told otherwise."""
        settings: dict[str, Any] = {
            "kubeconfig": self.plane.kubeconfig,
            "watch_namespaces": (self.namespace,),
            "gateway": True,
            "control_key_file": self.key_file,
            **options,
        }
        name = f"operator-{len(self.operators)}"
        process = OperatorProcess(name, self.namespace, folder=self.folder, **settings).start()
        self.operators.append(process)
        return process

    def leader(self, **options: Any) -> OperatorProcess:
        process = self.operator(**options)
        process.wait("it leads", process.leads)
        return process

    def fleet(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kubectl.json("get", "moefleet", name)
        return found

    def condition(self, name: str, kind: str) -> tuple[str, str]:
        for found in self.fleet(name).get("status", {}).get("conditions") or []:
            if found["type"] == kind:
                return found["status"], found["reason"]
        return ("", "")

    def pods(self, fleet: str = "") -> list[dict[str, Any]]:
        selector = "app.kubernetes.io/name=moefleet-replica" + (
            f",moefleet.io/fleet={fleet}" if fleet else ""
        )
        found: list[dict[str, Any]] = self.kubectl.json("get", "pods", "-l", selector)["items"]
        return found

    def ready_pods(self, fleet: str) -> list[str]:
        return sorted(p["metadata"]["name"] for p in self.pods(fleet) if is_ready(p))

    def wait(self, what: str, ask: Callable[[], object], limit_s: float = WAIT_S) -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if ask():
                return
            for process in self.operators:
                if process.process is not None and process.process.poll() not in (None, -9, 0):
                    raise RuntimeError(
                        f"{process.name} ended with {process.process.returncode}:\n{process.tail()}"
                    )
            time.sleep(POLL_S)
        logs = "\n".join(f"--- {p.name}\n{p.tail(25)}" for p in self.operators)
        raise TimeoutError(f"{what}: not within {limit_s:g} s; stubs: {self.world.problems[-3:]}\n{logs}")

    def writes(self) -> list[AuditedWrite]:
        """What operators have written in this namespace since the test began, without Leases and reviews."""
        return [
            write
            for write in self.plane.writes()[self.writes_before :]
            if write.user_agent.startswith("moefleet-operator")
            and write.namespace == self.namespace
            and write.resource != "leases"
        ]


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and not pod["metadata"].get("deletionTimestamp")


@pytest.fixture(scope="session")
def crd(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/moefleets.moefleet.io", "--timeout=30s")


@pytest.fixture
def bench(
    crd: None,
    control_plane: ControlPlane,
    namespace: str,
    kubectl: Kubectl,
    tmp_path: Path,
) -> Iterator[Bench]:
    """With a stub gateway in the same namespace."""
    key = secrets.token_bytes(32)
    key_file = tmp_path / "key"
    key_file.write_bytes(base64.b64encode(key))
    before = len(control_plane.writes())
    with StubWorld(control_plane.api, (namespace,), key) as world:
        made = Bench(control_plane, namespace, kubectl, world, tmp_path, key_file, writes_before=before)
        world.add_gateway(namespace)
        yield made
        for process in made.operators:
            process.kill()
        # The next test needs its GPUs.
        kubectl("delete", "moefleets", "--all", "--wait=false")
        kubectl("delete", "pods", "--all", "--wait=false", "--force", "--grace-period=0")


def revisions(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["labels"]["moefleet.io/revision"] for pod in pods}


def slot(name: str) -> int:
    found = re.search(r"-(\d+)$", name)
    assert found is not None, name
    return int(found[1])
