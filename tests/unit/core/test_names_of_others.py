"""Services and budgets that are somebody else's, orphaned, edited by hand or not to be seen."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.core.effects import (
    Apply,
)
from moefleet_operator.core.events import (
    KINDS,
    AlreadyExists,
    ObjectChanged,
    Synced,
)
from moefleet_operator.core.leadership import SETTLE_S
from moefleet_testing.desk import FLEET, Desk, fleet, with_fleet


def not_ours(kind: str, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    owners = [{"controller": True, **owner}] if owner is not None else []
    return {
        "kind": kind,
        "metadata": {"namespace": "models", "name": "chat", "ownerReferences": owners},
        "spec": {},
    }


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "a kind that cannot be watched"])
@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_a_name_of_somebody_elses_is_not_taken_over(kind: str, watched: bool) -> None:
    desk = Desk()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for each in KINDS:
        desk.feed(Synced(each, available=watched or each != kind))
    desk.tick(SETTLE_S)
    written = []
    for _ in range(90):
        for apply in desk.all(Apply):
            if apply.body["kind"] == kind:
                written.append(apply)
                desk.answer(apply, AlreadyExists(desk.stamped(not_ours(kind), uid="foreign")))
        desk.carry_out()
        desk.tick(1.0)
    assert written
    assert all(apply.create for apply in written), "server-side apply would have taken it over"
    assert len(written) < 15
    assert desk.conditions["Stalled"][:2] == ("True", "NameInUse")
    assert f"{kind} models/chat was made by somebody else" in desk.conditions["Stalled"][2]


def test_one_with_our_labels_and_another_owner_is_left_alone_and_the_name_is_taken_when_it_goes() -> None:
    desk = with_fleet()
    desk.settle(2)
    theirs = not_ours("Service", {"kind": "MoEFleet", "name": "chat", "uid": "the-fleet-before"})
    labels = {"moefleet.io/fleet": "chat"}
    theirs["metadata"] |= {"labels": labels, "uid": "old-service", "resourceVersion": "9000"}
    desk.feed(ObjectChanged("Service", FLEET, theirs))
    desk.settle(5)
    assert [e for e in desk.all(Apply) if e.body["kind"] == "Service"] == []
    assert desk.conditions["Stalled"][1] == "NameInUse"
    assert "belongs to MoEFleet chat" in desk.conditions["Stalled"][2]
    desk.feed(ObjectChanged("Service", FLEET, None, uid="old-service"))
    desk.carry_out()
    desk.tick(1.0)
    again = next(e for e in desk.all(Apply) if e.body["kind"] == "Service")
    assert again.create
    desk.settle(3)
    assert desk.conditions["Stalled"][1] == "NotStalled"


def test_an_orphan_of_ours_is_taken_back() -> None:
    desk = with_fleet()
    orphan = not_ours("Service")
    orphan["metadata"] |= {"labels": {"moefleet.io/fleet": "chat"}, "uid": "o", "resourceVersion": "9000"}
    desk.carry_out()
    desk.feed(ObjectChanged("Service", FLEET, orphan))
    desk.tick(1.0)
    applied = next(e for e in desk.all(Apply) if e.body["kind"] == "Service")
    assert not applied.create


def test_ours_that_cannot_be_watched_is_known_once_the_api_server_has_shown_it() -> None:
    desk = Desk()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS:
        desk.feed(Synced(kind, available=kind != "Service"))
    desk.tick(SETTLE_S)
    service = next(e for e in desk.all(Apply) if e.body["kind"] == "Service")
    desk.answer(service, AlreadyExists(desk.stamped(service.body, uid="ours")))
    desk.settle(130)
    assert [e for e in desk.all(Apply) if e.body["kind"] == "Service"] == []


def test_a_service_edited_by_hand_is_put_right() -> None:
    desk = with_fleet()
    service = next(e for e in desk.all(Apply) if e.body["kind"] == "Service")
    desk.carry_out()
    edited = desk.stamped(
        {**service.body, "spec": {**service.body["spec"], "selector": {"app": "other"}}}, uid="uid-Service"
    )
    desk.feed(ObjectChanged("Service", FLEET, edited))
    desk.tick(1.0)
    again = desk.take(Apply)
    assert (again.body["kind"], again.create) == ("Service", False)
    assert "spec.selector" in again.message
