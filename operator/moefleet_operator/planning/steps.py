"""What a plan is made of. A step says what to do, to which object, why (a reason of the API) and one sentence with numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moefleet_operator.rendering.problem import Problem

from .observed import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    # Of the object that is acted upon, in the fleet's namespace.
    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateReplica(Step):
    slot: int
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptReplica(Step):
    uid: str
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One condition of a pod, as it should be."""

    type: str
    status: Literal["True", "False"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkConditions(Step):
    uid: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkActive(Step):
    uid: str
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDrain(Step):
    uid: str
    address: str
    drain_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResume(Step):
    uid: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteReplica(Step):
    uid: str
    # None: the pod's own, which covers a whole drain.
    grace_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyChild(Step):
    kind: Literal["Service", "PodDisruptionBudget"]
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRevision(Step):
    """A ControllerRevision as it should be. uid "": `body` is a new one, and nobody else's of that name is taken over;
    otherwise `body` is a merge patch of its number and verdict, for its data is never written twice: the API server
    compares it byte by byte."""

    uid: str
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRevision(Step):
    uid: str


AnyStep = (
    CreateReplica
    | AdoptReplica
    | MarkConditions
    | MarkActive
    | CallDrain
    | CallResume
    | DeleteReplica
    | ApplyChild
    | RecordRevision
    | ForgetRevision
)


@dataclass(frozen=True, slots=True)
class Target:
    """How many replicas the fleet should have now."""

    replicas: int
    reason: str
    message: str
    # What scaling says, whether it is followed or not.
    advised: int | None = None
    # ScalingLimited: why the number is not what was asked for.
    limited: Problem | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[AnyStep, ...] = ()
    target: Target = Target(0, "", "")
    # The whole status as it should be; None: write none (the fleet is being deleted).
    status: Json | None = None
    # Unix seconds at which time alone changes the plan; None: only events do.
    wake_at: float | None = None
    # Something waits for free GPUs: worth another look when a pod ends or a node comes.
    wants_room: bool = False
    # For the log and for tests: what is being waited for.
    waits: tuple[str, ...] = field(default=())
