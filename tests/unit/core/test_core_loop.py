"""One pass over a fleet: what holds its key, what becomes of refusals, what is told. Every answer is given by hand."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    EmitEvent,
)
from moefleet_operator.core.events import (
    AlreadyExists,
    DecisionMade,
    Forbidden,
    Invalid,
    Key,
    ObjectChanged,
    Ok,
    Tick,
    Transient,
)
from moefleet_testing.desk import FLEET, Desk, fleet, serving, with_fleet
from moefleet_testing.reading import faults


def test_a_new_fleet_gets_pod_service_pdb_and_status() -> None:
    desk = with_fleet()
    assert desk.take(CreatePod).object.name.startswith("chat-")
    kinds = {(e.body["kind"], e.subresource, e.create) for e in desk.all(Apply)}
    assert kinds == {
        ("Service", "", True),
        ("PodDisruptionBudget", "", True),
        ("ControllerRevision", "", True),
        ("MoEFleet", "status", False),
    }


def test_when_all_is_done_nothing_more_is_asked_for() -> None:
    desk = with_fleet()
    desk.settle(5)
    desk.tick(120.0)
    assert [e for e in desk.open if not isinstance(e, EmitEvent)] == []


def test_while_effects_are_under_way_no_second_plan_is_made() -> None:
    desk = with_fleet()
    created = desk.take(CreatePod)
    desk.open.clear()
    desk.feed(DecisionMade(FLEET, 4, "WorkArrives", "4 are needed"))
    desk.tick(5.0)
    assert desk.open == [], "the first answer is not in yet"
    desk.answer(created, Ok(desk.stamped(created.body, uid="p0")))
    assert desk.open == [], "nor are those of Service, PDB and status"


def test_the_result_of_a_create_counts_before_any_watch_event() -> None:
    desk = with_fleet()
    desk.carry_out()
    desk.tick(200.0)
    assert desk.all(CreatePod) == []
    assert [r.phase for r in desk.core.replicas(FLEET)] == ["Pending"]


def test_a_create_whose_answer_was_lost_is_done_once() -> None:
    desk = with_fleet()
    created = desk.take(CreatePod)
    desk.carry_out()
    desk.answer(created, Transient("connection reset"))
    desk.carry_out()
    desk.tick(1.0)
    again = desk.take(CreatePod)
    assert again.object == created.object, "the same name: creating twice is creating once"
    desk.answer(again, AlreadyExists(desk.stamped(created.body, uid="made-by-the-first")))
    desk.carry_out()
    desk.tick(120.0)
    assert desk.all(CreatePod) == []
    assert [r.uid for r in desk.core.replicas(FLEET)] == ["made-by-the-first"]


def test_a_name_that_is_someone_elses_is_left_to_him() -> None:
    desk = with_fleet()
    created = desk.take(CreatePod)
    desk.carry_out()
    foreign = {"metadata": {"namespace": "models", "name": created.object.name}, "spec": {}, "status": {}}
    desk.answer(created, AlreadyExists(desk.stamped(foreign, uid="foreign")))
    desk.tick(1.0)
    assert desk.take(CreatePod).object.name.endswith("-1")


def test_refused_pods_become_a_condition_and_are_tried_again_ever_more_rarely() -> None:
    desk = with_fleet()
    refusal = Invalid('pods "chat" is forbidden: violates PodSecurity "restricted:latest"')
    tries = 0
    for _ in range(180):
        for create in desk.all(CreatePod):
            tries += 1
            desk.answer(create, refusal)
        desk.carry_out()
        desk.tick(1.0)
    assert desk.conditions["Ready"][:2] == ("False", "PodRefused")
    assert "violates PodSecurity" in desk.conditions["Ready"][2]
    assert desk.conditions["Stalled"][0] == "True"
    assert 3 <= tries <= 14, "0.1 s doubling to 60 s"


def test_a_quota_and_a_missing_right_have_their_own_reasons() -> None:
    for message, reason in (
        ('pods "x" is forbidden: exceeded quota: gpus', "QuotaExceeded"),
        ('pods is forbidden: User "op" cannot create resource "pods"', "PermissionMissing"),
    ):
        desk = with_fleet()
        for _ in range(4):
            for create in desk.all(CreatePod):
                desk.answer(create, Forbidden(message))
            desk.carry_out()
            desk.tick(1.0)
        assert desk.conditions["Ready"][1] == reason


def test_a_namespace_that_ends_is_said_and_not_asked_again_and_again() -> None:
    desk = with_fleet()
    tries = 0
    for _ in range(180):
        for effect in [*desk.all(CreatePod), *(e for e in desk.all(Apply) if e.create)]:
            tries += isinstance(effect, CreatePod)
            desk.answer(effect, Forbidden("403 Forbidden: being terminated", namespace_ends=True))
        desk.carry_out()
        desk.tick(1.0)
    assert desk.conditions["Ready"] == (
        "False",
        "NamespaceTerminating",
        "namespace models is being deleted and takes nothing new; this fleet goes with it",
    )
    assert desk.conditions["Stalled"][1] == "NamespaceTerminating"
    assert 2 <= tries <= 4, "once a minute"


def test_a_busy_server_is_left_alone_for_as_long_as_it_asked() -> None:
    desk = with_fleet()
    created = desk.take(CreatePod)
    desk.carry_out()
    desk.answer(created, Transient("429 TooManyRequests", retry_after_s=20.0))
    desk.carry_out()
    desk.tick(15.0)
    assert desk.all(CreatePod) == []
    desk.tick(10.0)
    assert len(desk.all(CreatePod)) == 1


def test_a_fleet_that_cannot_be_read_gets_a_condition_and_no_pod() -> None:
    desk = Desk()
    broken = fleet()
    broken["spec"]["scaling"]["maxReplicas"] = "many"
    desk.feed(ObjectChanged("MoEFleet", FLEET, broken))
    desk.lead()
    status = desk.take(Apply).body["status"]
    assert {c["type"]: c["reason"] for c in status["conditions"]}["Ready"] == "SpecInvalid"
    assert desk.all(CreatePod) == []


def test_one_fleet_that_cannot_be_planned_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from moefleet_operator.core import core as module

    good = module.plan

    def explode(observed: Any, now: float) -> Any:
        if observed.fleet.name == "bad":
            raise ZeroDivisionError("a bug")
        return good(observed, now)

    monkeypatch.setattr(module, "plan", explode)
    desk = Desk()
    bad = fleet(name="bad", uid="bad-uid")
    bad["spec"]["model"] = {"name": "another", "source": "file:///m"}
    desk.feed(ObjectChanged("MoEFleet", Key("models", "bad"), bad))
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    desk.lead()
    assert desk.core.errors == {Key("models", "bad"): "ZeroDivisionError: a bug"}
    assert [e.object.name[:4] for e in desk.all(CreatePod)] == ["chat"]
    assert desk.all(EmitEvent)[0].reason == "InternalError"


def test_deletion_creates_nothing_and_forgets_everything() -> None:
    desk = with_fleet()
    desk.carry_out()
    desk.feed(
        ObjectChanged(
            "MoEFleet", FLEET, {**fleet(deletionTimestamp="2026-11-24T11:00:00Z", resourceVersion="9000")}
        )
    )
    for pod in desk.core.replicas(FLEET):
        desk.feed(ObjectChanged("Pod", Key("models", pod.name), None))
    desk.tick(70.0)
    assert desk.open == []
    desk.feed(ObjectChanged("MoEFleet", FLEET, None))
    assert desk.core.fleets() == {}
    assert desk.core.target(FLEET) is None


SCHEDULER_SAYS = (
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 nodes are "
    "available: 1 Preemption is not helpful for scheduling."
)


def as_the_scheduler_leaves_it(desk: Desk, pod: CreatePod) -> dict[str, Any]:
    """What the API server shows of a pod that finds no node, and no kubelet has seen."""
    condition = {
        "lastProbeTime": None,
        "lastTransitionTime": "2027-01-15T08:00:01Z",
        "message": SCHEDULER_SAYS,
        "observedGeneration": 1,
        "reason": "Unschedulable",
        "status": "False",
        "type": "PodScheduled",
    }
    body = desk.stamped(pod.body, uid=f"uid-{pod.object.name}", creationTimestamp="2027-01-15T08:00:00Z")
    return {**body, "status": {"conditions": [condition], "phase": "Pending", "qosClass": "Burstable"}}


@pytest.mark.parametrize(
    ("settings", "reason"), [({"pods_watched": "all"}, "NoNodeFits"), ({}, "Unschedulable")]
)
def test_the_only_replica_that_finds_no_node_is_said_and_healed(settings: Any, reason: str) -> None:
    desk = Desk(**settings)
    small = {
        "metadata": {"name": "n1", "uid": "node", "resourceVersion": "5"},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "64", "memory": "512Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    desk.feed(ObjectChanged("Node", Key("", "n1"), small))
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    desk.lead()
    created = desk.take(CreatePod)
    desk.answer(created, Ok(desk.stamped(created.body, uid=f"uid-{created.object.name}")))
    desk.settle(2)
    assert desk.conditions["CapacityLimited"][:2] == ("False", "CapacitySufficient")
    desk.feed(ObjectChanged("Pod", created.object, as_the_scheduler_leaves_it(desk, created)))
    told: list[EmitEvent] = []
    for _ in range(20):
        told += [e for e in desk.all(EmitEvent) if e not in told]
        desk.carry_out(1)
        desk.tick(0.2)
    for type_, status in (("CapacityLimited", "True"), ("Ready", "False")):
        assert desk.conditions[type_][:2] == (status, reason)
        assert SCHEDULER_SAYS.rstrip(".") in desk.conditions[type_][2]
    assert [(e.type, e.reason) for e in told if e.type == "Warning"] == [("Warning", reason)]
    desk.settle(180)
    assert desk.conditions["CapacityLimited"][:2] == ("True", reason)
    assert len(desk.core.replicas(FLEET)) == 1
    desk.feed(ObjectChanged("Pod", created.object, serving(desk, created)))
    desk.settle(2)
    assert desk.conditions["CapacityLimited"][:2] == ("False", "CapacitySufficient")
    assert desk.conditions["Ready"][:2] == ("True", "AllReplicasReady")


def test_a_refusal_is_forgotten_when_what_was_refused_is_wanted_no_more() -> None:
    desk = with_fleet()
    desk.pods_serve = True
    desk.feed(DecisionMade(FLEET, 1, "DemandSteady", "one"))
    desk.settle(3)
    desk.feed(DecisionMade(FLEET, 2, "DemandRose", "two"))
    for _ in range(4):
        for created in desk.all(CreatePod):
            desk.answer(created, Invalid("422: denied the request: quota hook"))
        desk.carry_out(50)
        desk.tick(0.5)
    assert desk.conditions["Stalled"][:2] == ("True", "PodRefused")
    desk.feed(DecisionMade(FLEET, 1, "DemandFell", "one again"))
    desk.settle(5)
    assert desk.conditions["Stalled"][:2] == ("False", "NotStalled")
    assert desk.conditions["Ready"][:2] == ("True", "AllReplicasReady")


def test_a_refusal_stays_while_the_next_try_waits() -> None:
    desk = with_fleet()
    for _ in range(6):
        for created in desk.all(CreatePod):
            desk.answer(created, Invalid("422: denied the request: quota hook"))
        for other in list(desk.open):
            desk.answer(other, Ok(None))
        desk.tick(1.0)
        assert desk.conditions["Stalled"][:2] == ("True", "PodRefused")


def test_the_first_events_read_like_a_person_wrote_them() -> None:
    desk = with_fleet()
    desk.settle(2)
    desk.feed(DecisionMade(FLEET, 3, "DemandRose", "work for 2.31 replicas arrives"))
    told: list[str] = []
    for _ in range(20):
        told += [e.message for e in desk.all(EmitEvent)]
        desk.carry_out(1)
    texts = " | ".join(told)
    assert "From 1 replica to 3: work for 2.31 replicas arrives" in texts
    assert [text for text in told if faults(text)] == []


def test_a_new_fleets_first_event_says_what_it_starts_from() -> None:
    desk = with_fleet()
    created = desk.take(CreatePod)
    assert created.message == (
        "1 replica is wanted and there is none: minReplicas is 1 and nothing is known of the load yet"
    )


def test_a_decision_that_a_bound_holds_is_a_condition_and_one_that_fits_is_none() -> None:
    desk = with_fleet()
    desk.settle(2)
    desk.feed(DecisionMade(FLEET, 4, "AtMaximum", "6 are needed, maxReplicas is 4", 6))
    desk.settle(3)
    assert desk.conditions["ScalingLimited"] == (
        "True",
        "AtMaximum",
        "the load needs 6 replicas, maxReplicas is 4",
    )
    desk.feed(DecisionMade(FLEET, 4, "AtMaximum", "maxReplicas is 4"))
    desk.settle(3)
    assert desk.conditions["ScalingLimited"][:2] == ("False", "NotLimited")


def test_twenty_creates_are_one_event() -> None:
    desk = Desk()
    big = fleet()
    big["spec"]["scaling"] = {"minReplicas": 20, "maxReplicas": 20}
    desk.fleet = big
    desk.feed(ObjectChanged("MoEFleet", FLEET, big))
    desk.lead()
    desk.pods_serve = True
    events: list[EmitEvent] = []
    for _ in range(200):
        events += [e for e in desk.all(EmitEvent) if e not in events]
        desk.carry_out(1)
    assert len(desk.core.replicas(FLEET)) == 20
    assert sum(1 for e in events if e.action == "Create") <= 6, "unknown room doubles: 1, 1, 2, 4, 8, 4"


def test_a_status_that_the_watch_brings_before_the_answer_is_still_told() -> None:
    desk = Desk()
    desk.fleet = fleet()
    desk.fleet["spec"]["engine"]["args"] = {"speeed": 1}
    desk.feed(ObjectChanged("MoEFleet", FLEET, desk.fleet))
    desk.lead()
    for _ in range(20):
        if found := [e for e in desk.all(Apply) if e.subresource]:
            break
        desk.carry_out(1)
        desk.tick(1.0)
    written = desk.stamped({**desk.fleet, "status": found[0].body["status"]}, uid="fleet-uid")
    desk.feed(ObjectChanged("MoEFleet", FLEET, written))
    desk.answer(found[0], Ok(written))
    assert [(e.type, e.reason) for e in desk.all(EmitEvent) if e.type == "Warning"] == [
        ("Warning", "EngineArgumentUnknown")
    ]


def test_what_happens_within_a_moment_is_one_pass_that_sees_the_last_of_it() -> None:
    desk = Desk(gather_s=0.05)
    desk.lead()
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    assert not desk.open, "the moment is not over"
    desk.now += 0.03
    edited = fleet(resourceVersion="6", generation=2)
    edited["spec"]["engine"]["image"] = "of-the-edit"
    desk.feed(ObjectChanged("MoEFleet", FLEET, edited))
    desk.now += 0.03
    desk.feed(Tick())
    # The first event set the time and the second did not put it off.
    assert desk.take(CreatePod).body["spec"]["containers"][0]["image"] == "of-the-edit"
