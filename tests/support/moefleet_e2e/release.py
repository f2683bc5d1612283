"""The chart as a user installs it, with the images of this tree."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .kube import Kube, eventually, run

CHART = Path(__file__).resolve().parents[3] / "charts/moefleet"
OPERATOR_IMAGE = "moefleet.test/operator:dev"
GATEWAY_IMAGE = "moefleet.test/gateway:dev"
# helm waits for the operator and both gateway pods; a cold start of Python and Envoy on two busy cores takes most of it.
WAIT_LIMIT_S = 240


@dataclass
class Release:
    """One installation. `helm` is the binary's name, so that Helm 3 and 4 run the same tests."""

    name: str = "moefleet"
    namespace: str = "moefleet-system"
    helm: str = "helm"
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def kube(self) -> Kube:
        return Kube(self.namespace)

    def _values(self) -> str:
        images = {"operator": {"image": OPERATOR_IMAGE}, "gateway": {"image": GATEWAY_IMAGE}}
        merged: dict[str, Any] = {**self.values}
        for part, value in images.items():
            merged[part] = {**value, **self.values.get(part, {})}
        return json.dumps(merged)

    def upgrade(self, *arguments: str) -> str:
        """Installs, or upgrades what is there, and waits until it serves."""
        return run(
            self.helm, "upgrade", "--install", self.name, str(CHART), "-n", self.namespace, "--create-namespace",
            "--wait", "--timeout", f"{WAIT_LIMIT_S}s", "-f", "-", *arguments,
            stdin=self._values(), limit_s=WAIT_LIMIT_S + 30,
        )  # fmt: skip

    async def replace_pods(self, note: str) -> None:
        """Upgrades to a chart that differs in an annotation: every pod of operator and gateway is another one then."""

        def uids() -> set[str]:
            return {pod["metadata"]["uid"] for part in ("operator", "gateway") for pod in self.pods(part)}

        before = uids()
        for part in ("operator", "gateway"):
            self.values[part] = {**self.values.get(part, {}), "podAnnotations": {"e2e": note}}
        await asyncio.to_thread(self.upgrade)
        await eventually("new pods of gateway and operator", lambda: not before & uids(), 120)

    def uninstall(self, *arguments: str) -> str:
        return run(
            self.helm,
            "uninstall",
            self.name,
            "-n",
            self.namespace,
            "--wait",
            "--timeout",
            "120s",
            *arguments,
            limit_s=150,
        )

    def test(self) -> str:
        return run(self.helm, "test", self.name, "-n", self.namespace, "--timeout", "120s", limit_s=150)

    def gateway_address(self, port_name: str = "grpc") -> str:
        """host:port of the Service, as a client in the cluster's network sees it."""
        services = self.kube.list("services", "app.kubernetes.io/component=gateway")
        for service in services:
            if service["spec"].get("clusterIP") not in (None, "None"):
                for port in service["spec"]["ports"]:
                    if port.get("name") == port_name:
                        return f"{service['spec']['clusterIP']}:{port['port']}"
        raise LookupError(
            f"no gateway Service with a port named {port_name} in {self.namespace}: {[s['metadata']['name'] for s in services]}"
        )

    def pods(self, component: str) -> list[dict[str, Any]]:
        return [
            p
            for p in self.kube.list("pods", f"app.kubernetes.io/component={component}")
            if "deletionTimestamp" not in p["metadata"]
        ]

    def logs(self, lines: int = 40) -> str:
        """The last words of operator and pickers, for a failed test."""
        containers = (("operator", "operator"), ("gateway", "picker"))
        return "\n".join(
            f"--- {pod['metadata']['name']}\n"
            + self.kube.kubectl("logs", pod["metadata"]["name"], "-c", container, f"--tail={lines}")
            for component, container in containers
            for pod in self.pods(component)
        )

    def leader(self) -> str | None:
        """The pod that holds the operator's Lease."""
        for lease in self.kube.list("leases"):
            holder = (lease.get("spec") or {}).get("holderIdentity")
            if holder:
                return str(holder).split("_")[0]
        return None
