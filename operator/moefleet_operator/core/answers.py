"""What an effect's outcome means: success or not, what the store learns from it, what people are told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.children import controller_of, name_in_use
from moefleet_operator.planning.observed import Json
from moefleet_operator.planning.steps import (
    AnyStep,
    ApplyChild,
    CallDrain,
    CallResume,
    CreateReplica,
    DeleteReplica,
    ForgetRevision,
    RecordRevision,
)
from moefleet_operator.rendering.problem import Problem

from .events import AlreadyExists, Conflict, Forbidden, Invalid, Key, NotFound, Ok, Outcome, Transient
from .memory import Memory
from .reports import Reports
from .runs import Notice, notices_of_status
from .store import Store

# A namespace that is being deleted never takes anything again: asking more often only makes noise until the fleet goes, too.
NAMESPACE_ENDS_WAIT_S = 60.0
# Texts of refusals go into conditions.
MESSAGE_MAX = 600


@dataclass(frozen=True, slots=True)
class Waiting:
    """An effect under way: whose it is and what it was for."""

    fleet: Key
    group: str
    signature: str
    step: AnyStep | None = None
    # The status that it writes.
    status: Json | None = None
    # What it replaces: when the answer comes, the watch may have brought the new one already.
    status_before: Json | None = None


@dataclass(slots=True)
class Lesson:
    """What followed from one outcome."""

    success: bool
    touched: set[Key] = field(default_factory=set)
    notices: list[Notice] = field(default_factory=list)
    # Not tried again before so long.
    wait_s: float = 0.0


class Answers:
    def __init__(self, store: Store, reports: Reports, memory: Memory) -> None:
        self._store = store
        self._reports = reports
        self._memory = memory

    def take(self, waiting: Waiting, outcome: Outcome, now: float) -> Lesson:
        key, step = waiting.fleet, waiting.step
        if isinstance(step, CreateReplica):
            self._memory.answered(key, step.name)
        match outcome:
            case Ok(object=raw):
                return self._learn(waiting, raw, now)
            case AlreadyExists(existing=existing):
                return Lesson(existing is not None and self._met(waiting, existing, now))
            case NotFound():
                if isinstance(step, DeleteReplica):
                    return Lesson(True, self._store.gone("Pod", Key(key.namespace, step.name), step.uid))
                if isinstance(step, ForgetRevision):
                    return Lesson(True, self._forgotten(key, step))
                if isinstance(step, RecordRevision):
                    # Somebody deleted it: the next pass writes a new one.
                    return Lesson(False, self._forgotten(key, step))
                if isinstance(step, CallResume):
                    self._memory.refuse_resume(step)
                return Lesson(False)
            case Invalid() | Forbidden():
                if isinstance(step, CallResume):
                    self._memory.refuse_resume(step)
                elif not isinstance(step, CallDrain):
                    # A drain that is refused ends at its deadline; everything else a person has to look at.
                    self._memory.refuse((key, waiting.group), _refusal(waiting, outcome))
                ends = isinstance(outcome, Forbidden) and outcome.namespace_ends
                return Lesson(False, wait_s=NAMESPACE_ENDS_WAIT_S if ends else 0.0)
            case Transient(retry_after_s=asked_s, maybe_done=maybe_done):
                if isinstance(step, CreateReplica) and maybe_done:
                    self._memory.doubt(key, step.name, now)
                return Lesson(False, wait_s=asked_s or 0.0)
            case Conflict():
                return Lesson(False)
            case _:
                assert_never(outcome)

    def _learn(self, waiting: Waiting, raw: Json | None, now: float) -> Lesson:
        """The result of a write is an observation, newer than the watch."""
        key, step, store = waiting.fleet, waiting.step, self._store
        if isinstance(step, CallDrain | CallResume):
            self._reports.answered(step.uid, raw)
            return Lesson(True)
        if waiting.status is not None:
            self._memory.status_at[key] = now
            notices = notices_of_status(waiting.status_before or {}, waiting.status)
            return Lesson(True, store.apply("MoEFleet", key, raw) if raw is not None else set(), notices)
        if isinstance(step, ApplyChild):
            return Lesson(True, store.apply(step.kind, key, raw) if raw is not None else set())
        if isinstance(step, RecordRevision):
            name = Key(key.namespace, step.name)
            return Lesson(True, store.apply("ControllerRevision", name, raw) if raw is not None else set())
        if isinstance(step, ForgetRevision):
            return Lesson(True, self._forgotten(key, step))
        if step is not None:
            pod = Key(key.namespace, step.name)
            if raw is not None and (raw.get("metadata") or {}).get("uid"):
                return Lesson(True, store.apply("Pod", pod, raw))
            if isinstance(step, DeleteReplica):
                # A Status instead of the pod: it is gone already.
                return Lesson(True, store.gone("Pod", pod, step.uid))
        return Lesson(True)

    def _forgotten(self, fleet: Key, step: ForgetRevision | RecordRevision) -> set[Key]:
        return self._store.gone("ControllerRevision", Key(fleet.namespace, step.name), step.uid)

    def _met(self, waiting: Waiting, existing: Json, now: float) -> bool:
        """The name is taken: by what we wanted to create (an answer that got lost), or by something else."""
        key, step = waiting.fleet, waiting.step
        meta: Json = existing.get("metadata") or {}
        record = self._store.fleets.get(key)
        ours = record is not None and controller_of(existing) == record.uid
        if isinstance(step, ApplyChild):
            if ours:
                self._store.apply(step.kind, key, existing)
                return True
            self._memory.refuse((key, waiting.group), name_in_use(step.kind, existing))
            return False
        if isinstance(step, RecordRevision):
            if ours:
                self._store.apply("ControllerRevision", Key(key.namespace, step.name), existing)
                # Its number and verdict are looked at again.
                return True
            self._memory.refuse((key, waiting.group), name_in_use("ControllerRevision", existing))
            return False
        if not isinstance(step, CreateReplica):
            return False
        self._store.exists(str(meta.get("uid") or ""))
        self._store.apply("Pod", Key(key.namespace, step.name), existing)
        labels: Json = meta.get("labels") or {}
        if labels.get(names.LABEL_FLEET) != key.name:
            self._memory.collide(key, step.name, now)
        # A terminating one, or one of another owner: the next pass sees that the name is taken and takes the next slot.
        return ours and not meta.get("deletionTimestamp")


def _refusal(waiting: Waiting, outcome: Invalid | Forbidden) -> Problem:
    """What the API server said, with the reason under which the user finds it."""
    step = waiting.step
    what = "status" if step is None else f"{type(step).__name__} {step.name}"
    text = f"{what}: {outcome.message}"[:MESSAGE_MAX]
    if isinstance(outcome, Forbidden) and outcome.namespace_ends:
        said = f"namespace {waiting.fleet.namespace} is being deleted and takes nothing new; this fleet goes with it"
        return Problem(reasons.NAMESPACE_TERMINATING, said)
    if "exceeded quota" in outcome.message:
        return Problem(reasons.QUOTA_EXCEEDED, text)
    if isinstance(outcome, Invalid):
        return Problem(reasons.POD_REFUSED, text)
    return Problem(reasons.PERMISSION_MISSING, text)
