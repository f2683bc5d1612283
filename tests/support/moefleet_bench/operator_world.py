"""The world of the operator's bench, in a network namespace of its own: `python -m moefleet_bench.operator_world`.

A control plane with kwok nodes whose pods have addresses of 10.64.0.0/12, which the namespace's loopback answers for; a stub
process behind all of them; and by turns fleets with the operator, and Deployments of the same pods. JSON on stdout.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moefleet_cluster import ControlPlane, flags
from moefleet_operator_rig import OperatorProcess, fleet
from moefleet_operator_rig.fixtures import CRD
from rich.console import Console
from rich.status import Status

from .operator_numbers import Round, Size, World, quantile
from .operator_peer import GATE, peer

SYSTEM = "moefleet-system"
# kwok gives its pods addresses of the node's range: 254 of them.
PODS_PER_NODE = 100
CREATORS = 8
# The same for both: a LIST of 50 small objects.
LOOK_EVERY_S = 0.5
ROUND_LIMIT_S = 180.0
GONE_LIMIT_S = 120.0
# The operator writes changed numbers after at most 30 s; after that nothing changes.
SETTLE_S = 35.0
IDLE_S = 60.0
# As a ServiceAccount is for the API server's fairness; a cluster administrator would be let through before the others.
SERVICE_ACCOUNTS = ["system:serviceaccounts", "moefleet-bench"]

# What one user applies at once: (path of the collection, document).
Manifest = list[tuple[str, dict[str, Any]]]


@dataclass
class Bench:
    plane: ControlPlane
    size: Size
    console: Console
    status: Status

    # --- the two sides ------------------------------------------------------------------------------------------
    def ours(self, number: int, idle: bool) -> Round:
        namespace = self._namespace(f"fleets-{number}")
        key = self.plane.state / "control-key"
        key.write_bytes(base64.b64encode(secrets.token_bytes(32)))
        operator = OperatorProcess(
            f"operator-{number}",
            SYSTEM,
            self.plane.kubeconfig_of("operator"),
            self.plane.state,
            gateway=True,
            control_key_file=key,
        ).start()
        try:
            operator.wait("it leads", operator.leads)
            # Its first plan waits 2 s for what a leader before it may have done; that is start-up, not our subject.
            time.sleep(3)
            before, writes = self._cpu(operator), self._writes()
            fleets = [self._fleet(namespace, n) for n in range(self.size.fleets)]
            path = f"/apis/moefleet.io/v1alpha1/namespaces/{namespace}/moefleets"
            seconds = self._timed(path, [[(path, f)] for f in fleets], _fleet_ready, GATE)
            used = _used(before, self._cpu(operator))
            time.sleep(2)
            made = Round(
                ready_s=seconds,
                cpu_s=used,
                writes_per_replica=(self._writes() - writes) / self.size.pods,
                reconcile_p99_s=quantile(
                    operator.get("/metrics")[1], "moefleet_operator_reconcile_seconds", 0.99
                ),
                rss_mib=operator.resident_mib(),
            )
            self._say(f"ours {number}", made)
            if idle:
                made = dataclasses.replace(
                    made, idle_writes_per_min=self._idle(), rss_mib=operator.resident_mib()
                )
            operator.stop()
        finally:
            operator.kill()
        self._clear(namespace, "apis/moefleet.io/v1alpha1", "moefleets")
        return made

    def peers(self, number: int, alike: bool) -> Round:
        """Deployments of the same pods; `alike`: with what a fleet has around its pods, too."""
        name = f"{'deployments' if alike else 'bare'}-{number}"
        namespace = self._namespace(name)
        before = self._cpu(None)
        fleets = [self._fleet(namespace, n) for n in range(self.size.fleets)]
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        manifests = [peer(found, path, alike) for found in fleets]
        seconds = self._timed(path, manifests, _deployment_ready, GATE if alike else "Ready")
        made = Round(ready_s=seconds, cpu_s=_used(before, self._cpu(None)))
        self._say(name, made)
        self._clear(namespace, "apis/apps/v1", "deployments")
        return made

    # --- parts --------------------------------------------------------------------------------------------------
    def _fleet(self, namespace: str, number: int) -> dict[str, Any]:
        each = self.size.replicas
        made = fleet(
            f"fleet-{number}", namespace, mode="External", minimum=1, maximum=each, replicas=each, gpus=1
        )
        # kwok makes these containers ready as soon as the pod is scheduled.
        del made["spec"]["replica"]["podTemplate"]
        return made

    def _timed(
        self, path: str, manifests: list[Manifest], is_ready: Callable[[Any], int], condition: str
    ) -> float:
        """From the first POST until every object at `path` says that it is ready and every pod has the condition."""
        begin = time.monotonic()
        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(self._post, manifests))
        pods = f"/api/v1/namespaces/{manifests[0][0][1]['metadata']['namespace']}/pods"
        while True:
            self.plane.processes.check()
            ready = sum(is_ready(o) for o in self.plane.api(path)["items"])
            self.status.update(
                f"{ready} of {self.size.pods} replicas are ready, {time.monotonic() - begin:.0f} s"
            )
            if ready == self.size.pods:
                items = self.plane.api(pods)["items"]
                if len(items) == self.size.pods and all(_has(pod, condition) for pod in items):
                    return time.monotonic() - begin
            if time.monotonic() - begin > ROUND_LIMIT_S:
                raise TimeoutError(f"{ready} of {self.size.pods} ready after {ROUND_LIMIT_S:g} s at {path}")
            time.sleep(LOOK_EVERY_S)

    def _post(self, manifest: Manifest) -> None:
        for path, document in manifest:
            self.plane.api(path, "POST", document)

    def _idle(self) -> float:
        self.status.update(f"settling, {SETTLE_S:g} s")
        time.sleep(SETTLE_S)
        before = self._writes()
        self.status.update(f"idle, {IDLE_S:g} s")
        time.sleep(IDLE_S)
        return (self._writes() - before) * 60 / IDLE_S

    def _writes(self) -> int:
        """What the operator's user has written so far, Events and failures too; not its Lease."""
        return sum(w.user == "operator" and w.resource != "leases" for w in self.plane.writes())

    def _namespace(self, name: str) -> str:
        self.plane.api("/api/v1/namespaces", "POST", {"metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.plane.processes.wait_until(f"the account {name}/default", lambda: self.plane.api(account), 30)
        return name

    def _clear(self, namespace: str, group: str, plural: str) -> None:
        """The other side's turn begins on an empty cluster."""
        self.status.update(f"clearing {namespace}")
        self.plane.api(
            f"/{group}/namespaces/{namespace}/{plural}", "DELETE", {"propagationPolicy": "Background"}
        )
        pods = f"/api/v1/namespaces/{namespace}/pods?limit=1"
        self.plane.processes.wait_until(
            f"the pods of {namespace} to go", lambda: not self.plane.api(pods)["items"], GONE_LIMIT_S
        )
        # Endpoint slices and owners go a little later.
        time.sleep(3)

    def _cpu(self, operator: OperatorProcess | None) -> dict[str, float]:
        running = dict(self.plane.processes.running)
        if operator is not None and operator.process is not None:
            running["operator"] = operator.process
        return {name: _cpu_s(process.pid) for name, process in running.items()}

    def _say(self, side: str, made: Round) -> None:
        cpu = ", ".join(
            f"{name} {s:.1f}" for name, s in sorted(made.cpu_s.items(), key=lambda i: -i[1]) if s >= 0.1
        )
        self.console.log(f"{side}: {self.size.pods} ready in {made.ready_s:.1f} s; processor seconds: {cpu}")


def _fleet_ready(found: Any) -> int:
    status = found.get("status") or {}
    said = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    return int(status.get("readyReplicas") or 0) if said.get("Ready") == "True" else 0


def _deployment_ready(found: Any) -> int:
    return int((found.get("status") or {}).get("readyReplicas") or 0)


def _has(pod: Any, condition: str) -> bool:
    return any(
        c["type"] == condition and c["status"] == "True" for c in pod["status"].get("conditions") or ()
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _used(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before.get(name, 0.0), 2) for name in after}


@contextlib.contextmanager
def _world(size: Size) -> Iterator[ControlPlane]:
    users = {"operator": SERVICE_ACCOUNTS, "gateway": SERVICE_ACCOUNTS}
    with ControlPlane(kwok=True, audit=True, users=users) as plane:
        plane.api(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "POST",
            {
                "metadata": {"name": "moefleet-bench"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "cluster-admin",
                },
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "moefleet-bench"}
                ],
            },
        )
        plane.kubectl("apply", "--server-side", "-f", str(CRD))
        plane.kubectl("wait", "--for=condition=Established", "crd/moefleets.moefleet.io", "--timeout=30s")
        for i in range(-(-size.pods // PODS_PER_NODE) + 1):
            node = flags.fake_node(f"bench-{i}", PODS_PER_NODE, "nvidia.com/gpu", {})
            node["spec"] = {"podCIDR": f"10.64.{i}.0/24", "podCIDRs": [f"10.64.{i}.0/24"]}
            plane.api("/api/v1/nodes", "POST", node)
        gateway = plane.state / "gateway.kubeconfig"
        python_path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        plane.processes.start(
            "stubs",
            sys.executable,
            "-m",
            "moefleet_bench.operator_stubs",
            str(gateway),
            environment=python_path,
        )
        plane.api("/api/v1/namespaces", "POST", {"metadata": {"name": SYSTEM}})
        account = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/default"
        plane.processes.wait_until("the account of the gateway", lambda: plane.api(account), 30)
        labels = {"app.kubernetes.io/name": "moefleet", "app.kubernetes.io/component": "gateway"}
        pod = {
            "metadata": {"name": "gateway-0", "labels": labels},
            "spec": {"containers": [{"name": "picker", "image": "none"}]},
        }
        plane.api(f"/api/v1/namespaces/{SYSTEM}/pods", "POST", pod)
        there = f"/api/v1/namespaces/{SYSTEM}/pods/gateway-0"
        plane.processes.wait_until("the gateway's pod", lambda: _has(plane.api(there), "Ready"), 60)
        yield plane


def main() -> int:
    size = Size.of(os.environ)
    console = Console(stderr=True)
    world = World([], [], [])
    with console.status("starting a control plane with kwok") as status, _world(size) as plane:
        bench = Bench(plane, size, console, status)
        for number in range(1, size.pairs + 1):
            world.ours.append(bench.ours(number, idle=number == size.pairs))
            world.other.append(bench.peers(number, alike=True))
        world.bare.append(bench.peers(size.pairs, alike=False))
    print(json.dumps(dataclasses.asdict(world)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
