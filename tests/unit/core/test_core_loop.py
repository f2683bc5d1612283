"""The loop around the planner: who may act, what holds a fleet's key, what becomes of refusals. Every answer is given by hand."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
from moefleet_operator import names
from moefleet_operator.core.core import Core
from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    DrainReplica,
    Effect,
    EmitEvent,
    Exit,
    PatchPod,
    PatchPodConditions,
    PatchRevision,
    ReadLease,
    WakeAt,
    WriteLease,
)
from moefleet_operator.core.events import (
    KINDS,
    AlreadyExists,
    DecisionMade,
    EffectDone,
    EndpointView,
    Event,
    Forbidden,
    GatewayView,
    Invalid,
    Key,
    NotFound,
    ObjectChanged,
    Ok,
    Outcome,
    ReplicaLoad,
    Stop,
    Synced,
    TelemetryUpdate,
    Tick,
    Transient,
)
from moefleet_operator.core.leadership import SETTLE_S
from moefleet_operator.core.settings import CoreSettings
from moefleet_testing.reading import faults

WALL = 1_800_000_000.0
FLEET = Key("models", "chat")
E = TypeVar("E", bound=Effect)


class Middle:
    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


class Desk:
    """Feeds the core and keeps what it asked for; the Lease is granted, everything else waits for the test."""

    def __init__(self, **settings: Any) -> None:
        facts: dict[str, Any] = {"identity": "op-1", "namespace": "system", "control_key": bytes(32)}
        self.core = Core(CoreSettings(**{**facts, **settings}), Middle())
        self.now = 0.0
        self.open: list[Effect] = []
        self.version = 1000
        self.lease: dict[str, Any] | None = None
        self.grants = True
        # Pods that `carry_out` creates run and are ready at once.
        self.pods_serve = False
        self.fleet: dict[str, Any] = fleet()
        # ControllerRevisions (and the other children) by name.
        self.revisions: dict[str, dict[str, Any]] = {}
        # Conditions of the last status that was asked for: type -> (status, reason, message).
        self.conditions: dict[str, tuple[str, str, str]] = {}

    def feed(self, event: Event) -> None:
        new = list(self.core.on(event, self.now, WALL + self.now))
        while new:
            effect = new.pop(0)
            if isinstance(effect, ReadLease | WriteLease) and self.grants:
                new += self.core.on(EffectDone(effect.id, self._lease(effect)), self.now, WALL + self.now)
            elif not isinstance(effect, WakeAt):
                self.open.append(effect)
                if isinstance(effect, Apply) and effect.subresource:
                    found = effect.body["status"]["conditions"]
                    self.conditions = {c["type"]: (c["status"], c["reason"], c["message"]) for c in found}

    def lead(self) -> None:
        for kind in KINDS:
            self.feed(Synced(kind))
        self.feed(Tick())
        self.tick(SETTLE_S)

    def tick(self, seconds: float) -> None:
        """Time goes by in steps in which the Lease is renewed."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            self.feed(Tick())

    def take(self, kind: type[E]) -> E:
        found = self.all(kind)
        assert len(found) == 1, f"wanted one {kind.__name__}, found {len(found)} among {self.open}"
        self.open.remove(found[0])
        return found[0]

    def all(self, kind: type[E]) -> list[E]:
        return [e for e in self.open if isinstance(e, kind)]

    def answer(self, effect: Effect, outcome: Outcome) -> None:
        if effect in self.open:
            self.open.remove(effect)
        self.feed(EffectDone(effect.id, outcome))

    def carry_out(self, most: int = 10_000) -> None:
        """Everything that is open succeeds, and what follows from it, too (or only so many of them)."""
        while self.open and most:
            most -= 1
            effect = self.open.pop(0)
            body = getattr(effect, "body", None)
            match effect:
                case CreatePod() if self.pods_serve:
                    self.answer(effect, Ok(serving(self, effect)))
                case CreatePod():
                    self.answer(effect, Ok(self.stamped(body, uid=f"uid-{effect.object.name}")))
                case Apply(subresource="status"):
                    self.answer(
                        effect,
                        Ok(self.stamped({**self.fleet, "status": effect.body["status"]}, uid="fleet-uid")),
                    )
                case Apply():
                    made = self.stamped(body, uid=f"uid-{effect.body['kind']}")
                    self.revisions[effect.object.name] = made
                    self.answer(effect, Ok(made))
                case PatchRevision():
                    found = self.revisions[effect.object.name]
                    labels = {**found["metadata"]["labels"], **effect.body["metadata"]["labels"]}
                    meta = {"labels": {k: v for k, v in labels.items() if v is not None}}
                    made = self.stamped({**found, "revision": effect.body["revision"]}, **meta)
                    self.revisions[effect.object.name] = made
                    self.answer(effect, Ok(made))
                case _:
                    self.answer(effect, Ok(None))

    def settle(self, seconds: float) -> None:
        """Time goes by, and everything that is asked for succeeds."""
        for _ in range(int(seconds)):
            self.carry_out()
            self.tick(1.0)

    def stamped(self, body: Any, **meta: Any) -> dict[str, Any]:
        self.version += 1
        return {**body, "metadata": {**body["metadata"], **meta, "resourceVersion": str(self.version)}}

    def _lease(self, effect: ReadLease | WriteLease) -> Outcome:
        if isinstance(effect, ReadLease):
            return NotFound() if self.lease is None else Ok(self.lease)
        self.lease = self.stamped(effect.body)
        return Ok(self.lease)


