"""The cluster tool itself: a control plane comes up and goes away, and kwok's pods keep readiness gates as a kubelet does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moefleet_cluster import ControlPlane, Kubectl

GATE = "moefleet.io/gateway-registered"


def pod(
    name: str, *, gpus: int = 0, gate: bool = False, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}, "labels": {"app": name}},
        "spec": {
            "containers": [
                {"name": "main", "image": "moefleet.test/none:1", "resources": {"limits": limits}}
            ],
            "readinessGates": [{"conditionType": GATE}] if gate else [],
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    }


def set_condition(kubectl: Kubectl, name: str, kind: str, status: str) -> None:
    patch = f'{{"status":{{"conditions":[{{"type":"{kind}","status":"{status}"}}]}}}}'
    kubectl("patch", "pod", name, "--subresource=status", "--type=strategic", "-p", patch)


def eventually(what: str, ask: Callable[[], object], limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if ask():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {limit_s:.0f} s for {what}")


def test_a_pod_of_eight_gpus_is_scheduled_and_ready_without_gates(kubectl: Kubectl) -> None:
    kubectl.apply(pod("plain", gpus=8))
    eventually("Ready", lambda: kubectl.condition("pod", "plain", "Ready") == "True")
    assert kubectl.json("get", "pod", "plain")["spec"]["nodeName"].startswith("fake-")


def test_a_gated_pod_is_ready_only_while_its_gate_is_true(kubectl: Kubectl) -> None:
    kubectl.apply(pod("gated", gpus=8, gate=True))
    eventually("ContainersReady", lambda: kubectl.condition("pod", "gated", "ContainersReady") == "True")
    assert kubectl.condition("pod", "gated", "Ready") == "False"

    set_condition(kubectl, "gated", GATE, "True")
    eventually("Ready after the gate", lambda: kubectl.condition("pod", "gated", "Ready") == "True")
    assert kubectl.condition("pod", "gated", GATE) == "True", (
        "the fake kubelet must keep conditions of others"
    )

    set_condition(kubectl, "gated", GATE, "False")
    eventually("not Ready without the gate", lambda: kubectl.condition("pod", "gated", "Ready") == "False")


def test_a_gate_that_was_set_before_the_containers_started_counts(kubectl: Kubectl) -> None:
    kubectl.apply(pod("early", gate=True, annotations={"fake.moefleet.test/ready-after": "2s"}))
    set_condition(kubectl, "early", GATE, "True")
    assert kubectl.condition("pod", "early", "Ready") != "True"
    eventually("Ready", lambda: kubectl.condition("pod", "early", "Ready") == "True")


def test_annotations_choose_the_address_and_how_slowly_a_pod_goes(kubectl: Kubectl) -> None:
    steering = {"fake.moefleet.test/pod-ip": "10.99.0.7", "fake.moefleet.test/stop-after": "3s"}
    kubectl.apply(pod("steered", annotations=steering))
    eventually("Ready", lambda: kubectl.condition("pod", "steered", "Ready") == "True")
    assert kubectl.json("get", "pod", "steered")["status"]["podIP"] == "10.99.0.7"
    kubectl("delete", "pod", "steered", "--wait=false")
    assert "deletionTimestamp" in kubectl.json("get", "pod", "steered")["metadata"]
    eventually("the pod to go", lambda: not kubectl.json("get", "pods")["items"])


def test_the_audit_log_names_each_write_once(
    control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    kubectl("create", "configmap", "noted", "--from-literal=a=b")
    kubectl("get", "configmap", "noted")

    def noted() -> list[str]:
        return [
            f"{w.user} {w.verb} {w.code}"
            for w in control_plane.writes()
            if (w.namespace, w.resource, w.name) == (namespace, "configmaps", "noted")
        ]

    eventually("the write in the log", noted)
    assert noted() == ["admin create 201"]


def test_a_control_plane_of_its_own_comes_up_and_leaves_nothing(tmp_path: Path) -> None:
    with ControlPlane(folder=tmp_path / "state", users={"operator": ["system:masters"]}) as plane:
        pids = [p.pid for p in plane.processes.running.values()]
        assert len(pids) == 4
        as_operator = Kubectl(plane.programs / "kubectl", plane.kubeconfig_of("operator"))
        assert "default" in as_operator("get", "serviceaccounts", "-o", "name")
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert list((tmp_path / "state").iterdir()), "a folder that the caller named stays, for its logs"
