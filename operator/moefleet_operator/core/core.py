"""The loop: events in; gather -> plan -> effects -> status for every fleet whose turn it is; effects out. No I/O.

Only the leader plans. A fleet has one pass at a time; while effects of a pass are under way its key waits, so no plan
is made on what is being changed. Calls to replicas do not hold the key: a replica that hangs must not hold up its fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from moefleet_operator import names
from moefleet_operator.api import API_VERSION, KIND, MoEFleet
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.capacity import capacity
from moefleet_operator.planning.facts import PodFacts, pod_requests
from moefleet_operator.planning.observed import Fleet, Gateway, Observed, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.shape import wants_room
from moefleet_operator.planning.status import invalid_status
from moefleet_operator.planning.steps import (
    AnyStep,
    ApplyChild,
    CallDrain,
    CallResume,
    CreateReplica,
    DeleteReplica,
    Plan,
)
from moefleet_operator.planning.target import target
from moefleet_operator.planning.writing import NUMBERS_EVERY_S, retargets, write_at
from moefleet_operator.rendering.credential import replica_token, token_sha256
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.problem import Problem

from .effects import Apply, Effect, EmitEvent, Exit, ReadLease, WakeAt, WriteLease
from .events import (
    KINDS,
    AlreadyExists,
    Conflict,
    DecisionMade,
    EffectDone,
    Event,
    Forbidden,
    Invalid,
    Json,
    Key,
    Kind,
    NotFound,
    NumbersMeasured,
    ObjectChanged,
    Ok,
    Outcome,
    Relisted,
    Stop,
    Synced,
    TelemetryUpdate,
    Tick,
    Transient,
)
from .lease import Act, LeaseMachine, Read
from .ports import Jitter
from .queue import Backoff, WorkQueue
from .reports import Reports
from .runs import Notice, Run, notices_of, notices_of_status
from .settings import CoreSettings
from .store import FleetRecord, Store
from .translate import Common, effect_of, group_of, signature_of

# A new leader waits so long before its first plan: what the old one has just done is on its way through the watch.
SETTLE_S = 2.0
# Shorter than the renewal deadline, so that a request that hangs leaves time for another one.
LEASE_REQUEST_S = 5.0
# At the end: effects under way may finish; then the Lease is given back, or left to expire.
STOP_WAIT_S = 5.0
# Fleets planned in one call: a thousand fleets at the start must not keep the Lease waiting.
PASSES_PER_CALL = 16
# A name that somebody else's pod has is tried again after so long.
COLLISION_S = 600.0
# Step backoffs of objects that are gone.
FORGET_S = 600.0
# Texts of refusals go into conditions.
MESSAGE_MAX = 600

# Group of Events: whatever becomes of them, nothing follows from it.
_EVENT = "event"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An effect under way: whose it is and what it was for."""

    fleet: Key
    group: str
    signature: str
    step: AnyStep | None = None
    # The status that it writes.
    status: Json | None = None


