"""What others do to nodes, pods and quotas of a real API server, and how a fleet gets through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd

__all__ = ["bench", "crd"]


def node_of(bench: Bench, pod: str) -> str:
    return str(bench.kubectl.json("get", "pod", pod)["spec"]["nodeName"])


def message(bench: Bench, name: str, kind: str) -> str:
    conditions = bench.fleet(name)["status"]["conditions"]
    return str(next(c["message"] for c in conditions if c["type"] == kind))


@contextmanager
def cordoned(bench: Bench, node: str) -> Iterator[None]:
    bench.kubectl("cordon", node)
    try:
        yield
    finally:
        bench.kubectl("uncordon", node)


@contextmanager
def tainted(bench: Bench, node: str, taint: str) -> Iterator[None]:
    bench.kubectl("taint", "node", node, f"{taint}:NoSchedule")
    try:
        yield
    finally:
        bench.kubectl("taint", "node", node, f"{taint.split('=', maxsplit=1)[0]}-")


def leaves(bench: Bench, victim: str, reason: str) -> None:
    """Another is ready before this one drains, it drains for its node's sake, and streams end before it goes."""
    bench.world.set_active(victim, 2)
    stub = bench.world.by_name(victim)
    fewest = 2

    def drains() -> bool:
        nonlocal fewest
        fewest = min(fewest, len(bench.ready_pods("chat")))
        return bool(stub.drains)

    bench.wait(f"{victim} drains", drains)
    assert stub.drains == ["Eviction"]
    assert fewest == 2, "fewer than wanted were ready by our own doing"
    # It has streams, so it is still there.
    bench.wait(f"{reason} is said", lambda: bench.condition("chat", "Disrupted") == ("True", reason))
    assert victim in {p["metadata"]["name"] for p in bench.pods("chat")}, "deleted with streams in it"
    bench.world.set_active(victim, 0)

    def settled() -> bool:
        names = {p["metadata"]["name"] for p in bench.pods("chat")}
        return victim not in names and len(bench.ready_pods("chat")) == 2

    bench.wait("it is gone and two serve", settled)
    bench.wait("nothing is disrupted", lambda: bench.condition("chat", "Disrupted")[0] == "False")


def test_a_cordoned_node_and_one_that_the_autoscaler_takes_are_left_without_a_gap(bench: Bench) -> None:
    # The whole cluster is watched, so free GPUs are known.
    bench.leader(watch_namespaces=())
    bench.kubectl.apply(fleet("chat", bench.namespace, mode="External", replicas=2))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)

    first = bench.ready_pods("chat")[0]
    with cordoned(bench, node_of(bench, first)):
        leaves(bench, first, "NodeCordoned")
    second = bench.ready_pods("chat")[0]
    with tainted(bench, node_of(bench, second), "ToBeDeletedByClusterAutoscaler=1"):
        leaves(bench, second, "NodeBeingRemoved")

    events = bench.kubectl.json("get", "events.events.k8s.io")["items"]
    said = {(e["reason"], e["type"]) for e in events}
    assert {("NodeCordoned", "Warning"), ("NodeBeingRemoved", "Warning")} <= said, said
    assert len(bench.world.seen) == 4, f"two were replaced, once each: {bench.world.seen}"


def test_labels_taken_from_a_pod_by_hand_come_back_and_no_second_pod_is_made(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace))
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    (pod,) = bench.pods("chat")
    name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]

    def healed() -> bool:
        found: dict[str, Any] = bench.kubectl.json("get", "pod", name)["metadata"]
        assert found["uid"] == pod["metadata"]["uid"]
        return bool(found["labels"] == labels)

    # The operator that watches by label sees a pod go that is still there.
    bench.kubectl("label", "pod", name, "app.kubernetes.io/name-", "moefleet.io/revision-")
    bench.wait("its labels are back", healed)
    bench.kubectl("label", "--overwrite", "pod", name, "moefleet.io/fleet=other", "moefleet.io/slot=7")
    bench.wait("its labels are right again", healed)
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    assert list(bench.world.seen.values()) == [name]


def test_a_quota_of_the_namespace_is_said_with_its_numbers_and_heals(bench: Bench) -> None:
    bench.leader()
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": bench.namespace},
        "spec": {"hard": {"requests.nvidia.com/gpu": "8"}},
    }
    bench.kubectl.apply(quota)
    bench.wait("the quota counts", lambda: bench.kubectl.json("get", "resourcequota", "gpus").get("status"))
    bench.kubectl.apply(fleet("chat", bench.namespace, mode="External", replicas=2))
    bench.wait("it is said", lambda: bench.condition("chat", "CapacityLimited") == ("True", "QuotaExceeded"))
    bench.wait("one serves", lambda: len(bench.ready_pods("chat")) == 1)
    assert "gpus" in message(bench, "chat", "CapacityLimited")
    quota["spec"] = {"hard": {"requests.nvidia.com/gpu": "16"}}
    bench.kubectl.apply(quota)
    bench.wait("both serve", lambda: len(bench.ready_pods("chat")) == 2, limit_s=120.0)
    bench.wait("and it is over", lambda: bench.condition("chat", "CapacityLimited")[0] == "False")


def test_a_replica_that_the_scheduler_ends_for_a_dearer_pod_is_said_and_comes_back(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    pool = {"moefleet.test/pool": bench.namespace}
    (node,) = bench.plane.add_fake_nodes(1, gpus=8, prefix=f"pool-{bench.namespace}", labels=pool)
    request.addfinalizer(lambda: bench.kubectl("delete", "node", node))
    dear = f"dear-{bench.namespace}"
    bench.kubectl.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": dear},
            "value": 1000,
        }
    )
    request.addfinalizer(lambda: bench.kubectl("delete", "priorityclass", dear))
    bench.leader(watch_namespaces=())
    wanted = fleet("chat", bench.namespace, mode="External", replicas=1)
    template = wanted["spec"]["replica"]["podTemplate"]
    template["nodeSelector"] = pool
    # Long enough that it is seen to end.
    template["annotations"]["fake.moefleet.test/stop-after"] = "6s"
    bench.kubectl.apply(wanted)
    bench.wait("one serves", lambda: len(bench.ready_pods("chat")) == 1)
    (victim,) = bench.ready_pods("chat")

    bench.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "big", "namespace": bench.namespace},
            "spec": {
                "priorityClassName": dear,
                "nodeSelector": pool,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "big",
                        "image": "none",
                        "resources": {"limits": {"nvidia.com/gpu": "8", "cpu": "1", "memory": "1Mi"}},
                    }
                ],
            },
        }
    )
    bench.wait("it is said", lambda: bench.condition("chat", "Disrupted") == ("True", "Preempted"))
    assert victim in message(bench, "chat", "Disrupted")
    bench.wait("there is no room", lambda: bench.condition("chat", "CapacityLimited")[0] == "True")
    bench.kubectl("delete", "pod", "big", "--wait=false")
    bench.wait("it serves again", lambda: len(bench.ready_pods("chat")) == 1)
    bench.wait("nothing is disrupted", lambda: bench.condition("chat", "Disrupted")[0] == "False")
