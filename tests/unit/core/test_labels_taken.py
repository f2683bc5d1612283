"""Somebody takes or changes the labels of a replica's pod: it is found by its owner, labelled again, and not made twice."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator import names
from moefleet_operator.core.events import Key
from moefleet_operator.core.store import Store
from moefleet_operator.planning.facts import pod_facts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.steps import AdoptReplica
from moefleet_testing.builders import NOW, a_fleet, observed

NAME = "chat-11111111-3"
RIGHT = names.replica_labels("chat", "11111111", 3)


def pod(labels: dict[str, str], version: int = 1, owner: str = "MoEFleet") -> dict[str, Any]:
    meta: dict[str, Any] = {
        "namespace": "models", "name": NAME, "uid": "u", "resourceVersion": str(version), "labels": labels,
    }  # fmt: skip
    if owner:
        meta["ownerReferences"] = [{"uid": "fleet-uid", "controller": True, "kind": owner}]
    return {"metadata": meta, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}


@pytest.mark.parametrize(
    ("change", "labelled"),
    [
        ({}, True),
        ({names.LABEL_ACTIVE: "false"}, True),
        ({names.LABEL_NAME: None}, False),
        ({names.LABEL_FLEET: "other"}, False),
        ({names.LABEL_REVISION: "22222222"}, False),
        ({names.LABEL_SLOT: "7"}, False),
        ({"theirs": "x"}, True),
    ],
)
def test_whose_it_is_stands_in_owner_and_name(change: dict[str, str | None], labelled: bool) -> None:
    labels = {k: v for k, v in {**RIGHT, **change}.items() if v is not None}
    facts = pod_facts(pod(labels))
    assert (facts.fleet, facts.revision, facts.slot) == ("chat", "11111111", 3)
    assert facts.labelled is labelled
    store = Store()
    store.apply("Pod", Key("models", NAME), pod(labels))
    assert [p.uid for p in store.pods_of(Key("models", "chat"), "fleet-uid")] == ["u"]
    assert store.names_taken(Key("models", "chat")) == {NAME}


def test_a_pod_of_somebody_elses_with_such_a_name_is_left_alone() -> None:
    store = Store()
    store.apply("Pod", Key("models", NAME), pod({}, owner="ReplicaSet"))
    assert store.pods == {}
    assert Key("models", NAME) in store.others


def test_its_labels_are_set_right_in_one_step_and_what_others_added_stays() -> None:
    facts = pod_facts(pod({"theirs": "x"}))
    made = plan(observed(Replica(facts, None), fleet=a_fleet()), NOW)
    (step,) = [s for s in made.steps if isinstance(s, AdoptReplica)]
    assert step.reason == "LabelsRestored"
    wanted = {k: v for k, v in RIGHT.items() if k != names.LABEL_ACTIVE}
    assert step.body == {"metadata": {"uid": "u", "labels": wanted}}


def test_a_watch_by_labels_says_that_it_is_gone_and_the_refused_create_shows_that_it_is_not() -> None:
    store = Store()
    key = Key("models", NAME)
    store.apply("Pod", key, pod(RIGHT, 1))
    store.apply("Pod", key, None, "u")
    store.apply("Pod", key, pod({}, 2))
    assert store.pods == {}, "a late event does not bring it back"
    store.exists("u")
    store.apply("Pod", key, pod({}, 2))
    assert [p.labelled for p in store.pods.values()] == [False]