class Core:
    def __init__(self, settings: CoreSettings, jitter: Jitter) -> None:
        self._settings = settings
        self._store = Store()
        self._reports = Reports()
        self._queue: WorkQueue[Key] = WorkQueue(jitter)
        self._backoff: Backoff[tuple[Key, str]] = Backoff(jitter)
        self._lease = LeaseMachine(settings.identity, settings.namespace, settings.lease_name)
        self._lease_effect: int | None = None
        self._synced: set[Kind] = set()
        self._unavailable: set[Kind] = set()
        self._next_id = 0
        self._under_way: dict[int, _Waiting] = {}
        self._runs: dict[Key, Run] = {}
        # Group -> signature of what last succeeded there.
        self._last_done: dict[tuple[Key, str], str] = {}
        self._refused: dict[Key, dict[str, Problem]] = {}
        self._refused_at: dict[Key, int] = {}
        self._unresumable: set[str] = set()
        self._collisions: dict[Key, dict[str, float]] = {}
        self._rendered: dict[Key, tuple[str, int, RenderedPod | Problem]] = {}
        self._status_at: dict[Key, float] = {}
        self._targets: dict[Key, int] = {}
        self._want_room: set[Key] = set()
        self._led = False
        self._settle_until = 0.0
        self._stopping_since: float | None = None
        self._exited = False
        self._wake_at: float | None = None
        self._out: list[Effect] = []
        # The last error in planning a fleet, for metrics and tests; a fleet that is planned again is removed.
        self.errors: dict[Key, str] = {}

    # --- what others may read between two events (ports.View) ------------------------------------------------

    def leading(self, now: float) -> bool:
        return self._lease.leading(now)

    def fleets(self) -> Mapping[Key, Json]:
        return {key: record.raw for key, record in self._store.fleets.items() if not record.deleting}

    def target(self, fleet: Key) -> int | None:
        return self._targets.get(fleet)

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        record = self._store.fleets.get(fleet)
        return () if record is None else self._replicas(fleet, record.uid)

    def gateways(self) -> Sequence[PodFacts]:
        return [g for g in self._store.gateways.values() if not g.terminating and not g.finished]

    # --- the one entry ----------------------------------------------------------------------------------------

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        self._out = []
        if self._exited:
            return self._out
        self._take(event, now)
        self._lead(now, wall)
        if self._may_plan(now):
            self._run(now, wall)
        self._stop(now, wall)
        self._wake(event, now)
        return self._out

    def _take(self, event: Event, now: float) -> None:
        match event:
            case ObjectChanged(kind=kind, key=key, object=raw, uid=uid):
                self._changed(kind, self._store.apply(kind, key, raw, uid), now, raw is None)
            case Relisted(kind=kind, objects=objects):
                self._changed(kind, self._store.relisted(kind, objects, now), now, True)
                self._forget(now)
            case Synced(kind=kind, available=available):
                self._synced.add(kind)
                if not available:
                    self._unavailable.add(kind)
            case TelemetryUpdate():
                for uid in self._reports.telemetry(event):
                    self._unresumable.discard(uid)
                    pod = self._store.pod_by_uid(uid)
                    if pod is not None:
                        self._touch(self._store.fleet_of_pod(pod), now)
            case DecisionMade(fleet=fleet):
                if self._reports.decision(event):
                    self._touch(fleet, now)
            case NumbersMeasured(fleet=fleet):
                self._reports.measured(event)
                self._touch(fleet, max(now, self._status_at.get(fleet, 0.0) + NUMBERS_EVERY_S))
            case EffectDone(effect_id=effect_id, outcome=outcome):
                self._done(effect_id, outcome, now)
            case Stop():
                if self._stopping_since is None:
                    self._stopping_since = now
            case Tick():
                pass
            case _:
                assert_never(event)

    def _changed(self, kind: Kind, fleets: set[Key], now: float, gone: bool) -> None:
        for fleet in fleets:
            self._touch(fleet, now)
        if kind == "Node" or (kind == "Pod" and gone):
            # Room may have become free.
            for fleet in self._want_room:
                self._touch(fleet, now)

    def _touch(self, fleet: Key | None, at: float) -> None:
        if fleet is None:
            return
        if fleet not in self._store.fleets:
            self._drop_fleet(fleet)
            return
        self._queue.add(fleet, at)

    # --- leadership -----------------------------------------------------------------------------------------

    def _lead(self, now: float, wall: float) -> None:
        leads = self._lease.leading(now)
        if leads and not self._led:
            self._settle_until = now + SETTLE_S
            # What scaling said when we led before is old; until it speaks again the last status holds.
            self._reports.decisions.clear()
            for fleet in self._store.fleets:
                self._queue.add(fleet, now)
        self._led = leads
        act = self._lease.step(now, wall)
        if act is not None:
            self._lease_effect = self._emit(self._lease_request(act, now))

    def _lease_request(self, act: Act, now: float) -> Effect:
        key = Key(self._settings.namespace, self._settings.lease_name)
        if isinstance(act, Read):
            return ReadLease(
                id=0,
                object=key,
                reason="ReadLease",
                message=f"held by {self._lease.holder or 'nobody that we know of'}",
                not_after=now + LEASE_REQUEST_S,
            )
        return WriteLease(
            id=0,
            object=key,
            reason=f"{act.intent.capitalize()}Lease",
            message=f"{self._settings.identity}: {act.intent}",
            not_after=now + LEASE_REQUEST_S,
            intent=act.intent,
            body=act.body,
        )

    def _may_plan(self, now: float) -> bool:
        return (
            self._stopping_since is None
            and self._lease.leading(now)
            and now >= self._settle_until
            and self._synced.issuperset(KINDS)
        )

    def _stop(self, now: float, wall: float) -> None:
        if self._stopping_since is None:
            return
        holding = bool(self._under_way)
        if holding and now < self._stopping_since + STOP_WAIT_S:
            return
        if not holding:
            self._lease.release(now)
            act = self._lease.step(now, wall)
            if act is not None:
                self._lease_effect = self._emit(self._lease_request(act, now))
        overdue = now >= self._stopping_since + 2 * STOP_WAIT_S
        if self._lease.released or holding or overdue:
            # Effects under way after the wait: the Lease is not given back but expires, because they may still arrive.
            self._exited = True
            self._emit(
                Exit(
                    id=0,
                    object=Key(self._settings.namespace, self._settings.identity),
                    reason="Stopped",
                    message="the Lease was left to expire"
                    if holding
                    else "nothing is under way, the Lease is free",
                    not_after=now + LEASE_REQUEST_S,
                    code=0,
                )
            )

    def _wake(self, event: Event, now: float) -> None:
        if self._exited:
            return
        times = [] if self._lease.busy else [self._lease.next_at]
        if self._lease.leading(now):
            times.append(self._lease.act_until)
            if self._settle_until > now:
                times.append(self._settle_until)
            elif self._stopping_since is None and (due := self._queue.next_at()) is not None:
                times.append(due)
        if self._stopping_since is not None:
            times += [self._stopping_since + STOP_WAIT_S, self._stopping_since + 2 * STOP_WAIT_S]
        at = min((max(t, now) for t in times), default=None)
        if at is None:
            return
        stale = self._wake_at is None or self._wake_at <= now or isinstance(event, Tick)
        if stale or at != self._wake_at:
            self._wake_at = at
            key = Key(self._settings.namespace, self._settings.identity)
            self._emit(WakeAt(id=0, object=key, reason="Wake", message="", not_after=at, at=at))

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
                self.errors.pop(key, None)
            # One fleet that we cannot plan must not stop the others; it is tried again with backoff, and it is said.
            except Exception as error:
                self.errors[key] = f"{type(error).__name__}: {error}"
                self._runs.pop(key, None)
                self._queue.failed(key, now)
                self._notify(
                    key, record.uid, Notice("Warning", "Reconcile", "InternalError", self.errors[key]), now
                )

    def _pass(self, key: Key, record: FleetRecord, now: float, wall: float) -> None:
        parsed = record.parsed
        live_status = _status_of(record.raw)
        if isinstance(parsed, Problem):
            generation = int((record.raw.get("metadata") or {}).get("generation") or 0)
            draft: Json = invalid_status(generation, live_status, parsed, wall)
            made = Plan(status=draft)
        else:
            observed = self._observe(key, record, parsed, now)
            made = plan(observed, wall)
            self._targets[key] = made.target.replicas
            (self._want_room.add if made.wants_room else self._want_room.discard)(key)
        run = Run()
        later = [now + (made.wake_at - wall)] if made.wake_at is not None else []
        common = self._common(key, record, wall)
        for step in made.steps:
            blocked_until = self._blocked(key, step, now)
            if blocked_until > now:
                later.append(blocked_until)
                continue
            self._start(key, step, common, run)
        if made.status is not None:
            due = self._write_status(key, record, made.status, live_status, run, now)
            if due is not None:
                later.append(due)
        if run.pending:
            self._runs[key] = run
            return
        self._queue.done(key, now)
        for at in later:
            # Never at once again: what is due at this very moment has just been looked at.
            self._queue.add(key, max(at, now + 0.05))

    def _observe(self, key: Key, record: FleetRecord, parsed: tuple[MoEFleet, Fleet], now: float) -> Observed:
        resource, fleet = parsed
        if self._refused_at.get(key) != fleet.generation:
            # Another spec: what was refused before may not be refused now.
            self._refused.pop(key, None)
            self._refused_at[key] = fleet.generation
            self._backoff.succeeded((key, "create"))
        owner = self._store.name_owner(key)
        collisions = {name for name, until in self._collisions.get(key, {}).items() if until > now}
        observed = Observed(
            fleet=fleet,
            resource=resource,
            rendered=self._render(key, record.uid, resource),
            replicas=tuple(self._replicas(key, record.uid)),
            orphans=tuple(self._store.orphans_of(key)),
            taken=frozenset(self._store.names_taken(key) | collisions),
            gateways=tuple(
                Gateway(
                    g.uid, g.name, g.is_true("Ready") and not g.terminating, self._reports.views.get(g.uid)
                )
                for g in self._store.gateways.values()
                if not g.finished
            ),
            gateway_expected=self._settings.gateway,
            decision=self._reports.decisions.get(key),
            node_autoscaler=self._settings.node_autoscaler,
            name_owner=str(owner) if owner is not None else "",
            service=self._store.children.get(("Service", key)),
            pdb=self._store.children.get(("PodDisruptionBudget", key)),
            refused=self._refused_of(key, record.uid),
            unresumable=frozenset(self._unresumable),
            numbers=self._reports.numbers.get(key, {}),
        )
        nodes_known = self._settings.pods_watched == "all" and not self._unavailable & {"Node", "Pod"}
        rendered = observed.rendered
        if nodes_known and isinstance(rendered, RenderedPod) and wants_room(observed, target(observed)):
            spec = rendered.body["spec"]
            requests = pod_requests(spec)
            # Pods that are being created right now, by whichever fleet, are not in the store yet.
            coming = self._store.usage.waiting(requests) + sum(run.creates for run in self._runs.values())
            room = capacity(spec, requests, self._store.nodes.values(), self._store.usage.by_node(), coming)
            observed = replace(observed, capacity=room)
        return observed

    def _refused_of(self, key: Key, uid: str) -> dict[str, Problem]:
        """What was refused about a pod that is gone is no problem any more."""
        pods = {pod.uid for pod in self._store.pods_of(key, uid)}
        found = self._refused.get(key, {})
        about_pod = {group for group in found if " " in group and not group.startswith("apply ")}
        return {
            group: p
            for group, p in found.items()
            if group not in about_pod or group.rsplit(" ", 1)[1] in pods
        }

    def _replicas(self, key: Key, uid: str) -> list[Replica]:
        return [Replica(pod, self._reports.loads.get(pod.uid)) for pod in self._store.pods_of(key, uid)]

    def _render(self, key: Key, uid: str, resource: MoEFleet) -> RenderedPod | Problem:
        """The same object for the same spec: rendering and hashing once per generation."""
        cached = self._rendered.get(key)
        if cached is not None and cached[:2] == (uid, resource.metadata.generation):
            return cached[2]
        digest = token_sha256(self._settings.control_key, uid)
        rendered = render_pod(resource, gateway=self._settings.gateway, token_sha256=digest)
        self._rendered[key] = (uid, resource.metadata.generation, rendered)
        return rendered

    def _common(self, key: Key, record: FleetRecord, wall: float) -> Common:
        control_key = self._settings.control_key
        absent = {
            kind
            for kind in ("Service", "PodDisruptionBudget")
            if (kind, key) not in self._store.children and kind not in self._unavailable
        }
        return Common(
            id=0,
            namespace=key.namespace,
            not_after=self._lease.act_until,
            wall=wall,
            token=replica_token(control_key, record.uid) if control_key is not None else None,
            absent=frozenset(absent),
        )

    def _blocked(self, key: Key, step: AnyStep, now: float) -> float:
        group, signature = group_of(step), signature_of(step)
        if isinstance(step, CallDrain | CallResume) and any(
            w.fleet == key and w.group == group for w in self._under_way.values()
        ):
            # Its answer brings the fleet back.
            return now + FORGET_S
        until = self._backoff.until((key, group))
        if until <= now and self._last_done.get((key, group)) == signature and group != "create":
            # It succeeded and is wanted again: doing it at full speed would not help more.
            del self._last_done[key, group]
            return self._backoff.failed((key, group), now)
        return until

    def _start(self, key: Key, step: AnyStep, common: Common, run: Run) -> None:
        effect_id = self._emit(effect_of(step, common))
        self._under_way[effect_id] = _Waiting(key, group_of(step), signature_of(step), step)
        if not isinstance(step, CallDrain | CallResume):
            run.pending.add(effect_id)
            run.creates += isinstance(step, CreateReplica)

    def _write_status(
        self, key: Key, record: FleetRecord, draft: Json, live: Json, run: Run, now: float
    ) -> float | None:
        """Writes it, or says when it will be due. While steps run it waits for their result, unless the target changes."""
        at = write_at(draft, live, self._status_at.get(key, 0.0), now)
        if at is None:
            return None
        at = max(at, self._backoff.until((key, "status")))
        if at > now or (run.pending and not retargets(draft, live)):
            return at
        signature = repr(draft)
        if self._last_done.get((key, "status")) == signature:
            del self._last_done[key, "status"]
            return self._backoff.failed((key, "status"), now, 1.0)
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": record.uid},
            "status": draft,
        }
        ready: Json = next((c for c in draft.get("conditions") or () if c["type"] == reasons.READY), {})
        effect_id = self._emit(
            Apply(
                id=0,
                object=key,
                reason=str(ready.get("reason") or "Status"),
                message=str(ready.get("message") or "status of the fleet"),
                not_after=self._lease.act_until,
                body=body,
                subresource="status",
            )
        )
        self._under_way[effect_id] = _Waiting(key, "status", signature, None, draft)
        run.pending.add(effect_id)
        return None

    # --- answers --------------------------------------------------------------------------------------------

    def _done(self, effect_id: int, outcome: Outcome, now: float) -> None:
        if effect_id == self._lease_effect:
            self._lease_effect = None
            self._lease.done(outcome, now)
            return
        waiting = self._under_way.pop(effect_id, None)
        if waiting is None or waiting.group == _EVENT:
            return
        key, run = waiting.fleet, self._runs.get(waiting.fleet)
        held = run is not None and effect_id in run.pending
        if self._succeeded(waiting, outcome, now):
            at = (key, waiting.group)
            if self._last_done.get(at) != waiting.signature:
                self._backoff.succeeded(at)
            self._last_done[at] = waiting.signature
            self._refused.get(key, {}).pop(waiting.group, None)
            if held and run is not None and waiting.step is not None:
                run.done.append(waiting.step)
            elif isinstance(waiting.step, CallResume):
                self._tell(key, [waiting.step], now)
        else:
            at_least_s = (outcome.retry_after_s or 0.0) if isinstance(outcome, Transient) else 0.0
            if held and run is not None:
                run.fail(waiting.group, at_least_s)
            else:
                self._backoff.failed((key, waiting.group), now, at_least_s)
        if held and run is not None:
            run.pending.discard(effect_id)
            if not run.pending:
                self._end(key, run, now)
        else:
            self._touch(key, now)

    def _end(self, key: Key, run: Run, now: float) -> None:
        """All effects of a pass are answered: the fleet is looked at again at once."""
        del self._runs[key]
        for group, at_least_s in run.failed.items():
            self._backoff.failed((key, group), now, at_least_s)
        self._tell(key, run.done, now)
        self._queue.done(key, now)
        self._touch(key, now)

    def _succeeded(self, waiting: _Waiting, outcome: Outcome, now: float) -> bool:
        key, step = waiting.fleet, waiting.step
        match outcome:
            case Ok(object=raw):
                self._learn(waiting, raw, now)
                return True
            case AlreadyExists(existing=existing):
                return existing is not None and self._met(waiting, existing, now)
            case NotFound():
                if isinstance(step, DeleteReplica):
                    self._store.gone("Pod", Key(key.namespace, step.name), step.uid)
                    return True
                if isinstance(step, CallResume):
                    self._unresumable.add(step.uid)
                return False
            case Invalid(message=message) | Forbidden(message=message):
                if isinstance(step, CallResume):
                    self._unresumable.add(step.uid)
                elif not isinstance(step, CallDrain):
                    self._refused.setdefault(key, {})[waiting.group] = _refusal(waiting, outcome, message)
                return False
            case Conflict() | Transient():
                return False
            case _:
                assert_never(outcome)

    def _learn(self, waiting: _Waiting, raw: Json | None, now: float) -> None:
        """The result of a write is an observation, newer than the watch."""
        key, step = waiting.fleet, waiting.step
        touched: set[Key] = set()
        if isinstance(step, CallDrain | CallResume):
            self._reports.answered(step.uid, raw)
        elif waiting.status is not None:
            self._status_at[key] = now
            record = self._store.fleets.get(key)
            if record is not None:
                for notice in notices_of_status(_status_of(record.raw), waiting.status):
                    self._notify(key, record.uid, notice, now)
            if raw is not None:
                touched = self._store.written("MoEFleet", key, raw, now)
        elif isinstance(step, ApplyChild):
            if raw is not None:
                touched = self._store.written(step.kind, key, raw, now)
        elif step is not None:
            pod = Key(key.namespace, step.name)
            if raw is not None and (raw.get("metadata") or {}).get("uid"):
                touched = self._store.written("Pod", pod, raw, now)
            elif isinstance(step, DeleteReplica):
                # A Status instead of the pod: it is gone already.
                touched = self._store.gone("Pod", pod, step.uid)
        for fleet in touched:
            self._touch(fleet, now)

    def _met(self, waiting: _Waiting, existing: Json, now: float) -> bool:
        """The name is taken: by what we wanted to create (an answer that got lost), or by something else."""
        key, step = waiting.fleet, waiting.step
        meta: Json = existing.get("metadata") or {}
        owner = next((o.get("uid") for o in meta.get("ownerReferences") or () if o.get("controller")), None)
        record = self._store.fleets.get(key)
        ours = record is not None and owner == record.uid
        if isinstance(step, ApplyChild):
            if ours:
                self._store.written(step.kind, key, existing, now)
                return True
            self._refused.setdefault(key, {})[waiting.group] = Problem(
                reasons.NAME_IN_USE,
                f"{step.kind} {key} exists and is not ours; delete or rename it, or rename the fleet",
            )
            return False
        if not isinstance(step, CreateReplica):
            return False
        pod = Key(key.namespace, step.name)
        self._store.written("Pod", pod, existing, now)
        labels: Json = meta.get("labels") or {}
        if labels.get(names.LABEL_FLEET) != key.name:
            self._collisions.setdefault(key, {})[step.name] = now + COLLISION_S
        # A terminating one, or one of another owner: the next pass sees that the name is taken and takes the next slot.
        return ours and not meta.get("deletionTimestamp")

    # --- telling and forgetting ---------------------------------------------------------------------------------

    def _tell(self, key: Key, steps: list[AnyStep], now: float) -> None:
        record = self._store.fleets.get(key)
        if record is None:
            return
        for notice in notices_of(steps, key.namespace):
            self._notify(key, record.uid, notice, now)

    def _notify(self, key: Key, uid: str, notice: Notice, now: float) -> None:
        if not self._lease.leading(now):
            return
        effect_id = self._emit(
            EmitEvent(
                id=0,
                object=key,
                reason=notice.reason,
                message=notice.message,
                not_after=self._lease.act_until,
                fleet_uid=uid,
                type=notice.type,
                action=notice.action,
                related=notice.related,
            )
        )
        self._under_way[effect_id] = _Waiting(key, _EVENT, "")

    def _emit(self, effect: Effect) -> int:
        self._next_id += 1
        self._out.append(replace(effect, id=self._next_id))
        return self._next_id

    def _drop_fleet(self, key: Key) -> None:
        """Nothing of a fleet that is gone is kept; effects under way end by themselves."""
        self._queue.forget(key)
        self._reports.forget_fleet(key)
        self._want_room.discard(key)
        for per_fleet in (
            self._runs,
            self._refused,
            self._refused_at,
            self._collisions,
            self._rendered,
            self._status_at,
            self._targets,
            self.errors,
        ):
            per_fleet.pop(key, None)

    def _forget(self, now: float) -> None:
        """Every minute: what is remembered about objects that are gone."""
        pods = {pod.uid for pod in self._store.pods.values()}
        self._reports.keep(pods, {g.uid for g in self._store.gateways.values()})
        self._unresumable &= pods
        self._backoff.forget(now, FORGET_S)
        self._last_done = {at: s for at, s in self._last_done.items() if at[0] in self._store.fleets}


def _status_of(raw: Json) -> Json:
    status = raw.get("status")
    return status if isinstance(status, Mapping) else {}


def _refusal(waiting: _Waiting, outcome: Invalid | Forbidden, message: str) -> Problem:
    """What the API server said, with the reason under which the user finds it."""
    step = waiting.step
    what = "status" if step is None else f"{type(step).__name__} {step.name}"
    text = f"{what}: {message}"[:MESSAGE_MAX]
    if "exceeded quota" in message:
        return Problem(reasons.QUOTA_EXCEEDED, text)
    if isinstance(outcome, Invalid):
        return Problem(reasons.POD_REFUSED, text)
    return Problem(reasons.PERMISSION_MISSING, text)