def fleet(**meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "models",
            "name": "chat",
            "uid": "fleet-uid",
            "generation": 1,
            "resourceVersion": "5",
            "creationTimestamp": "2026-11-24T10:00:00Z",
            **meta,
        },
        "spec": {
            "model": {"name": "tiny", "source": "file:///m"},
            "engine": {"type": "Simulated", "image": "r"},
            "scaling": {"minReplicas": 1, "maxReplicas": 4},
        },
    }


def with_fleet(**settings: Any) -> Desk:
    desk = Desk(**settings)
    desk.feed(ObjectChanged("MoEFleet", FLEET, fleet()))
    desk.lead()
    return desk


def serving(desk: Desk, pod: CreatePod, conditions: dict[str, str] | None = None) -> dict[str, Any]:
    """The pod as its kubelet would report it, running and ready."""
    states = {
        "PodScheduled": "True",
        "ContainersReady": "True",
        "Ready": "True",
        names.GATE_REGISTERED: "True",
    }
    states.update(conditions or {})
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": t, "status": s, "reason": "Test", "lastTransitionTime": "2027-01-15T08:00:00Z"}
            for t, s in states.items()
        ],
        "containerStatuses": [{"name": "runtime", "ready": True, "started": True, "state": {"running": {}}}],
    }
    body = desk.stamped(pod.body, uid=f"uid-{pod.object.name}")
    return {**body, "spec": {**body["spec"], "nodeName": "n"}, "status": status}


# --- who may act ------------------------------------------------------------------------------------------------


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


# --- one pass ---------------------------------------------------------------------------------------------------


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


# --- replicas and gateways ------------------------------------------------------------------------------------------


def ready_fleet(count: int) -> tuple[Desk, list[str]]:
    """A fleet with this many ready replicas; their uids."""
    desk = with_fleet()
    desk.pods_serve = True
    desk.feed(DecisionMade(FLEET, count, "Steady", "as the test has it"))
    desk.carry_out()
    uids = [r.uid for r in desk.core.replicas(FLEET)]
    desk.feed(TelemetryUpdate({uid: ReplicaLoad("SERVING", active=i) for i, uid in enumerate(uids)}))
    desk.carry_out()
    assert sum(r.ready for r in desk.core.replicas(FLEET)) == count
    return desk, uids


