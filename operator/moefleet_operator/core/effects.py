"""Everything that the core can ask for. The I/O side carries these out and answers each with one EffectDone.

Rules for whoever executes them:
- never start or go on after `not_after` (the core's monotonic clock: our right to act ends with the Lease); answer Transient;
- effects of one call of `Core.on` may run at the same time and end in any order;
- no retries of your own beyond a connection that could not be made: the core backs off per fleet;
- log one line per effect from `object`, `reason` and `message`; `message` is a sentence with the numbers in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .events import Json, Key
from .wire import rfc3339

FIELD_MANAGER = "moefleet-operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    id: int
    # The object acted upon.
    object: Key
    # CamelCase, few of them: condition, Event, log field and metric label are the same word.
    reason: str
    message: str
    # Monotonic seconds.
    not_after: float


# --- pods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePod(Effect):
    """POST. 409: read the pod that has the name and answer AlreadyExists(existing)."""

    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCondition:
    type: str
    status: Literal["True", "False"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPodConditions(Effect):
    """Strategic merge patch of pods/status with metadata.uid (409 if the name has a new owner): conditions merge by
    type, so the kubelet's stay. `wall` is lastTransitionTime (unix seconds). `body()` is the patch."""

    uid: str
    conditions: tuple[PodCondition, ...]
    wall: float

    def body(self) -> Json:
        return {
            "metadata": {"uid": self.uid},
            "status": {
                "conditions": [
                    {
                        "type": c.type,
                        "status": c.status,
                        "reason": c.reason,
                        "message": c.message,
                        "lastTransitionTime": rfc3339(self.wall),
                    }
                    for c in self.conditions
                ]
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPod(Effect):
    """Merge patch of a pod (labels; the owner reference of an adopted orphan) with metadata.uid in the body."""

    uid: str
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePod(Effect):
    """DELETE with preconditions.uid and this gracePeriodSeconds (None: the pod's own). 404 and a uid that differs: NotFound."""

    uid: str
    grace_s: int | None


# --- replicas, by their control port -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReplica(Effect):
    """ReplicaService.Drain on `address` (host:port) with `pod_uid` and Bearer `token` (None: send none).

    Ok(object={"state": <ReplicaState>, "active": int}). UNIMPLEMENTED and unreachable: Transient."""

    uid: str
    address: str
    token: str | None
    drain_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeReplica(Effect):
    """ReplicaService.Resume; answers as DrainReplica does. A replica that is Drained for good: Invalid."""

    uid: str
    address: str
    token: str | None


# --- everything else of a fleet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply(Effect):
    """Server-side apply with FIELD_MANAGER and force; apiVersion, kind, namespace and name are in `body`.

    subresource "status": of the MoEFleet itself (never creates one).
    `create`: nothing of ours has that name, so POST with the same field manager instead, and answer 409 with
    AlreadyExists(existing): somebody else's Service is not taken over."""

    body: Json
    subresource: Literal["", "status"] = ""
    create: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRevision(Effect):
    """Merge patch of a ControllerRevision (number, labels, annotations) with metadata.uid in the body."""

    uid: str
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRevision(Effect):
    """DELETE of a ControllerRevision with preconditions.uid; answers as DeletePod does."""

    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitEvent(Effect):
    """POST events.k8s.io/v1 about the fleet in `object`. Failing is no reason to do anything else: answer and forget."""

    fleet_uid: str
    type: Literal["Normal", "Warning"]
    action: str
    related: Key | None = None


# --- leadership ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Relist(Effect):
    """A LIST of every kind, read from now on, each told as Relisted with when its reading `began`; Ok: all of them were.

    The kinds that plans cannot do without come last, so that whoever has these has all that could be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLease(Effect):
    """GET. NotFound when there is none yet. Use a client session that nothing else can starve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLease(Effect):
    """POST when `body` has no metadata.resourceVersion, else PUT (409 answers Conflict, AlreadyExists likewise)."""

    intent: Literal["acquire", "renew", "release"]
    body: Json


# --- the core itself ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt(Effect):
    """Send Tick at monotonic `at`. Replaces every WakeAt before it. Not answered."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit(Effect):
    """End the process with this code: the Lease was released (0) or lost (1). Not answered, nothing follows."""

    code: int


ReplicaCall = DrainReplica | ResumeReplica
