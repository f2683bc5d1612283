"""Who may plan and write, from what it must know first to the Lease given back at the end."""

from __future__ import annotations

from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    Effect,
    Exit,
    ReadLease,
    Relist,
    WriteLease,
)
from moefleet_operator.core.events import (
    ESSENTIAL,
    KINDS,
    AlreadyExists,
    DecisionMade,
    Key,
    ObjectChanged,
    Ok,
    Relisted,
    Stop,
    Synced,
    Transient,
)
from moefleet_operator.core.leadership import RELIST_RETRY_S
from moefleet_testing.desk import FLEET, Desk, fleet, with_fleet


def test_nothing_is_planned_before_every_kind_is_known() -> None:
    desk = Desk()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS[:-1]:
        desk.feed(Synced(kind))
    desk.tick(60.0)
    assert desk.open == []
    desk.feed(Synced(KINDS[-1]))
    assert desk.all(CreatePod)


def test_a_kind_that_cannot_be_watched_counts_as_known() -> None:
    desk = Desk()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS:
        desk.feed(Synced(kind, available=kind != "Node", message="no right to list nodes"))
    desk.tick(5.0)
    assert desk.all(CreatePod)


def test_without_the_right_to_keep_revisions_replicas_are_made_all_the_same() -> None:
    desk = Desk()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS:
        desk.feed(Synced(kind, available=kind not in ("ControllerRevision", "ResourceQuota")))
    desk.tick(5.0)
    assert desk.all(CreatePod)
    assert "ControllerRevision" not in {e.body["kind"] for e in desk.all(Apply)}


def test_a_revision_that_somebody_deletes_is_written_again_and_one_that_is_not_ours_is_left_alone() -> None:
    desk = with_fleet()
    desk.pods_serve = True
    desk.settle(5)
    (name,) = [n for n, r in desk.revisions.items() if r["kind"] == "ControllerRevision"]
    key, kept = Key("models", name), desk.revisions[name]
    assert kept["metadata"]["labels"]["moefleet.io/verdict"] == "good"
    desk.feed(ObjectChanged("ControllerRevision", key, None, uid=kept["metadata"]["uid"]))
    desk.tick(1.0)
    (again,) = [e for e in desk.all(Apply) if e.body["kind"] == "ControllerRevision"]
    assert again.create
    foreign = {**kept, "metadata": {**kept["metadata"], "uid": "x", "ownerReferences": []}}
    desk.answer(again, AlreadyExists(foreign))
    desk.carry_out(50)
    desk.tick(0.5)
    desk.carry_out(50)
    assert desk.conditions["Stalled"][1] == "NameInUse"
    assert f"ControllerRevision models/{name} was made by somebody else" in desk.conditions["Stalled"][2]


def test_one_that_does_not_lead_does_nothing() -> None:
    desk = Desk()
    desk.lease = desk.stamped(
        {
            "metadata": {"name": "moefleet-operator"},
            "spec": {"holderIdentity": "op-0", "leaseDurationSeconds": 15},
        }
    )
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS:
        desk.feed(Synced(kind))
    desk.tick(14.0)
    assert desk.open == []
    assert not desk.core.leading(desk.now)


def test_the_right_to_act_ends_with_the_lease() -> None:
    desk = with_fleet()
    desk.carry_out()
    (until,) = {e.not_after for e in (*desk.all(Effect),)} or {desk.now + 10.0}
    desk.grants = False
    desk.tick(until - desk.now + 2.0)
    desk.open.clear()
    desk.feed(DecisionMade(FLEET, 3, "WorkArrives", "3 are needed"))
    assert desk.all(CreatePod) == []
    assert not desk.core.leading(desk.now)


