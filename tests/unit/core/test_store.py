"""The store believes whatever is newest, whoever brings it."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator import names
from moefleet_operator.core.events import Key, Kind
from moefleet_operator.core.store import Store
from moefleet_operator.rendering.problem import Problem

FLEET = Key("models", "chat")
POD = Key("models", "chat-11111111-0")


def fleet(
    version: int = 1,
    *,
    name: str = "chat",
    uid: str = "fleet-uid",
    born: str = "2026-11-24T10:00:00Z",
    **more: Any,
) -> dict[str, Any]:
    meta = {
        "namespace": "models",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": born,
        **more,
    }
    spec = {
        "model": {"name": "tiny", "source": "file:///m"},
        "engine": {"type": "Simulated", "image": "r"},
        "scaling": {"minReplicas": 1, "maxReplicas": 2},
    }
    return {"metadata": meta, "spec": spec, "status": {}}


def pod(
    version: int = 10,
    *,
    uid: str = "pod-uid",
    owner: str = "fleet-uid",
    node: str = "n1",
    name: str = POD.name,
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "namespace": "models",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": names.replica_labels("chat", "11111111", 0),
    }
    if owner:
        meta["ownerReferences"] = [{"uid": owner, "controller": True}]
    containers = [{"name": "runtime", "resources": {"requests": {"nvidia.com/gpu": "8"}}}]
    return {
        "metadata": meta,
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": "Running"},
    }


def filled() -> Store:
    store = Store()
    store.apply("MoEFleet", FLEET, fleet())
    store.apply("Pod", POD, pod())
    return store


def test_pods_are_found_by_their_owner() -> None:
    store = filled()
    assert [p.name for p in store.pods_of(FLEET, "fleet-uid")] == [POD.name]
    assert store.pods_of(FLEET, "an-earlier-uid") == []


def test_a_change_names_the_fleets_to_look_at() -> None:
    store = filled()
    assert store.apply("Pod", POD, pod(11)) == {FLEET}
    assert store.apply("Pod", POD, pod(11)) == set(), "the same version is no news"


def test_an_older_watch_event_does_not_undo_what_we_wrote() -> None:
    store = filled()
    store.apply("Pod", POD, pod(20, node="n2"))
    assert store.apply("Pod", POD, pod(15, node="n1")) == set()
    assert store.pods[POD].node == "n2"


def test_a_deleted_pod_does_not_come_back_by_a_late_event() -> None:
    store = filled()
    store.gone("Pod", POD, "pod-uid")
    assert store.apply("Pod", POD, pod(30)) == set()
    assert POD not in store.pods


def test_a_late_deletion_does_not_hide_the_next_pod_of_that_name() -> None:
    store = filled()
    store.apply("Pod", POD, pod(20, uid="pod-uid-2"))
    store.apply("Pod", POD, None, "pod-uid")
    assert store.pods[POD].uid == "pod-uid-2"


def test_a_list_takes_away_what_is_gone_but_not_what_is_newer_than_it() -> None:
    store = filled()
    made = Key("models", "chat-11111111-1")
    store.apply("Pod", made, pod(40, uid="made", name=made.name))
    assert store.relisted("Pod", [], as_of=39) == {FLEET}
    assert set(store.pods) == {made}
    store.relisted("Pod", [], as_of=40)
    assert not store.pods


def test_a_list_that_was_read_before_an_object_was_made_does_not_hide_it() -> None:
    """The LIST is read, then the watch brings a new fleet, and only then the LIST is worked on."""
    store = Store()
    young = Key("models", "young")
    store.apply("MoEFleet", young, fleet(10, name="young", uid="b"))
    store.relisted("MoEFleet", [fleet(5)], as_of=9)
    assert set(store.fleets) == {FLEET, young}
    # It was not buried, either: what comes next is believed.
    store.apply("MoEFleet", young, fleet(11, name="young", uid="b", generation=2))
    assert store.fleets[young].version == 11
    store.relisted("MoEFleet", [fleet(5)], as_of=12)
    assert set(store.fleets) == {FLEET}


def test_an_old_list_does_not_bring_back_what_the_watch_said_is_gone() -> None:
    store = filled()
    store.apply("Pod", POD, None, "pod-uid")
    store.relisted("Pod", [pod()], as_of=10)
    assert not store.pods


def test_a_list_of_unknown_age_takes_nothing_away() -> None:
    store = filled()
    store.relisted("Pod", [], as_of=0)
    assert set(store.pods) == {POD}


def test_room_is_counted_pod_by_pod() -> None:
    store = filled()
    assert store.usage.by_node()["n1"]["nvidia.com/gpu"] == 8000
    store.apply("Pod", POD, pod(11, node="n2"))
    assert "n1" not in store.usage.by_node()
    store.apply("Pod", POD, None)
    assert not store.usage.by_node()


def test_pods_of_others_only_take_room() -> None:
    store = Store()
    other = pod()
    other["metadata"]["labels"] = {}
    store.apply("Pod", POD, other)
    assert not store.pods
    assert store.usage.by_node()["n1"]["nvidia.com/gpu"] == 8000


def test_waiting_pods_count_as_pods_like_ours() -> None:
    store = Store()
    store.apply("Pod", POD, pod(node=""))
    assert store.usage.waiting({"nvidia.com/gpu": 4000, "cpu": 1}) == 2
    assert store.usage.waiting({"nvidia.com/gpu": 8000}) == 1


def test_orphans_are_those_that_nobody_owns() -> None:
    store = Store()
    store.apply("MoEFleet", FLEET, fleet())
    store.apply("Pod", POD, pod(owner=""))
    assert [p.name for p in store.orphans_of(FLEET)] == [POD.name]
    assert store.names_taken(FLEET) == {POD.name}


def test_the_oldest_fleet_has_the_model_name() -> None:
    store = Store()
    young, old = Key("models", "young"), Key("other", "old")
    store.apply("MoEFleet", young, fleet(1, name="young", uid="b", born="2026-11-24T11:00:00Z"))
    assert store.name_owner(young) is None
    elder = fleet(2, name="old", uid="a", born="2026-11-24T10:00:00Z")
    assert store.apply("MoEFleet", old, elder) == {young, old}, "both are looked at again"
    assert store.name_owner(young) == old
    assert store.name_owner(old) is None
    going = fleet(3, name="old", uid="a", deletionTimestamp="2026-11-24T12:00:00Z")
    assert young in store.apply("MoEFleet", old, going)
    assert store.name_owner(young) is None, "a fleet that is being deleted gives its name back"


def test_an_object_that_cannot_be_read_is_a_problem_with_the_field() -> None:
    store = Store()
    broken = fleet()
    broken["spec"]["scaling"]["minReplicas"] = "many"
    store.apply("MoEFleet", FLEET, broken)
    parsed = store.fleets[FLEET].parsed
    assert isinstance(parsed, Problem)
    assert "minReplicas" in parsed.message


def test_a_heartbeat_of_a_node_is_no_news() -> None:
    store = filled()
    node = {
        "metadata": {"name": "n1", "uid": "node", "resourceVersion": "5"},
        "status": {"allocatable": {"pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    assert store.apply("Node", Key("", "n1"), node) == {FLEET}
    beat = {**node, "metadata": {**node["metadata"], "resourceVersion": "6"}}
    assert store.apply("Node", Key("", "n1"), beat) == set()
    cordoned = {
        **beat,
        "metadata": {**node["metadata"], "resourceVersion": "7"},
        "spec": {"unschedulable": True},
    }
    assert store.apply("Node", Key("", "n1"), cordoned) == {FLEET}


@pytest.mark.parametrize(
    ("kind", "spec"), [("PodDisruptionBudget", {"minAvailable": 1}), ("Service", {"clusterIP": "10.0.0.1"})]
)
def test_a_childs_status_is_no_reason_to_look_at_its_fleet(kind: Kind, spec: dict[str, Any]) -> None:
    store = Store()
    labels = {names.LABEL_FLEET: "chat"}

    def seen(version: str, **rest: Any) -> set[Key]:
        meta = {
            "namespace": "models",
            "name": "chat",
            "uid": "c",
            "labels": labels,
            "resourceVersion": version,
        }
        return store.apply(kind, Key("models", "chat"), {"metadata": meta, "spec": spec, **rest})

    assert seen("5") == {Key("models", "chat")}
    assert seen("6", status={"currentHealthy": 3}) == set()
    assert store.children[kind, Key("models", "chat")]["status"] == {"currentHealthy": 3}, "it is kept"
    assert seen("7", spec={"edited": "by hand"}) == {Key("models", "chat")}
