"""A real picker and Envoy that watch a real API server; the replicas are servers whose addresses the test puts into pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import ControlPlane, Kubectl
from moefleet_gateway_rig import FakeReplica, Rig
from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import crd

__all__ = ["crd"]
CONTAINERS_READY = {"type": "ContainersReady", "status": "True"}
DRAINING = {"type": "moefleet.io/Draining", "status": "True", "reason": "ScaleDown"}


class Pods:
    """Replica pods that no node runs: the test is their kubelet."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.path = f"/api/v1/namespaces/{namespace}/pods"

    def create(self, name: str, fleet: dict[str, Any], replica: FakeReplica) -> str:
        owner = fleet["metadata"]
        made = self.plane.api(
            self.path,
            "POST",
            {
                "metadata": {
                    "name": name,
                    "labels": {
                        "app.kubernetes.io/name": "moefleet-replica",
                        "moefleet.io/fleet": owner["name"],
                    },
                    "ownerReferences": [
                        {
                            "apiVersion": "moefleet.io/v1alpha1",
                            "kind": "MoEFleet",
                            "name": owner["name"],
                            "uid": owner["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": {
                    "schedulerName": "nobody",
                    "containers": [
                        {
                            "name": "runtime",
                            "image": "none",
                            "ports": [
                                {"name": "grpc", "containerPort": replica.grpc_port},
                                {"name": "control", "containerPort": replica.control_port},
                            ],
                        }
                    ],
                },
            },
        )
        return str(made["metadata"]["uid"])

    def status(self, name: str, replica: FakeReplica, *conditions: dict[str, str]) -> None:
        status = {
            "phase": "Running",
            "podIP": replica.ip,
            "podIPs": [{"ip": replica.ip}],
            "conditions": list(conditions),
        }
        self.plane.api(
            f"{self.path}/{name}/status", "PATCH", {"status": status}, "application/merge-patch+json"
        )

    def delete(self, name: str) -> None:
        self.plane.api(f"{self.path}/{name}?gracePeriodSeconds=0", "DELETE")


@pytest.fixture
async def rig(kubeconfig: Path, namespace: str) -> AsyncIterator[Rig]:
    rig = Rig(KUBECONFIG=str(kubeconfig), MOEFLEET_WATCH_NAMESPACES=namespace)
    try:
        yield rig
    finally:
        await rig.close()


async def test_pods_are_registered_drained_and_forgotten_as_kubernetes_shows_them(
    crd: None, control_plane: ControlPlane, kubectl: Kubectl, namespace: str, rig: Rig
) -> None:
    pods = Pods(control_plane, namespace)
    await asyncio.to_thread(kubectl.apply, fleet("chat", namespace))
    made = await asyncio.to_thread(kubectl.json, "get", "moefleet", "chat")
    await rig.start()
    replicas = []
    for name in ("chat-0a1b2c3d-0", "chat-0a1b2c3d-1"):
        replica = await rig.replica("?", model="chat", listed=False)
        uid = await asyncio.to_thread(pods.create, name, made, replica)
        replica.change(uid=uid)
        replicas.append((name, replica))
    (first, a), (second, b) = replicas
    await asyncio.to_thread(pods.status, first, a)
    await asyncio.to_thread(pods.status, second, b, CONTAINERS_READY)
    await rig.registered(b.uid)  # the other is not ContainersReady
    stub = rig.stub()
    assert {m.text for m in await rig.generate(stub, model="chat")} == {b.uid}
    assert {m.text for m in await rig.generate(stub, model=f"{namespace}/chat")} == {b.uid}
    await asyncio.to_thread(pods.status, first, a, CONTAINERS_READY)
    await rig.registered(a.uid, b.uid)
    await asyncio.to_thread(pods.status, second, b, CONTAINERS_READY, DRAINING)
    await rig.registered(a.uid)
    await asyncio.to_thread(pods.status, second, b, CONTAINERS_READY)
    await rig.registered(a.uid, b.uid)
    await asyncio.to_thread(pods.delete, first)
    await rig.registered(b.uid)
    assert {m.text for m in await rig.generate(stub, model="chat")} == {b.uid}
