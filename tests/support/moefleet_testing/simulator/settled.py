"""What must be true of a fleet when nothing has happened for a while: as facts that are wrong, empty when all is well."""

from __future__ import annotations

from typing import Any

from moefleet_operator import names
from moefleet_operator.core.events import Key

from .api import Api, Object, condition, is_true, uid_of
from .rules import live, revision_of


def unsettled(api: Api, fleet: Object, wanted: int) -> dict[str, Any]:
    meta, status, spec = fleet["metadata"], fleet.get("status") or {}, fleet["spec"]
    key, uid = Key(meta["namespace"], meta["name"]), uid_of(fleet)
    pods = [p for p in api.pods_of(uid) if p["status"]["phase"] != "Failed"]
    counts = {
        "pods": len(pods),
        "live": sum(1 for p in pods if live(p)),
        "ready": sum(1 for p in pods if live(p) and is_true(p, "Ready")),
        "of the current revision": sum(1 for p in pods if revision_of(p) == status.get("revision")),
        "labelled active": sum(1 for p in pods if p["metadata"]["labels"].get(names.LABEL_ACTIVE) == "true"),
        "status.replicas": status.get("replicas"),
        "status.readyReplicas": status.get("readyReplicas"),
        "status.desiredReplicas": status.get("desiredReplicas"),
    }
    wrong: dict[str, Any] = {k: v for k, v in counts.items() if v != wanted}
    if status.get("observedGeneration") != meta["generation"]:
        wrong["observedGeneration"] = f"{status.get('observedGeneration')} of {meta['generation']}"
    expected = {"Reconciling": "False", "Stalled": "False", "Ready": "True", "RolloutHeld": "False"}
    for type_, value in expected.items():
        found = condition(fleet, type_)
        if found.get("status") != value:
            wrong[type_] = f"{found.get('status')}/{found.get('reason')}: {found.get('message')}"
    budget = api.get("PodDisruptionBudget", key)
    least = max(0, wanted - spec["rollout"]["maxUnavailable"])
    if budget is None or budget["spec"]["minAvailable"] != least:
        wrong["PodDisruptionBudget"] = budget and budget["spec"]
    if api.get("Service", key) is None:
        wrong["Service"] = None
    decision = (status.get("scaling") or {}).get("lastDecision") or {}
    if not decision.get("reason") or not decision.get("message"):
        wrong["lastDecision"] = decision
    return wrong


def nameless(api: Api, fleet: Object) -> dict[str, Any]:
    """A fleet whose model name an older one has."""
    pods, ready = api.pods_of(uid_of(fleet)), condition(fleet, "Ready")
    if pods or ready.get("reason") != "ModelNameTaken":
        return {"pods": len(pods), "Ready": ready}
    return {}