def patched(desk: Desk, effect: PatchPodConditions | PatchPod) -> Outcome:
    """The pod as the API server would return it."""
    replica = next(r for r in desk.core.replicas(FLEET) if r.name == effect.object.name)
    conditions = {t: c.status for t, c in replica.pod.conditions.items()}
    reason = "Test"
    if isinstance(effect, PatchPodConditions):
        conditions |= {c.type: c.status for c in effect.conditions}
        reason = effect.conditions[0].reason
    labels = names.replica_labels(
        "chat", replica.pod.revision, replica.pod.slot, active=not isinstance(effect, PatchPod)
    )
    body = {
        "metadata": {
            "namespace": "models",
            "name": replica.name,
            "labels": labels,
            "ownerReferences": [{"uid": "fleet-uid", "controller": True}],
        },
        "spec": {"nodeName": "n", "containers": []},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [
                {"type": t, "status": s, "reason": reason, "lastTransitionTime": "2027-01-15T08:00:05Z"}
                for t, s in conditions.items()
            ],
            "containerStatuses": [
                {"name": "runtime", "ready": True, "started": True, "state": {"running": {}}}
            ],
        },
    }
    return Ok(desk.stamped(body, uid=replica.uid))


def begin_drain(desk: Desk) -> DrainReplica:
    desk.feed(DecisionMade(FLEET, 1, "WorkFell", "1 is enough"))
    condition = desk.take(PatchPodConditions)
    desk.carry_out()
    desk.answer(condition, patched(desk, condition))
    label = desk.take(PatchPod)
    desk.carry_out()
    desk.answer(label, patched(desk, label))
    return desk.take(DrainReplica)


def test_the_least_loaded_replica_drains_condition_first_then_label_then_call() -> None:
    desk, uids = ready_fleet(2)
    call = begin_drain(desk)
    assert call.uid == uids[0], "the other one has a stream"
    assert call.address == "10.0.0.1:8501"
    assert call.token is not None
    assert len(call.token) == 64


def test_a_replica_that_hangs_does_not_hold_up_its_fleet() -> None:
    desk, _ = ready_fleet(2)
    begin_drain(desk)
    desk.carry_out()
    desk.feed(DecisionMade(FLEET, 3, "WorkArrives", "3 are needed"))
    desk.tick(1.0)
    assert desk.all(CreatePod), "the call is still under way, and the fleet grows"


def test_drained_and_withdrawn_means_deleted_with_its_uid() -> None:
    desk, uids = ready_fleet(2)
    call = begin_drain(desk)
    desk.carry_out()  # the budget, which is told whom its selector leaves out
    desk.answer(call, Ok({"state": "DRAINED", "active": 0}))
    deletes = desk.all(DeletePod)
    assert [(d.uid, d.grace_s) for d in deletes] == [(uids[0], None)]


def test_the_gate_opens_when_the_gateway_says_so() -> None:
    desk = with_fleet()
    gateway = {
        "metadata": {"namespace": "system", "name": "gw", "uid": "gw-uid", "resourceVersion": "7"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    desk.feed(ObjectChanged("GatewayPod", Key("system", "gw"), gateway))
    create = desk.take(CreatePod)
    desk.answer(create, Ok(serving(desk, create, {"Ready": "False", names.GATE_REGISTERED: "False"})))
    desk.carry_out()
    assert desk.all(PatchPodConditions) == []
    uid = desk.core.replicas(FLEET)[0].uid
    desk.feed(TelemetryUpdate(gateways={"gw-uid": GatewayView("1", 1, {uid: EndpointView(True)})}))
    patch = desk.take(PatchPodConditions)
    assert [(c.type, c.status) for c in patch.conditions] == [(names.GATE_REGISTERED, "True")]
    assert patch.body()["metadata"] == {"uid": uid}


# --- the end ----------------------------------------------------------------------------------------------------------


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