def test_a_leader_that_leads_again_waits_for_scaling_to_speak_again() -> None:
    desk = with_fleet()
    desk.feed(DecisionMade(FLEET, 4, "WorkArrives", "4 are needed"))
    desk.carry_out()
    assert desk.core.target(FLEET) == 4
    desk.grants = False
    desk.tick(15.0)
    other = fleet(resourceVersion="9000")
    desk.feed(
        ObjectChanged("MoEFleet", FLEET, {**other, "status": {"desiredReplicas": 2, "observedGeneration": 1}})
    )
    desk.grants = True
    for effect in desk.all(ReadLease) + desk.all(WriteLease):
        desk.answer(effect, Transient("cut off"))
    desk.open.clear()
    desk.tick(10.0)
    assert desk.core.leading(desk.now)
    assert desk.core.target(FLEET) == 2, "what another leader has written, not what we were told long ago"


def test_a_new_leader_plans_on_what_it_has_listed_since_it_leads() -> None:
    """Its watch may have been cut without its noticing: what the old leader made last is in no event, but in the LIST."""
    desk = Desk()
    desk.lists = False
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    for kind in KINDS:
        desk.feed(Relisted(kind, (), 0, began=desk.now - 1.0))
    desk.lead()
    asked = desk.take(Relist)
    desk.tick(5.0)
    assert desk.open == [], "neither plans nor asks twice"
    # One that was read before it led, and is told only now.
    for kind in ESSENTIAL:
        desk.feed(Relisted(kind, (), 0, began=-0.5))
    assert desk.open == []
    desk.feed(Relisted("Pod", (), 0, began=desk.now))
    assert desk.open == [], "fleets are missing yet"
    desk.feed(Relisted("MoEFleet", (), 0, began=desk.now))
    desk.answer(asked, Ok())
    desk.tick(1.0)
    assert len(desk.all(CreatePod)) == 1
    assert desk.all(Relist) == []


def test_a_list_that_is_refused_is_asked_for_again_and_nothing_is_planned_meanwhile() -> None:
    desk = Desk()
    desk.lists = False
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    desk.lead()
    desk.answer(desk.take(Relist), Transient("Pod: 503"))
    desk.tick(RELIST_RETRY_S - 1.0)
    assert desk.open == []
    desk.tick(1.0)
    assert desk.take(Relist).object.name == "op-1"
    assert desk.open == []


def test_each_time_that_it_leads_anew_it_lists_anew() -> None:
    desk = with_fleet()
    desk.carry_out()
    desk.grants = desk.lists = False
    desk.tick(15.0)
    assert not desk.core.leading(desk.now)
    desk.grants = True
    for effect in desk.all(ReadLease) + desk.all(WriteLease):
        desk.answer(effect, Transient("cut off"))
    desk.tick(10.0)
    assert desk.core.leading(desk.now)
    assert len(desk.all(Relist)) == 1


def test_told_to_stop_while_it_lists_it_ends() -> None:
    desk = Desk()
    desk.lists = False
    desk.lead()
    desk.answer(desk.take(Relist), Transient("Pod: 503"))
    desk.feed(Stop())
    desk.tick(3.0)
    assert len(desk.all(Exit)) == 1
    assert desk.all(Relist) == []


def test_stop_gives_the_lease_back_and_exits() -> None:
    desk = with_fleet()
    desk.carry_out()
    desk.feed(Stop())
    assert desk.take(Exit).code == 0
    assert desk.lease is not None
    assert desk.lease["spec"]["holderIdentity"] == ""
    desk.feed(DecisionMade(FLEET, 3, "WorkArrives", "3"))
    assert desk.open == []


def test_the_lease_is_given_back_only_when_nothing_is_under_way() -> None:
    desk = with_fleet()
    create = desk.all(CreatePod)[0]
    desk.feed(Stop())
    assert desk.all(Exit) == []
    assert desk.lease is not None
    assert desk.lease["spec"]["holderIdentity"] == "op-1"
    desk.answer(create, Ok(desk.stamped(create.body, uid="p")))
    desk.carry_out()
    desk.tick(1.0)
    assert desk.lease["spec"]["holderIdentity"] == ""


def test_effects_that_never_end_leave_the_lease_to_expire() -> None:
    desk = with_fleet()
    desk.feed(Stop())
    desk.tick(6.0)
    assert desk.all(Exit)
    assert desk.lease is not None
    assert desk.lease["spec"]["holderIdentity"] == "op-1"
