"""From the planner's steps to effects, one to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from moefleet_operator import names
from moefleet_operator.planning.steps import (
    AdoptReplica,
    AnyStep,
    ApplyChild,
    CallDrain,
    CallResume,
    CreateReplica,
    DeleteReplica,
    ForgetRevision,
    MarkActive,
    MarkConditions,
    RecordRevision,
)

from .effects import (
    Apply,
    CreatePod,
    DeletePod,
    DeleteRevision,
    DrainReplica,
    Effect,
    PatchPod,
    PatchPodConditions,
    PatchRevision,
    PodCondition,
    ResumeReplica,
)
from .events import Key


@dataclass(frozen=True, slots=True)
class Common:
    """What every effect carries, whatever it does."""

    id: int
    namespace: str
    not_after: float
    wall: float
    # For the control ports of this fleet's replicas.
    token: str | None
    # Applied children that nothing of ours has yet: create, so that nobody else's is taken over.
    absent: frozenset[str] = frozenset()


def group_of(step: AnyStep) -> str:
    """Steps that fail for the same reason back off together: a quota that refuses one pod refuses all."""
    match step:
        case CreateReplica():
            return "create"
        case ApplyChild():
            return f"apply {step.kind}"
        case RecordRevision():
            return f"apply ControllerRevision {step.name}"
        case ForgetRevision():
            return f"apply ControllerRevision {step.name} forgotten"
        case CallDrain() | CallResume():
            return f"call {step.uid}"
        case AdoptReplica() | MarkConditions() | MarkActive() | DeleteReplica():
            return f"{type(step).__name__} {step.uid}"
        case _:
            assert_never(step)


def signature_of(step: AnyStep) -> str:
    """Equal for steps that do the same: asked for again right after it succeeded, it did not help."""
    match step:
        case MarkConditions():
            return f"{step.uid} {[(m.type, m.status) for m in step.marks]}"
        case ApplyChild() | RecordRevision():
            return repr(step.body)
        case MarkActive():
            return f"{step.uid} {step.active}"
        case CallDrain() | CallResume():
            return f"{type(step).__name__} {step.uid}"
        case AdoptReplica() | CreateReplica() | DeleteReplica() | ForgetRevision():
            return f"{type(step).__name__} {step.name}"
        case _:
            assert_never(step)


def effect_of(step: AnyStep, common: Common) -> Effect:
    head: Mapping[str, Any] = {
        "id": common.id,
        "object": Key(common.namespace, step.name),
        "reason": step.reason,
        "message": step.message,
        "not_after": common.not_after,
    }
    match step:
        case CreateReplica():
            return CreatePod(**head, body=step.body)
        case AdoptReplica():
            return PatchPod(**head, uid=step.uid, body=step.body)
        case MarkConditions():
            conditions = tuple(
                PodCondition(type=m.type, status=m.status, reason=m.reason, message=m.message)
                for m in step.marks
            )
            return PatchPodConditions(**head, uid=step.uid, conditions=conditions, wall=common.wall)
        case MarkActive():
            labels = {names.LABEL_ACTIVE: "true" if step.active else "false"}
            return PatchPod(**head, uid=step.uid, body={"metadata": {"uid": step.uid, "labels": labels}})
        case CallDrain():
            return DrainReplica(
                **head, uid=step.uid, address=step.address, token=common.token, drain_reason=step.drain_reason
            )
        case CallResume():
            return ResumeReplica(**head, uid=step.uid, address=step.address, token=common.token)
        case DeleteReplica():
            return DeletePod(**head, uid=step.uid, grace_s=step.grace_s)
        case ApplyChild():
            return Apply(**head, body=step.body, create=step.kind in common.absent)
        case RecordRevision(uid=""):
            return Apply(**head, body=step.body, create=True)
        case RecordRevision():
            return PatchRevision(**head, uid=step.uid, body=step.body)
        case ForgetRevision():
            return DeleteRevision(**head, uid=step.uid)
        case _:
            assert_never(step)
