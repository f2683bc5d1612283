"""What a plan is told of the nodes under its replicas: who they are, since when GPUs are short, whether too many are silent."""

from __future__ import annotations

import random
from typing import Any

import pytest
from moefleet_operator import names
from moefleet_operator.core.events import Key
from moefleet_operator.core.gather import Gatherer
from moefleet_operator.core.memory import Memory
from moefleet_operator.core.reports import Reports
from moefleet_operator.core.settings import CoreSettings
from moefleet_operator.core.store import Store
from moefleet_operator.planning.observed import DrainSeen, Observed
from moefleet_testing.builders import draining, ready

GPU = "nvidia.com/gpu"
FLEET = Key("models", "chat")


class World:
    def __init__(self) -> None:
        self.store, self.memory = Store(), Memory(random.Random(1))
        settings = CoreSettings(
            identity="operator-0", lease_name="lease", namespace="system", control_key=None, pods_watched="all"
        )  # fmt: skip
        self.gatherer = Gatherer(settings, self.store, Reports(), self.memory)
        self.version = 0
        spec = {
            "model": {"name": "tiny", "source": "file:///m"},
            "engine": {"type": "Simulated", "image": "r"},
            "scaling": {"minReplicas": 1, "maxReplicas": 2},
        }
        meta = {"namespace": "models", "name": "chat", "uid": "fleet-uid", "generation": 1}
        self.put("MoEFleet", FLEET, {"metadata": meta, "spec": spec, "status": {}})

    def put(self, kind: Any, key: Key, raw: dict[str, Any]) -> None:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.store.apply(kind, key, raw)

    def node(self, name: str, gpus: int = 8, *, silent: bool = False) -> None:
        told = {
            "type": "Ready",
            "status": "Unknown" if silent else "True",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }
        status = {"allocatable": {GPU: str(gpus)}, "conditions": [told]}
        self.put("Node", Key("", name), {"metadata": {"name": name, "uid": name}, "status": status})

    def pod(self, slot: int, node: str, gpus: int = 8) -> None:
        name = f"chat-11111111-{slot}"
        meta = {
            "namespace": "models", "name": name, "uid": f"uid-{slot}",
            "labels": names.replica_labels("chat", "11111111", slot),
            "ownerReferences": [{"uid": "fleet-uid", "controller": True}],
        }  # fmt: skip
        container = {"name": "runtime", "resources": {"requests": {GPU: str(gpus)}}}
        self.put(
            "Pod", Key("models", name),
            {"metadata": meta, "spec": {"nodeName": node, "containers": [container]}, "status": {"phase": "Running"}},
        )  # fmt: skip

    def seen(self, now: float, unavailable: tuple[Any, ...] = ()) -> Observed:
        record = self.store.fleets[FLEET]
        assert isinstance(record.parsed, tuple)
        return self.gatherer.observe(
            FLEET, record, record.parsed, unavailable=unavailable, creating=0, now=now
        )


def test_since_when_gpus_are_short_is_remembered_until_they_are_back() -> None:
    world = World()
    world.node("n1")
    world.pod(0, "n1")
    (replica,) = world.seen(100.0).replicas
    assert replica.node is not None
    assert replica.node.short is None
    world.node("n1", gpus=7)
    for now, for_s in ((110.0, 0.0), (150.0, 40.0)):
        (replica,) = world.seen(now).replicas
        assert replica.node is not None
        assert replica.node.short is not None
        assert (replica.node.short.usable, replica.node.short.in_use, replica.node.short.for_s) == (
            7,
            8,
            for_s,
        )
    world.node("n1")
    world.seen(160.0)
    world.node("n1", gpus=0)
    (replica,) = world.seen(200.0).replicas
    assert replica.node is not None
    assert replica.node.short is not None
    assert replica.node.short.for_s == 0.0, "another time than the one that was over"


def test_two_replicas_on_one_node_share_its_shortage() -> None:
    world = World()
    world.node("n1", gpus=15)
    world.pod(0, "n1")
    world.pod(1, "n1")
    assert [r.node.short is not None for r in world.seen(1.0).replicas if r.node] == [True, True]


@pytest.mark.parametrize(
    ("nodes", "silent", "expected"),
    [(1, 1, False), (2, 2, False), (4, 3, True), (10, 3, False), (10, 6, True)],
)
def test_many_silent_nodes_are_no_lost_nodes(nodes: int, silent: int, expected: bool) -> None:
    world = World()
    for n in range(nodes):
        world.node(f"n{n}", silent=n < silent)
    world.pod(0, "n0")
    assert world.seen(1.0).nodes_unheard is expected


def test_where_nodes_cannot_be_seen_nothing_is_known_of_them() -> None:
    world = World()
    world.node("n1", silent=True)
    world.pod(0, "n1")
    found = world.seen(1.0, unavailable=("Node",))
    assert [r.node for r in found.replicas] == [None]
    assert not found.nodes_unheard


def test_a_node_that_is_not_known_is_no_trouble() -> None:
    world = World()
    world.pod(0, "elsewhere")
    assert [r.node for r in world.seen(1.0).replicas] == [None]


def test_how_long_a_replica_drains_is_counted_from_when_it_was_seen_to_begin() -> None:
    memory = Memory(random.Random(1))
    serves, drains = ready(0).pod, draining(0).pod
    early = [memory.drain_seen(drains, now) for now in (2.0, 5.0)]
    assert early == [DrainSeen(0.0, whole=False), DrainSeen(3.0, whole=False)], "it drained before"
    assert memory.drain_seen(serves, 10.0) is None
    found = [memory.drain_seen(drains, now) for now in (20.0, 50.0)]
    assert found == [DrainSeen(0.0, whole=True), DrainSeen(30.0, whole=True)]
    assert memory.drain_seen(serves, 60.0) is None, "it came back"
    assert memory.drain_seen(drains, 70.0) == DrainSeen(0.0, whole=True)
    memory.forget(set(), 80.0, 80.0)
    assert memory.drain_seen(drains, 90.0) == DrainSeen(0.0, whole=False), "it is gone"
