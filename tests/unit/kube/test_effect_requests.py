"""What each effect is on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    EmitEvent,
    PatchPod,
    PatchPodConditions,
    PodCondition,
    ReadLease,
    WriteLease,
)
from moefleet_operator.core.events import Key
from moefleet_operator.kube.requests import KubeEffect, request_of

WALL = 1_700_000_000.25
POD = Key("team", "chat-0a1b2c3d-0")
COMMON: dict[str, Any] = {"id": 1, "object": POD, "reason": "R", "message": "m", "not_after": 99.0}


def on_wire(effect: KubeEffect) -> tuple[str, str, dict[str, str], Any, str]:
    request = request_of(effect, WALL, "operator-0")
    return request.verb, request.path, dict(request.query), request.body, request.content_type


def test_a_pod_is_posted_never_applied() -> None:
    verb, path, query, body, content_type = on_wire(CreatePod(**COMMON, body={"kind": "Pod"}))
    assert (verb, path) == ("POST", "/api/v1/namespaces/team/pods")
    assert query == {"fieldManager": "moefleet-operator"}
    assert (body, content_type) == ({"kind": "Pod"}, "application/json")


@pytest.mark.parametrize(
    ("grace_s", "sent"), [(None, {}), (0, {"gracePeriodSeconds": 0}), (5, {"gracePeriodSeconds": 5})]
)
def test_a_delete_is_for_one_uid(grace_s: int | None, sent: dict[str, int]) -> None:
    verb, path, _, body, _ = on_wire(DeletePod(**COMMON, uid="u1", grace_s=grace_s))
    assert (verb, path) == ("DELETE", "/api/v1/namespaces/team/pods/chat-0a1b2c3d-0")
    assert body["preconditions"] == {"uid": "u1"}
    assert {k: v for k, v in body.items() if k == "gracePeriodSeconds"} == sent


def test_labels_are_merged_into_the_pod_of_that_uid_only() -> None:
    verb, path, _, body, content_type = on_wire(
        PatchPod(**COMMON, uid="u1", body={"metadata": {"labels": {"a": "b"}}})
    )
    assert (verb, path) == ("PATCH", "/api/v1/namespaces/team/pods/chat-0a1b2c3d-0")
    assert body == {"metadata": {"labels": {"a": "b"}, "uid": "u1"}}
    assert content_type == "application/merge-patch+json"


def test_conditions_are_merged_by_type_into_status() -> None:
    effect = PatchPodConditions(
        **COMMON,
        uid="u1",
        wall=WALL,
        conditions=(PodCondition(type="T", status="True", reason="R", message="m"),),
    )
    verb, path, _, body, content_type = on_wire(effect)
    assert (verb, path) == ("PATCH", "/api/v1/namespaces/team/pods/chat-0a1b2c3d-0/status")
    assert content_type == "application/strategic-merge-patch+json"
    assert body["metadata"] == {"uid": "u1"}
    assert body["status"]["conditions"][0]["lastTransitionTime"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("kind", "api_version", "subresource", "path"),
    [
        ("Service", "v1", "", "/api/v1/namespaces/team/services/chat"),
        ("PodDisruptionBudget", "policy/v1", "", "/apis/policy/v1/namespaces/team/poddisruptionbudgets/chat"),
        (
            "MoEFleet",
            "moefleet.io/v1alpha1",
            "status",
            "/apis/moefleet.io/v1alpha1/namespaces/team/moefleets/chat/status",
        ),
    ],
)
def test_shared_objects_are_applied_by_name_with_force(
    kind: str, api_version: str, subresource: Any, path: str
) -> None:
    body = {"apiVersion": api_version, "kind": kind, "metadata": {"namespace": "team", "name": "chat"}}
    verb, sent_path, query, sent, content_type = on_wire(Apply(**COMMON, body=body, subresource=subresource))
    assert (verb, sent_path, sent) == ("PATCH", path, body)
    assert query == {"fieldManager": "moefleet-operator", "force": "true"}
    assert content_type == "application/apply-patch+yaml"


def test_what_nobody_has_is_created_and_not_taken_over() -> None:
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "team", "name": "chat"}}
    verb, path, query, _, _ = on_wire(
        Apply(**{**COMMON, "object": Key("team", "chat")}, body=body, create=True)
    )
    assert (verb, path, query) == (
        "POST",
        "/api/v1/namespaces/team/services",
        {"fieldManager": "moefleet-operator"},
    )


def test_a_kind_without_a_path_is_our_mistake_and_says_which() -> None:
    with pytest.raises(KeyError, match="v1 Secret"):
        on_wire(Apply(**COMMON, body={"apiVersion": "v1", "kind": "Secret"}))


def test_an_event_is_about_the_fleet_and_within_the_limits() -> None:
    effect = EmitEvent(
        **{**COMMON, "object": Key("team", "chat"), "message": "x" * 3000},
        fleet_uid="f1",
        type="Warning",
        action="Scale",
        related=POD,
    )
    verb, path, _, body, _ = on_wire(effect)
    assert (verb, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/team/events")
    assert body["regarding"] == {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "namespace": "team",
        "name": "chat",
        "uid": "f1",
    }
    assert body["related"]["name"] == POD.name
    assert (len(body["note"]), body["note"][-1]) == (1024, "…")
    assert body["eventTime"] == "2023-11-14T22:13:20.250000Z"
    assert (body["reason"], body["action"], body["type"]) == ("R", "Scale", "Warning")
    assert body["reportingInstance"] == "operator-0"


def test_the_lease_is_created_once_and_then_updated_by_version() -> None:
    lease = {**COMMON, "object": Key("ops", "moefleet-operator")}
    assert on_wire(ReadLease(**lease))[:2] == (
        "GET",
        "/apis/coordination.k8s.io/v1/namespaces/ops/leases/moefleet-operator",
    )
    new = WriteLease(**lease, intent="acquire", body={"metadata": {"name": "moefleet-operator"}})
    assert on_wire(new)[:2] == ("POST", "/apis/coordination.k8s.io/v1/namespaces/ops/leases")
    known = WriteLease(**lease, intent="renew", body={"metadata": {"resourceVersion": "7"}})
    assert on_wire(known)[:2] == (
        "PUT",
        "/apis/coordination.k8s.io/v1/namespaces/ops/leases/moefleet-operator",
    )
