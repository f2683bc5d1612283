"""From the API server's JSON to facts, and from facts to free room."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from moefleet_operator.planning.capacity import capacity
from moefleet_operator.planning.facts import (
    NodeFacts,
    Taint,
    node_facts,
    pod_facts,
    pod_requests,
    unix_seconds,
)
from moefleet_operator.planning.failing import failing
from moefleet_operator.planning.observed import Capacity, Replica
from moefleet_operator.planning.quantity import millis, vector
from moefleet_operator.planning.timestamps import rfc3339, rfc3339_micro
from moefleet_operator.rendering.problem import Problem
from moefleet_testing.builders import failed, ready, starting

GPU = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1000), (8, 8000), ("100m", 100), ("1Ki", 1_024_000), ("1.5G", 1_500_000_000_000), ("1e3", 1_000_000), ("0.0001", 1), ("64Gi", 64 * 2**30 * 1000)],
)  # fmt: skip
def test_quantities(text: str | int, expected: int) -> None:
    assert millis(text) == expected


def test_what_is_no_quantity_is_an_error_alone_and_absent_in_a_list() -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        millis("12Qi")
    assert vector({"cpu": "2", GPU: "many"}) == {"cpu": 2000}


def test_times_there_and_back() -> None:
    assert rfc3339(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert unix_seconds(rfc3339_micro(1_800_000_000.25)) == 1_800_000_000.25
    assert unix_seconds(None) == 0.0


def test_a_request_is_the_sum_of_containers_or_the_largest_init_container() -> None:
    spec = {
        "containers": [
            {"resources": {"requests": {"cpu": "1", GPU: "8"}}},
            {"resources": {"requests": {"cpu": "500m"}}},
        ],
        "initContainers": [{"resources": {"requests": {"cpu": "4"}}}],
    }
    assert pod_requests(spec) == {"pods": 1000, "cpu": 4000, GPU: 8000}


def test_a_pod_in_the_middle_of_its_end() -> None:
    raw: dict[str, Any] = {
        "metadata": {
            "namespace": "models",
            "name": "chat-11111111-3",
            "uid": "u",
            "resourceVersion": "77",
            "labels": {"moefleet.io/slot": "3", "moefleet.io/active": "false"},
            "deletionTimestamp": "2027-01-15T08:10:00Z",
            "deletionGracePeriodSeconds": 600,
        },
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T07:00:00Z"}]
        },
    }
    pod = pod_facts(raw)
    assert (pod.slot, pod.version, pod.active, pod.terminating) == (3, 77, False, True)
    assert pod.deleted_at == unix_seconds("2027-01-15T08:00:00Z"), (
        "when it was asked for, not when its grace ends"
    )
    assert pod.since("Ready") == unix_seconds("2027-01-15T07:00:00Z")


def test_an_empty_object_is_read_without_an_error() -> None:
    assert pod_facts({}).phase == "Pending"
    assert node_facts({}).open is False


# --- room ------------------------------------------------------------------------------------------------------


def a_node(name: str = "n", gpus: int = 8, **changes: Any) -> NodeFacts:
    facts: dict[str, Any] = {
        "name": name,
        "uid": name,
        "version": 1,
        "labels": {"nvidia.com/gpu.product": "H800"},
        "allocatable": {GPU: gpus * 1000, "pods": 110_000},
        "taints": (),
        "open": True,
    }
    return NodeFacts(**{**facts, **changes})


H800 = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["H800"]}]}]}}}  # fmt: skip


class Room(NamedTuple):
    story: str
    nodes: list[NodeFacts]
    spec: dict[str, Any]
    used: dict[str, dict[str, int]]
    pending: int
    expected: Capacity


@pytest.mark.parametrize(
    "row",
    [
        Room("two empty nodes", [a_node("a"), a_node("b")], {}, {}, 0, Capacity(2, 2, 2)),
        Room("one is taken", [a_node("a"), a_node("b")], {}, {"a": {GPU: 8000}}, 0, Capacity(1, 2, 2)),
        Room("a replica needs its GPUs on one node", [a_node("a"), a_node("b")], {}, {"a": {GPU: 4000}, "b": {GPU: 4000}}, 0, Capacity(0, 2, 2)),
        Room("pods that wait take room, too", [a_node("a"), a_node("b")], {}, {}, 1, Capacity(1, 2, 2)),
        Room("more GPUs than any node has", [a_node(gpus=4)], {}, {}, 0, Capacity(0, 1, 0)),
        Room("a cordoned node", [a_node(open=False)], {}, {}, 0, Capacity(0, 0, 0)),
        Room("a taint", [a_node(taints=(Taint("x", "", "NoSchedule"),))], {}, {}, 0, Capacity(0, 0, 0)),
        Room("a taint that is tolerated", [a_node(taints=(Taint("x", "", "NoSchedule"),))], {"tolerations": [{"key": "x", "operator": "Exists"}]}, {}, 0, Capacity(1, 1, 1)),
        Room("a soft taint", [a_node(taints=(Taint("x", "", "PreferNoSchedule"),))], {}, {}, 0, Capacity(1, 1, 1)),
        Room("the right product", [a_node("a"), a_node("b", labels={})], {"affinity": H800}, {}, 0, Capacity(1, 1, 1)),
        Room("a node selector", [a_node("a", labels={"pool": "x"}), a_node("b")], {"nodeSelector": {"pool": "x"}}, {}, 0, Capacity(1, 1, 1)),
        Room("sixteen GPUs carry two replicas", [a_node(gpus=16)], {}, {}, 0, Capacity(2, 1, 1)),
    ],
    ids=lambda row: row.story,
)  # fmt: skip
def test_room(row: Room) -> None:
    found = capacity(row.spec, {GPU: 8000, "pods": 1000}, row.nodes, row.used, row.pending)
    assert found == row.expected


# --- what goes wrong in a pod --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replica", "reason"),
    [
        (ready(0), None),
        (starting(0), None),
        (starting(0, state="waiting", reason="ContainerCreating"), None),
        (starting(0, state="waiting", reason="ErrImagePull"), "ImagePullFailed"),
        (starting(0, state="waiting", reason="CreateContainerConfigError", message="no secret"), "ContainerFailed"),
        (starting(0, state="terminated", restarts=0, last_message="Error with code 1"), "ContainerFailed"),
        (starting(0, state="waiting", reason="CrashLoopBackOff", restarts=5), "CrashLoop"),
        (starting(0, state="terminated", restarts=1, last_message='{"reason": "CheckpointUnreadable", "message": "x"}'), "ModelUnreadable"),
        (starting(0, state="terminated", restarts=1, last_message='{"reason": "Unheard", "message": "x"}'), "ContainerFailed"),
        (failed(0), "PodEvicted"),
    ],
)  # fmt: skip
def test_failing(replica: Replica, reason: str | None) -> None:
    problem = failing(replica)
    assert (problem.reason if problem else None) == reason
    if problem is not None:
        assert replica.name in problem.message


def test_a_missing_image_says_what_to_check() -> None:
    stuck = starting(0, state="waiting", reason="ErrImagePull", message="no such host")
    assert failing(stuck) == Problem(
        "ImagePullFailed",
        f"{stuck.name}: ErrImagePull: no such host; check engine.image and its pull secrets",
    )
