"""The loop: events in; gather -> plan -> effects -> status for every fleet whose turn it is; effects out. No I/O.

Only the leader plans. A fleet has one pass at a time; while effects of a pass are under way its key waits, so no plan
is made on what is being changed. Calls to replicas do not hold the key: a replica that hangs must not hold up its fleet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from moefleet_operator.api import API_VERSION, KIND
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Observed, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.shape import falls_short
from moefleet_operator.planning.status import invalid_status
from moefleet_operator.planning.steps import AnyStep, CallDrain, CallResume, CreateReplica, Plan
from moefleet_operator.planning.writing import NUMBERS_EVERY_S, retargets, write_at
from moefleet_operator.rendering.credential import replica_token
from moefleet_operator.rendering.problem import Problem

from .answers import Answers, Waiting
from .effects import Apply, Effect, EmitEvent, WakeAt
from .events import (
    DecisionMade,
    EffectDone,
    Event,
    Json,
    Key,
    Kind,
    NumbersMeasured,
    ObjectChanged,
    Outcome,
    Relisted,
    Stop,
    Synced,
    TelemetryUpdate,
    Tick,
)
from .gather import Gatherer
from .leadership import Leadership
from .memory import CREATE, FORGET_S, STATUS, Memory
from .ports import Jitter
from .queue import WorkQueue
from .reports import Reports
from .runs import Notice, Run, notices_of
from .settings import CoreSettings
from .store import FleetRecord, Store, status_of
from .translate import Common, effect_of, group_of, signature_of

# Fleets planned in one call: a thousand fleets at the start must not keep the Lease waiting.
PASSES_PER_CALL = 16
# Times that a plan asks for are never now again: what is due at this moment has just been looked at.
LATER_S = 0.05

# Steps that hold no key.
_CALLS = (CallDrain, CallResume)
# Group of Events: whatever becomes of them, nothing follows from it.
_EVENT = "event"


class Core:
    def __init__(self, settings: CoreSettings, jitter: Jitter) -> None:
        self._settings = settings
        self._store = Store()
        self._reports = Reports()
        self._memory = Memory(jitter)
        self._gatherer = Gatherer(settings, self._store, self._reports, self._memory)
        self._answers = Answers(self._store, self._reports, self._memory)
        self._leadership = Leadership(settings)
        self._self_key = Key(settings.namespace, settings.identity)
        self._queue: WorkQueue[Key] = WorkQueue(jitter)
        self._under_way: dict[int, Waiting] = {}
        self._runs: dict[Key, Run] = {}
        self._next_id = 0
        self._wake_at: float | None = None
        self._exited = False
        self._out: list[Effect] = []
        self._errors: dict[Key, str] = {}

    # --- what others may read between two events (ports.View) ------------------------------------------------

    def leading(self, now: float) -> bool:
        return self._leadership.leading(now)

    @property
    def errors(self) -> Mapping[Key, str]:
        return self._errors

    def fleets(self) -> Mapping[Key, Json]:
        return {key: record.raw for key, record in self._store.fleets.items() if not record.deleting}

    def target(self, fleet: Key) -> int | None:
        return self._memory.targets.get(fleet)

    def remembers(self, fleet: Key) -> bool:
        return fleet in self._reports.decisions

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        record = self._store.fleets.get(fleet)
        return () if record is None else self._gatherer.replicas(fleet, record.uid)

    def gateways(self) -> Sequence[PodFacts]:
        return [g for g in self._store.gateways.values() if not g.terminating and not g.finished]

    # --- the one entry ----------------------------------------------------------------------------------------

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        self._out = []
        if self._exited:
            return self._out
        self._take(event, now)
        if self._leadership.begins(now):
            # What scaling said when we led before is old; until it speaks again the last status holds.
            self._reports.decisions.clear()
            for fleet in self._store.fleets:
                self._queue.add(fleet, now)
        ends = self._leadership.stopping_since is not None
        if ends:
            self._leadership.let_go(bool(self._under_way), now)
        if (request := self._leadership.request(now, wall)) is not None:
            self._leadership.under_way(self._emit(request))
        in_doubt = self._memory.must_look(now)
        if (lists := self._leadership.relist(now, in_doubt=in_doubt)) is not None:
            self._leadership.relisting(self._emit(lists))
        plans = self._leadership.may_plan(now)
        if plans:
            self._run(now, wall)
        if ends and (end := self._leadership.exit(bool(self._under_way), now)) is not None:
            self._exited = True
            self._emit(end)
            return self._out
        self._wake(event, now, plans)
        return self._out

    def _take(self, event: Event, now: float) -> None:
        # The most frequent first: half of all is the Lease's.
        match event:
            case Tick():
                pass
            case EffectDone(effect_id=effect_id, outcome=outcome):
                if not self._leadership.answered(effect_id, outcome, now):
                    self._done(effect_id, outcome, now)
            case ObjectChanged(kind=kind, key=key, object=raw, uid=uid):
                self._changed(kind, self._store.apply(kind, key, raw, uid), now, raw is None)
            case Relisted(kind=kind, objects=objects, as_of=as_of, began=began):
                self._leadership.listed(kind, began)
                self._changed(kind, self._store.relisted(kind, objects, as_of), now, True)
                if kind == "Pod":
                    self._forget(now, began)
            case Synced(kind=kind, available=available):
                self._leadership.synced(kind, available)
            case TelemetryUpdate():
                for uid in sorted(self._reports.telemetry(event)):
                    self._memory.unresumable.discard(uid)
                    pod = self._store.pod_by_uid(uid)
                    self._touch(self._store.fleet_of_pod(pod) if pod is not None else None, now)
            case DecisionMade(fleet=fleet):
                if self._reports.decision(event):
                    self._touch(fleet, now)
            case NumbersMeasured(fleet=fleet):
                self._reports.measured(event)
                self._touch(fleet, max(now, self._memory.status_at.get(fleet, 0.0) + NUMBERS_EVERY_S))
            case Stop():
                self._leadership.stop(now)
            case _:
                assert_never(event)

    def _changed(self, kind: Kind, fleets: set[Key], now: float, gone: bool) -> None:
        # Sorted: a set's order differs from process to process, and what we do must not.
        for fleet in sorted(fleets):
            self._touch(fleet, now)
        if kind in ("Node", "ResourceQuota") or (kind == "Pod" and gone):
            # Room may have become free.
            for fleet in sorted(self._memory.want_room):
                self._touch(fleet, now)

    def _touch(self, fleet: Key | None, at: float) -> None:
        if fleet is None:
            return
        if fleet in self._store.fleets:
            # The first event of several sets the time; those that come until then are seen by the same pass.
            self._queue.add(fleet, at + self._settings.gather_s)
        else:
            self._drop_fleet(fleet)

    def _wake(self, event: Event, now: float, plans: bool) -> None:
        at = self._leadership.wake_at(now)
        if plans and (due := self._queue.next_at()) is not None and due < at:
            at = due
        if at == math.inf:
            return
        at = max(at, now)
        if at != self._wake_at or at <= now or isinstance(event, Tick):
            self._wake_at = at
            self._emit(WakeAt(id=0, object=self._self_key, reason="Wake", message="", not_after=at, at=at))

    # --- one fleet ------------------------------------------------------------------------------------------

    def _run(self, now: float, wall: float) -> None:
        for _ in range(PASSES_PER_CALL):
            key = self._queue.pop(now)
            if key is None:
                return
            record = self._store.fleets.get(key)
            if record is None:
                self._drop_fleet(key)
                continue
            try:
                self._pass(key, record, now, wall)
                self._errors.pop(key, None)
            # One fleet that we cannot plan must not stop the others; it is tried again with backoff, and it is said.
            except Exception as error:
                self._errors[key] = f"{type(error).__name__}: {error}"
                self._runs.pop(key, None)
                self._queue.failed(key, now)
                self._notify(key, [Notice("Warning", "Reconcile", "InternalError", self._errors[key])], now)

    def _pass(self, key: Key, record: FleetRecord, now: float, wall: float) -> None:
        made = self._plan(key, record, now, wall)
        later = [now + (made.wake_at - wall)] if made.wake_at is not None else []
        run = Run()
        # Signing the token takes longer than most passes, and most have nothing to do.
        common = self._common(key, record, wall) if made.steps else None
        for step in made.steps:
            assert common is not None
            until = self._blocked_until(key, step, now)
            if until > now:
                later.append(until)
            else:
                self._start(key, step, common, run)
        if made.status is not None and (due := self._status(key, record, made.status, run, now)) is not None:
            later.append(due)
        if run.pending:
            self._runs[key] = run
            return
        self._queue.done(key, now)
        for at in later:
            self._queue.add(key, max(at, now + LATER_S))

    def _plan(self, key: Key, record: FleetRecord, now: float, wall: float) -> Plan:
        parsed = record.parsed
        if isinstance(parsed, Problem):
            generation = int((record.raw.get("metadata") or {}).get("generation") or 0)
            return Plan(status=invalid_status(generation, status_of(record.raw), parsed, wall))
        observed = self._gatherer.observe(
            key,
            record,
            parsed,
            unavailable=self._leadership.unavailable,
            creating=sum(run.creates for run in self._runs.values()),
            now=now,
        )
        if (watch := self._memory.watch(key, observed, wall)) is not None:
            observed = replace(observed, watch=watch)
        made = plan(observed, wall)
        forgets = self._memory.any_refused(key) and self._memory.keep_refused(
            key, _wanted_groups(observed, made)
        )
        if forgets:
            # What was refused is wanted no more, so it is no problem any more.
            observed = replace(
                observed, refused=self._memory.refused(key, {r.uid for r in observed.replicas})
            )
            made = plan(observed, wall)
        self._memory.targets[key] = made.target.replicas
        if observed.fleet.mode == "External":
            # Nobody says anything meanwhile: what was said before must not count when the mode changes back.
            self._reports.decisions.pop(key, None)
        (self._memory.want_room.add if made.wants_room else self._memory.want_room.discard)(key)
        return made

    def _common(self, key: Key, record: FleetRecord, wall: float) -> Common:
        control_key = self._settings.control_key
        kinds: tuple[Kind, ...] = ("Service", "PodDisruptionBudget")
        missing = {k for k in kinds if (k, key) not in self._store.children}
        return Common(
            id=0,
            namespace=key.namespace,
            not_after=self._leadership.act_until,
            wall=wall,
            token=replica_token(control_key, record.uid) if control_key is not None else None,
            # Of a kind that we cannot see, too: what has the name comes with the refusal, and ours is known from then on.
            absent=frozenset(missing),
        )

    def _blocked_until(self, key: Key, step: AnyStep, now: float) -> float:
        if isinstance(step, _CALLS):
            group = group_of(step)
            if any(w.fleet == key and w.group == group for w in self._under_way.values()):
                # The answer brings the fleet back.
                return now + FORGET_S
        return self._memory.blocked_until(key, step, now)

    def _start(self, key: Key, step: AnyStep, common: Common, run: Run) -> None:
        effect_id = self._emit(effect_of(step, common))
        self._under_way[effect_id] = Waiting(key, group_of(step), signature_of(step), step)
        if not isinstance(step, _CALLS):
            run.pending.add(effect_id)
            run.creates += isinstance(step, CreateReplica)

    def _status(self, key: Key, record: FleetRecord, draft: Json, run: Run, now: float) -> float | None:
        """Writes it, or says when it will be due. While steps run it waits for their result, unless the target changes."""
        live = status_of(record.raw)
        at = write_at(draft, live, self._memory.status_at.get(key, 0.0), now)
        if at is None:
            return None
        if at > now or (run.pending and not retargets(draft, live)):
            return at
        signature = repr(draft)
        at = self._memory.status_blocked_until(key, signature, now)
        if at > now:
            return at
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            # The uid is a precondition: a fleet of the same name made again is another one.
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": record.uid},
            "status": draft,
        }
        ready: Json = next((c for c in draft.get("conditions") or () if c["type"] == reasons.READY), {})
        effect = Apply(
            id=0,
            object=key,
            reason=str(ready.get("reason") or "Status"),
            message=str(ready.get("message") or "status of the fleet"),
            not_after=self._leadership.act_until,
            body=body,
            subresource="status",
        )
        effect_id = self._emit(effect)
        self._under_way[effect_id] = Waiting(key, STATUS, signature, None, draft, live)
        run.pending.add(effect_id)
        return None

    # --- answers --------------------------------------------------------------------------------------------

    def _done(self, effect_id: int, outcome: Outcome, now: float) -> None:
        waiting = self._under_way.pop(effect_id, None)
        if waiting is None or waiting.group == _EVENT:
            return
        key, step = waiting.fleet, waiting.step
        # Calls to replicas and effects of a fleet that was made again hold no key.
        run = self._runs.get(key)
        if run is not None and effect_id not in run.pending:
            run = None
        lesson = self._answers.take(waiting, outcome, now)
        self._notify(key, lesson.notices, now)
        for fleet in sorted(lesson.touched):
            self._touch(fleet, now)
        if lesson.success:
            self._memory.succeeded((key, waiting.group), waiting.signature)
            if step is not None and run is not None:
                run.done.append(step)
            elif step is not None:
                self._notify(key, notices_of([step], key.namespace), now)
        elif run is not None:
            run.fail(waiting.group, lesson.wait_s)
        else:
            self._memory.backoff.failed((key, waiting.group), now, lesson.wait_s)
        if run is None:
            self._touch(key, now)
            return
        run.pending.discard(effect_id)
        if not run.pending:
            self._end(key, run, now)

    def _end(self, key: Key, run: Run, now: float) -> None:
        """All effects of a pass are answered: the fleet is looked at again at once."""
        del self._runs[key]
        for group, at_least_s in run.failed.items():
            self._memory.backoff.failed((key, group), now, at_least_s)
        self._notify(key, notices_of(run.done, key.namespace), now)
        self._queue.done(key, now)
        self._touch(key, now)

    # --- telling and forgetting ---------------------------------------------------------------------------------

    def _notify(self, key: Key, notices: Sequence[Notice], now: float) -> None:
        record = self._store.fleets.get(key)
        if record is None or not self._leadership.leading(now):
            return
        for notice in notices:
            effect = EmitEvent(
                id=0,
                object=key,
                reason=notice.reason,
                message=notice.message,
                not_after=self._leadership.act_until,
                fleet_uid=record.uid,
                type=notice.type,
                action=notice.action,
                related=notice.related,
            )
            self._under_way[self._emit(effect)] = Waiting(key, _EVENT, "")

    def _emit(self, effect: Effect) -> int:
        self._next_id += 1
        # Made a moment ago by ourselves, and nobody else has it yet; a copy would cost more than all that led to it.
        object.__setattr__(effect, "id", self._next_id)
        self._out.append(effect)
        return self._next_id

    def _drop_fleet(self, key: Key) -> None:
        """Nothing of a fleet that is gone is kept; effects under way end by themselves."""
        self._queue.forget(key)
        self._reports.forget_fleet(key)
        self._memory.drop(key)
        self._runs.pop(key, None)
        self._errors.pop(key, None)

    def _forget(self, now: float, listed_since: float) -> None:
        """After each LIST of pods: what is remembered about objects that are gone."""
        pods = {pod.uid for pod in self._store.pods.values()}
        self._reports.keep(pods, {g.uid for g in self._store.gateways.values()})
        self._memory.forget(pods, now, listed_since)


def _wanted_groups(observed: Observed, made: Plan) -> set[str]:
    """Groups of steps that are wanted, also where they wait: a replica may be missing and not be made in this very plan."""
    wanted = {group_of(step) for step in made.steps} | {STATUS}
    if falls_short(observed, made.target):
        wanted.add(CREATE)
    return wanted
