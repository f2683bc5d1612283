"""Drain, delete and the gate, from what replicas and gateways say."""

from __future__ import annotations

from moefleet_operator import names
from moefleet_operator.core.effects import (
    CreatePod,
    DeletePod,
    DrainReplica,
    PatchPod,
    PatchPodConditions,
)
from moefleet_operator.core.events import (
    DecisionMade,
    EndpointView,
    GatewayView,
    Key,
    ObjectChanged,
    Ok,
    Outcome,
    ReplicaLoad,
    TelemetryUpdate,
)
from moefleet_testing.desk import FLEET, Desk, serving, with_fleet


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
