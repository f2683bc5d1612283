"""What we keep of an object: small frozen records made from the API server's JSON. A pod of 4 kB becomes about 1 kB."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from moefleet_operator import names
from moefleet_operator.api import KIND

from .quantity import vector

Json = Mapping[str, Any]
Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    status: str
    reason: str
    message: str
    # Unix seconds of the last transition; 0 when nobody wrote it.
    at: float


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    ready: bool
    # The startup probe passed, so the process has been Serving at least once.
    started: bool
    state: Literal["waiting", "running", "terminated", ""]
    reason: str
    message: str
    restarts: int
    # How the process before this one ended, for people.
    last_message: str
    # When the process that runs began.
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    namespace: str
    name: str
    uid: str
    version: int
    fleet: str
    revision: str
    slot: int
    active: bool
    owner_uid: str
    created_at: float
    # Terminating since; None when nobody asked for its end.
    deleted_at: float | None
    phase: str
    reason: str
    message: str
    node: str
    ip: str
    gates: tuple[str, ...]
    conditions: Mapping[str, Condition]
    container: ContainerFacts | None
    requests: Mapping[str, int]
    # sha256 of the control token in its configuration: only a pod that knows our token can be adopted.
    token_sha256: str
    # Devices that the kubelet says are broken, as "resource id".
    unhealthy: tuple[str, ...] = ()
    # False: somebody changed a label that says whose replica it is, and of what.
    labelled: bool = True
    # Worked out once: a pod is looked at far more often than it changes.
    terminating: bool = field(init=False, repr=False, compare=False)
    # Its containers have ended for good: it holds a name, but no GPU.
    finished: bool = field(init=False, repr=False, compare=False)
    draining: bool = field(init=False, repr=False, compare=False)
    # Serves, or will: it counts as supply.
    live: bool = field(init=False, repr=False, compare=False)
    ready: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        terminating, finished = self.deleted_at is not None, self.phase in ("Failed", "Succeeded")
        draining = not finished and self.is_true(names.CONDITION_DRAINING)
        live = not (terminating or finished or draining)
        put = object.__setattr__
        put(self, "terminating", terminating)
        put(self, "finished", finished)
        put(self, "draining", draining)
        put(self, "live", live)
        # The kubelet follows a gate a little later: one that was taken back at once is still called ready, and will not be.
        put(self, "ready", live and self.is_true("Ready") and all(map(self.is_true, self.gates)))

    def is_true(self, condition: str) -> bool:
        found = self.conditions.get(condition)
        return found is not None and found.status == "True"

    def since(self, condition: str) -> float | None:
        """When this condition became true; None when it is not."""
        found = self.conditions.get(condition)
        return found.at if found is not None and found.status == "True" else None


@dataclass(frozen=True, slots=True)
class OtherPod:
    """A pod that is none of ours: it only takes room."""

    uid: str
    version: int
    node: str
    finished: bool
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    name: str
    uid: str
    version: int
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    taints: tuple[Taint, ...]
    # Takes new pods: Ready and not cordoned.
    open: bool
    cordoned: bool = False
    # By the control plane's clock; None: it is Ready.
    unready_since: float | None = None


def pod_facts(raw: Json) -> PodFacts:
    meta, spec, status = _map(raw, "metadata"), _map(raw, "spec"), _map(raw, "status")
    labels = _map(meta, "labels")
    owner: Json = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), {})
    containers = status.get("containerStatuses") or ()
    runtime = next((c for c in containers if c.get("name") == names.RUNTIME_CONTAINER), None)
    deleted = meta.get("deletionTimestamp")
    fleet, revision = str(labels.get(names.LABEL_FLEET) or ""), str(labels.get(names.LABEL_REVISION) or "")
    slot, labelled = _slot(labels.get(names.LABEL_SLOT)), True
    # A name cannot be changed, labels can: of a pod that a fleet owns the name is the truth.
    named = names.parse_pod_name(str(meta.get("name") or "")) if owned(raw) else None
    if named is not None:
        fleet, revision, slot = named.fleet, named.revision, named.slot
        right = names.replica_labels(fleet, revision, slot)
        labelled = all(labels.get(key) == right[key] for key in right if key != names.LABEL_ACTIVE)
    return PodFacts(
        namespace=str(meta.get("namespace") or ""),
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        version=version_of(raw),
        fleet=fleet,
        revision=revision,
        slot=slot,
        active=labels.get(names.LABEL_ACTIVE) == "true",
        owner_uid=str(owner.get("uid") or ""),
        created_at=unix_seconds(meta.get("creationTimestamp")),
        # metadata.deletionTimestamp is when the grace ends, so the request was made a grace earlier.
        deleted_at=unix_seconds(deleted) - float(meta.get("deletionGracePeriodSeconds") or 0)
        if deleted
        else None,
        phase=str(status.get("phase") or "Pending"),
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        node=str(spec.get("nodeName") or ""),
        ip=str(status.get("podIP") or ""),
        gates=tuple(str(g.get("conditionType")) for g in spec.get("readinessGates") or ()),
        conditions={str(c.get("type")): _condition(c) for c in status.get("conditions") or ()},
        container=_container(runtime) if runtime is not None else None,
        requests=pod_requests(spec),
        token_sha256="" if owner else _token_sha256(spec),
        unhealthy=_unhealthy(containers),
        labelled=labelled,
    )


def owned(raw: Json) -> bool:
    """A fleet made this pod, whatever its labels say now."""
    owners = _map(raw, "metadata").get("ownerReferences") or ()
    return any(o.get("controller") and o.get("kind") == KIND for o in owners)


def other_pod(raw: Json) -> OtherPod:
    meta, spec, status = _map(raw, "metadata"), _map(raw, "spec"), _map(raw, "status")
    return OtherPod(
        uid=str(meta.get("uid") or ""),
        version=version_of(raw),
        node=str(spec.get("nodeName") or ""),
        finished=status.get("phase") in ("Failed", "Succeeded"),
        requests=pod_requests(spec),
    )


def node_facts(raw: Json) -> NodeFacts:
    meta, spec, status = _map(raw, "metadata"), _map(raw, "spec"), _map(raw, "status")
    told: Json = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    ready = told.get("status") == "True"
    # One that has never said anything is new, not lost.
    silent = bool(told) and not ready
    return NodeFacts(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        version=version_of(raw),
        labels=dict(_map(meta, "labels")),
        allocatable=vector(_map(status, "allocatable")),
        taints=tuple(
            Taint(str(t.get("key") or ""), str(t.get("value") or ""), str(t.get("effect") or ""))
            for t in spec.get("taints") or ()
        ),
        open=ready and not spec.get("unschedulable"),
        cordoned=bool(spec.get("unschedulable")),
        unready_since=unix_seconds(told.get("lastTransitionTime")) if silent else None,
    )


def version_of(raw: Json) -> int:
    """resourceVersion as a number: comparable between versions of one object since Kubernetes 1.35 promises it."""
    text = str(_map(raw, "metadata").get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0


def _map(raw: Json, name: str) -> Json:
    found = raw.get(name)
    # Almost always a dict or absent, and asking for that is much cheaper than asking for the protocol.
    if found is None:
        return {}
    return found if type(found) is dict or isinstance(found, Mapping) else {}


def _slot(label: Any) -> int:
    text = str(label or "")
    return int(text) if text.isdigit() else -1


def unix_seconds(text: Any) -> float:
    """metav1.Time or MicroTime -> unix seconds; absent: 0."""
    return _seconds(str(text)) if text else 0.0


# Pods that are made together carry the same few times in all of their conditions.
@lru_cache(maxsize=4096)
def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _condition(raw: Json) -> Condition:
    return Condition(
        status=str(raw.get("status") or "Unknown"),
        reason=str(raw.get("reason") or ""),
        message=str(raw.get("message") or ""),
        at=unix_seconds(raw.get("lastTransitionTime")),
    )


def _container(raw: Json) -> ContainerFacts:
    state = _map(raw, "state")
    kind: Literal["waiting", "running", "terminated", ""] = ""
    for name in ("waiting", "running", "terminated"):
        if name in state:
            kind = name
    detail = _map(state, kind) if kind else {}
    last = _map(_map(raw, "lastState"), "terminated")
    last_message = str(last.get("message") or "")
    if last and not last_message:
        last_message = f"{last.get('reason') or 'exited'} with code {last.get('exitCode')}"
    return ContainerFacts(
        ready=bool(raw.get("ready")),
        # Ready implies started; some kubelets (kwok) write only the former.
        started=bool(raw.get("started") or raw.get("ready")),
        state=kind,
        reason=str(detail.get("reason") or ""),
        message=str(detail.get("message") or ""),
        restarts=int(raw.get("restartCount") or 0),
        last_message=last_message,
        started_at=unix_seconds(detail.get("startedAt")) or None if kind == "running" else None,
    )


def _unhealthy(containers: Any) -> tuple[str, ...]:
    """From allocatedResourcesStatus, which kubelets of late write."""
    return tuple(
        f"{resource.get('name')} {device.get('resourceID')}"
        for container in containers
        for resource in container.get("allocatedResourcesStatus") or ()
        for device in resource.get("resources") or ()
        if device.get("health") == "Unhealthy"
    )


def pod_requests(spec: Json) -> dict[str, int]:
    """What the scheduler counts: the sum over containers, or the largest init container where that is more."""
    total: dict[str, int] = {"pods": 1000}
    for container in spec.get("containers") or ():
        for name, amount in vector(_map(_map(container, "resources"), "requests")).items():
            total[name] = total.get(name, 0) + amount
    for container in spec.get("initContainers") or ():
        for name, amount in vector(_map(_map(container, "resources"), "requests")).items():
            total[name] = max(total.get(name, 0), amount)
    for name, amount in vector(_map(spec, "overhead")).items():
        total[name] = total.get(name, 0) + amount
    return total


def _token_sha256(spec: Json) -> str:
    for container in spec.get("containers") or ():
        for variable in container.get("env") or ():
            if variable.get("name") == names.ENV_RUNTIME_CONFIG:
                try:
                    config = json.loads(variable.get("value") or "")
                    return str(config.get("control", {}).get("tokenSha256") or "")
                except (ValueError, AttributeError):
                    return ""
    return ""
