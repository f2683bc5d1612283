"""Objects for tests, in which only what matters has to be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import MoEFleet
from moefleet_operator.planning.facts import Condition, ContainerFacts, PodFacts
from moefleet_operator.planning.observed import Fleet, Gateway, Observed, Replica
from moefleet_operator.planning.reported import EndpointView, GatewayView, ReplicaLoad, ReplicaState
from moefleet_operator.rendering.pod import RenderedPod

NOW = 1_800_000_000.0
OLD, NEW = "00000000", "11111111"


def a_resource(**spec: Any) -> MoEFleet:
    """A MoEFleet as the API server would give it; keyword arguments replace parts of its spec."""
    body: dict[str, Any] = {
        "model": {"name": "tiny", "source": "file:///models/tiny"},
        "engine": {"type": "Simulated", "image": "runtime:1"},
        "replica": {"gpus": 8},
        "scaling": {"minReplicas": 1, "maxReplicas": 4},
    }
    body.update(spec)
    meta = {
        "name": "chat",
        "namespace": "models",
        "uid": "fleet-uid",
        "generation": 1,
        "creationTimestamp": "2026-11-24T10:00:00Z",
    }
    return MoEFleet.parse({"metadata": meta, "spec": body})


def a_fleet(**changes: Any) -> Fleet:
    wishes: dict[str, Any] = {
        "namespace": "models",
        "name": "chat",
        "uid": "fleet-uid",
        "generation": 1,
        "created_at": NOW - 3600,
        "deleting": False,
        "model_name": "tiny",
        "mode": "External",
        "min_replicas": 1,
        "max_replicas": 8,
        "replicas": 1,
        "may_sleep": False,
        "strategy": "Auto",
        "max_unavailable": 1,
        "drain_timeout_s": 900.0,
        "stream_duration_s": 900.0,
    }
    return Fleet(**{**wishes, **changes})


def a_rendered(revision: str = NEW, token: str = "") -> RenderedPod:
    body = {
        "metadata": {
            "namespace": "models",
            "labels": {},
            "ownerReferences": [{"uid": "fleet-uid", "controller": True}],
        },
        "spec": {"containers": []},
    }
    return RenderedPod("chat", revision, body, token)


def a_container(**changes: Any) -> ContainerFacts:
    facts: dict[str, Any] = {
        "ready": True,
        "started": True,
        "state": "running",
        "reason": "",
        "message": "",
        "restarts": 0,
        "last_message": "",
    }
    return ContainerFacts(**{**facts, **changes})


def a_pod(
    slot: int = 0, revision: str = NEW, conditions: Mapping[str, Condition] | None = None, **changes: Any
) -> PodFacts:
    facts: dict[str, Any] = {
        "namespace": "models",
        "name": names.pod_name("chat", revision, slot),
        "uid": f"uid-{revision[0]}-{slot}",
        "version": 1,
        "fleet": "chat",
        "revision": revision,
        "slot": slot,
        "active": True,
        "owner_uid": "fleet-uid",
        "created_at": NOW - 600,
        "deleted_at": None,
        "phase": "Running",
        "reason": "",
        "message": "",
        "node": f"node-{slot}",
        "ip": f"10.0.0.{slot + 1}",
        "gates": (names.GATE_REGISTERED,),
        "conditions": conditions or {},
        "container": a_container(),
        "requests": {},
        "token_sha256": "",
    }
    return PodFacts(**{**facts, **changes})


def true(reason: str = "", at: float = NOW - 300) -> Condition:
    return Condition("True", reason, "", at)


def false(reason: str = "", at: float = NOW - 300, message: str = "") -> Condition:
    return Condition("False", reason, message, at)


def ready(slot: int = 0, revision: str = NEW, tokens: int = 0, active: int = 0) -> Replica:
    conditions = {
        "PodScheduled": true(),
        "ContainersReady": true(),
        "Ready": true(),
        names.GATE_REGISTERED: true(),
    }
    return Replica(
        a_pod(slot, revision, conditions), ReplicaLoad("SERVING", active=active, outstanding_tokens=tokens)
    )


def starting(slot: int = 0, revision: str = NEW, **container: Any) -> Replica:
    conditions = {"PodScheduled": true(), "ContainersReady": false(), "Ready": false()}
    facts = a_container(**{"ready": False, "started": False, **container})
    return Replica(a_pod(slot, revision, conditions, container=facts), None)


def pending(slot: int = 0, revision: str = NEW, unschedulable_for_s: float | None = None) -> Replica:
    conditions = {}
    if unschedulable_for_s is not None:
        conditions["PodScheduled"] = false(
            "Unschedulable", NOW - unschedulable_for_s, "0/1 nodes are available"
        )
    return Replica(a_pod(slot, revision, conditions, node="", ip="", container=None, phase="Pending"), None)


def draining(
    slot: int = 0,
    revision: str = NEW,
    *,
    for_s: float = 10.0,
    reason: str = "ScaleDown",
    state: ReplicaState = "DRAINING",
    active: int = 0,
    labelled: bool = True,
) -> Replica:
    conditions = {
        "PodScheduled": true(),
        "Ready": false(),
        names.CONDITION_DRAINING: true(reason, NOW - for_s),
        names.GATE_REGISTERED: false("Draining"),
    }
    pod = a_pod(slot, revision, conditions, active=not labelled)
    return Replica(pod, ReplicaLoad(state, active=active))


def terminating(slot: int = 0, revision: str = NEW) -> Replica:
    return Replica(a_pod(slot, revision, {"Ready": true()}, deleted_at=NOW - 5), None)


def failed(slot: int = 0, revision: str = NEW, ago_s: float = 5.0) -> Replica:
    conditions = {"Ready": false("PodFailed", NOW - ago_s)}
    pod = a_pod(
        slot, revision, conditions, phase="Failed", reason="Evicted", container=None, created_at=NOW - 600
    )
    return Replica(pod, None)


def a_gateway(name: str = "gateway-0", *, is_ready: bool = True, **endpoints: tuple[bool, int]) -> Gateway:
    """endpoints: pod uid (with _ for -) -> (registered, in flight)."""
    known = {uid.replace("_", "-"): EndpointView(*seen) for uid, seen in endpoints.items()}
    return Gateway(f"uid-{name}", name, is_ready, GatewayView("1", 1, known))


def observed(*replicas: Replica, fleet: Fleet | None = None, **changes: Any) -> Observed:
    facts: dict[str, Any] = {
        "fleet": fleet or a_fleet(),
        "rendered": a_rendered(),
        "replicas": replicas,
        "taken": frozenset(r.name for r in replicas),
        "gateways": (a_gateway(),),
    }
    return Observed(**{**facts, **changes})
