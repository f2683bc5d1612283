"""Bugs that are planted into the operator to see that the simulation finds them: one table, each a patch to production code.

`seed` is one whose schedule breaks a rule with the bug in place, as `make simulate PLANTED=NAME SEEDS=1000` found it; without
the bug the same seed holds every rule. `peer` is where users of another
system met it (threads as the maintainers filed them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from moefleet_operator.core import core as core_module
from moefleet_operator.core import reports
from moefleet_operator.core.events import DecisionMade, Json, Key, Kind
from moefleet_operator.core.gather import Gatherer
from moefleet_operator.core.leadership import Leadership
from moefleet_operator.core.lease import LeaseMachine
from moefleet_operator.core.queue import Backoff
from moefleet_operator.core.store import Store
from moefleet_operator.kube.clock import ServerClock
from moefleet_operator.planning import drain, plan, rollout, shape, target
from moefleet_operator.planning.changes import Leaving
from moefleet_operator.planning.changes import Shape as Changes
from moefleet_operator.planning.observed import Observed, Replica
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.steps import DeleteReplica, Target

# Puts one thing in the place of another for as long as the bug lives: (owner, attribute, new).
Swap = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Planted:
    name: str
    # What is wrong, in a sentence.
    bug: str
    peer: str
    swaps: Callable[[], Sequence[Swap]]
    seed: int = 0


@contextmanager
def planted(bug: Planted) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, new in bug.swaps():
            stack.enter_context(patch.object(owner, name, new))
        yield


# --- what exists, and what is on its way --------------------------------------------------------------------------


def _believe_old_lists() -> Sequence[Swap]:
    good = Store.relisted
    return [(Store, "relisted", lambda s, kind, objects, as_of: good(s, kind, objects, as_of + 10**9))]


def _plan_unlisted() -> Sequence[Swap]:
    good = Leadership.begins

    def begins(self: Leadership, now: float) -> bool:
        began = good(self, now)
        self._unlisted.clear()
        return began

    return [(Leadership, "begins", begins)]


def _count_ready_only() -> Sequence[Swap]:
    good: Callable[[Any], bool] = Replica.live.fget  # type: ignore[attr-defined]
    return [(Replica, "live", property(lambda r: good(r) and r.pod.is_true("Ready")))]


def _ignore_taken_names() -> Sequence[Swap]:
    return [(plan, "free_slots", lambda _taken, _rendered, count: list(range(count)))]


def _ignore_deletion() -> Sequence[Swap]:
    good: Any = vars(core_module)["plan"]

    def careless(observed: Observed, now: float) -> Any:
        return good(replace(observed, fleet=replace(observed.fleet, deleting=False)), now)

    return [(core_module, "plan", careless)]


def _keep_gone_fleets() -> Sequence[Swap]:
    good = Store._remove

    def forgetful(store: Store, kind: Kind, key: Key, uid: str) -> set[Key]:
        return set() if kind == "MoEFleet" else good(store, kind, key, uid)

    return [(Store, "_remove", forgetful)]


# --- drains -------------------------------------------------------------------------------------------------------


def _delete_at_once() -> Sequence[Swap]:
    def at_once(_observed: Observed, replica: Replica, _now: float) -> drain.Leg:
        step = DeleteReplica(name=replica.name, uid=replica.uid, reason="Bug", message="planted", grace_s=1)
        return drain.Leg((step,))

    return [(drain, "road", at_once)]


def _drain_unconfirmed() -> Sequence[Swap]:
    good = drain.road

    def trusting(observed: Observed, replica: Replica, now: float) -> drain.Leg:
        # As a fixed sleep would: withdrawn by the gateways is taken for empty.
        return good(observed, replace(replica, load=ReplicaLoad("DRAINED")), now)

    return [(drain, "road", trusting), (drain, "in_flight", lambda _observed, _uid: 0)]


def _never_resume() -> Sequence[Swap]:
    return [(shape, "resumable", lambda *_: []), (rollout, "resumable", lambda *_: [])]


def _resume_half() -> Sequence[Swap]:
    return [(drain, "label", lambda _replica: None)]


# --- rollouts -----------------------------------------------------------------------------------------------------


def _all_old_at_once() -> Sequence[Swap]:
    def restart(
        _o: Observed, way: rollout.Course, live: list[Replica], _wanted: int, out: Changes, **_now: float
    ) -> None:
        old = [r for r in live if way.aim is not None and r.pod.revision != way.aim.revision]
        out.drain += [Leaving(r, "Rollout", "planted") for r in old]

    return [(shape, "advance", restart)]


def _rendered_for_ever() -> Sequence[Swap]:
    good: Any = Gatherer._render

    def remembered(gatherer: Gatherer, key: Key, uid: str, *more: Any) -> Any:
        found = good(gatherer, key, uid, *more)
        return vars(gatherer).setdefault("first", {}).setdefault(uid, found)

    return [(Gatherer, "_render", remembered)]


def _broken_ones_spend_the_budget() -> Sequence[Swap]:
    good: Any = vars(shape)["advance"]

    def waits(
        o: Observed, way: rollout.Course, live: list[Replica], wanted: int, out: Changes, **now: float
    ) -> None:
        if all(r.ready for r in live):
            good(o, way, live, wanted, out, **now)

    return [(shape, "advance", waits)]


def _unbounded_while_they_wait() -> Sequence[Swap]:
    return [
        (shape, "_allowed", lambda _observed, _live, missing, _out: missing),
        (shape, "_take_back_unschedulable", lambda *_: None),
    ]


# --- victims and targets --------------------------------------------------------------------------------------------


def _by_age(replicas: Any, _wanted: Sequence[str]) -> list[Replica]:
    return sorted(replicas, key=lambda r: (r.pod.created_at, r.name))


def _oldest_goes() -> Sequence[Swap]:
    return [(shape, "victims", _by_age), (rollout, "victims", _by_age)]


def _unknown_is_zero() -> Sequence[Swap]:
    good = reports.Reports.decision

    def read(self: reports.Reports, event: DecisionMade) -> bool:
        return good(self, replace(event, replicas=event.replicas or 0))

    return [(reports.Reports, "decision", read)]


def _no_bounds() -> Sequence[Swap]:
    return [
        (target, "_bounded", lambda _fleet, wanted, reason, message, advised: Target(wanted, reason, message, advised))
    ]  # fmt: skip


# --- gates, leadership, writes ----------------------------------------------------------------------------------------


def _gate_without_gateways() -> Sequence[Swap]:
    good: Any = vars(plan)["registration"]
    return [
        (plan, "registration", lambda o, replica, now: good(replace(o, gateway_expected=False), replica, now))
    ]


def _lease_unchecked() -> Sequence[Swap]:
    # Once leader, always leader, and effects without an end.
    return [
        (LeaseMachine, "leading", lambda self, _now: self._act_until > 0),
        (LeaseMachine, "act_until", property(lambda self: self._act_until + 1e6)),
    ]


def _own_clock() -> Sequence[Swap]:
    return [(ServerClock, "heard", lambda _self, _date, _sent, _got: None)]


def _no_backoff() -> Sequence[Swap]:
    return [(Backoff, "failed", lambda _self, _key, now, at_least_s=0.0: now)]


def _write_again() -> Sequence[Swap]:
    return [(core_module, "write_at", lambda _wanted, _live, last, now: max(now, last + 20.0))]


def _budget_once() -> Sequence[Swap]:
    good: Any = vars(plan)["child"]

    def only_missing(wanted: Json, live: Json | None) -> Any:
        return good(wanted, live) if live is None else None

    return [(plan, "child", only_missing)]


BUGS: tuple[Planted, ...] = (
    Planted("believe-old-lists", "a LIST hides what was made after it: made twice", "stale-cache double create", _believe_old_lists, 2),
    Planted("leads-on-old-news", "a new leader plans on what its watch told it, however long ago", "stale-cache double create at failover", _plan_unlisted, 2125),
    Planted("pending-ignored", "replicas that are not ready yet are no supply", "aibrix#2670", _count_ready_only, 1),
    Planted("slot-reused", "the name of a terminating pod is taken for free", "grove#565", _ignore_taken_names, 1),
    Planted("foreground-deletion", "a fleet with a deletionTimestamp is planned as any other", "dynamo#8204", _ignore_deletion, 1),
    Planted("create-after-delete", "a fleet that is gone is kept", "dynamo#8204", _keep_gone_fleets, 1),
    Planted("delete-at-once", "what shall go is deleted without a drain", "aibrix#2413, kthena#1589", _delete_at_once, 1),
    Planted("drain-unconfirmed", "withdrawn by the gateways is taken for empty", "dynamo#13559", _drain_unconfirmed, 3),
    Planted("resume-forgotten", "a cold replica is made while a warm one drains", "llm-d-autoscaling#1152", _never_resume, 10),
    Planted("resume-half", "a resumed replica keeps the label of a draining one", "dynamo#13495", _resume_half, 3),
    Planted("reentrant-edit", "each edit restarts all replicas of older revisions at once", "dynamo#13353, #13620", _all_old_at_once, 1),
    Planted("ghost-rollback", "the revision of the first spec is rendered for ever", "dynamo#13495", _rendered_for_ever, 12),
    Planted("budget-spent-by-broken", "a rollout waits until all old replicas are ready", "grove#840, lws#225", _broken_ones_spend_the_budget, 4),
    Planted("pending-unbounded", "as many replicas as are wanted wait for a node, for ever", "pods pile up in the scheduler's queue", _unbounded_while_they_wait, 1365),
    Planted("victim-by-age", "the oldest replica goes, busy or not", "llm-d-autoscaling#1152, aibrix#1855", _oldest_goes, 4),
    Planted("unknown-is-zero", "lost metrics are read as no load", "keda#965, dynamo#6985", _unknown_is_zero, 10),
    Planted("bounds-ignored", "minReplicas and maxReplicas bind nobody", "dynamo#12428, #14575", _no_bounds, 2),
    Planted("gate-before-registration", "Ready before a gateway knows the replica", "dynamo#13622", _gate_without_gateways, 1),
    Planted("lease-unchecked", "a leader that lost its Lease goes on", "two operators alive", _lease_unchecked, 2),
    Planted("own-clock", "the clock of the machine is believed, not the API server's", "drains that end before their time", _own_clock, 26),
    Planted("no-backoff", "what was refused is tried again at once", "ray#63279", _no_backoff, 20),
    Planted("status-storm", "a status that says nothing new is written again", "writes are few", _write_again, 1),
    Planted("budget-once", "a disruption budget is made and never follows the target", "kserve#5452", _budget_once, 1),
)  # fmt: skip
