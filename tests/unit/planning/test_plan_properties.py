"""What holds for every fleet: a plan applied to what it describes comes to rest, and takes no more than it may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator import names
from moefleet_operator.planning.facts import Condition
from moefleet_operator.planning.observed import Capacity, Observed, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.steps import (
    CallDrain,
    CallResume,
    CreateReplica,
    DeleteReplica,
    MarkActive,
    MarkConditions,
    Plan,
)
from moefleet_testing.builders import (
    NEW,
    NOW,
    OLD,
    a_fleet,
    a_gateway,
    a_pod,
    draining,
    failed,
    observed,
    pending,
    ready,
    starting,
    terminating,
)
from moefleet_testing.reading import faults

MAKERS = ("ready", "starting", "pending", "stuck", "draining", "drained", "resumed", "terminating", "failed")


def make(kind: str, slot: int, revision: str, amount: int) -> Replica:
    match kind:
        case "ready":
            return ready(slot, revision, tokens=amount * 100, active=amount)
        case "starting":
            return starting(slot, revision)
        case "pending":
            return pending(slot, revision)
        case "stuck":
            return pending(slot, revision, unschedulable_for_s=amount * 20.0)
        case "draining":
            return draining(slot, revision, active=amount, for_s=amount * 3.0)
        case "drained":
            return draining(slot, revision, state="DRAINED")
        case "resumed":
            return draining(slot, revision, state="SERVING", for_s=1.0)
        case "terminating":
            return terminating(slot, revision)
        case _:
            return failed(slot, revision, ago_s=amount * 60.0)


@st.composite
def fleets(draw: st.DrawFn) -> Observed:
    count = draw(st.integers(0, 7))
    replicas = [
        make(draw(st.sampled_from(MAKERS)), slot, draw(st.sampled_from((OLD, NEW))), draw(st.integers(0, 9)))
        for slot in range(count)
    ]
    low = draw(st.integers(1, 4))
    high = draw(st.integers(low, 6))
    fleet = a_fleet(
        min_replicas=low,
        max_replicas=high,
        replicas=draw(st.integers(0, 8)),
        strategy=draw(st.sampled_from(("Auto", "Surge", "InPlace"))),
        max_unavailable=draw(st.integers(1, 3)),
    )
    room = draw(st.none() | st.integers(0, 6))
    gateways = (a_gateway(**{r.uid.replace("-", "_"): (True, 0) for r in replicas if draw(st.booleans())}),)
    return observed(
        *replicas,
        fleet=fleet,
        capacity=Capacity(room, 8, 8) if room is not None else Capacity(None),
        node_autoscaler=draw(st.booleans()),
        gateways=draw(st.sampled_from(((), gateways))),
        gateway_expected=draw(st.booleans()),
        name_owner=draw(st.sampled_from(("", "", "", "models/elder"))),
    )


def apply(seen: Observed, made: Plan) -> Observed:
    """The world after all steps of a plan, with no time gone by."""
    replicas = {r.name: r for r in seen.replicas}
    fits = seen.capacity.fits
    for step in made.steps:
        match step:
            case CreateReplica():
                assert step.name not in replicas, "a name that exists was chosen"
                replicas[step.name] = Replica(
                    a_pod(step.slot, NEW, node="", container=None, phase="Pending"), None
                )
                fits = None if fits is None else max(0, fits - 1)
            case DeleteReplica():
                pod = replicas[step.name].pod
                replicas[step.name] = Replica(replace(pod, deleted_at=NOW), replicas[step.name].load)
            case MarkConditions():
                pod = replicas[step.name].pod
                marks = {m.type: Condition(m.status, m.reason, m.message, NOW) for m in step.marks}
                pod = replace(pod, conditions={**pod.conditions, **marks})
                replicas[step.name] = Replica(pod, replicas[step.name].load)
            case MarkActive():
                pod = replace(replicas[step.name].pod, active=step.active)
                replicas[step.name] = Replica(pod, replicas[step.name].load)
            case CallDrain():
                load = replicas[step.name].load or ReplicaLoad("SERVING")
                state = "DRAINING" if load.active else "DRAINED"
                replicas[step.name] = Replica(replicas[step.name].pod, replace(load, state=state))
            case CallResume():
                load = replicas[step.name].load or ReplicaLoad("SERVING")
                replicas[step.name] = Replica(replicas[step.name].pod, replace(load, state="SERVING"))
            case _:
                raise AssertionError(f"not expected here: {step}")
    return replace(
        seen,
        replicas=tuple(replicas.values()),
        taken=seen.taken | frozenset(replicas),
        capacity=replace(seen.capacity, fits=fits),
    )


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_a_plan_applied_again_and_again_comes_to_rest(seen: Observed) -> None:
    for _ in range(25):
        made = plan(seen, NOW)
        if not made.steps:
            return
        seen = apply(seen, made)
    raise AssertionError(f"still at it: {[(type(s).__name__, s.name) for s in plan(seen, NOW).steps]}")


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_the_same_picture_gives_the_same_plan(seen: Observed) -> None:
    assert plan(seen, NOW) == plan(seen, NOW)


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_never_more_than_the_target_and_one_beside_old_ones(seen: Observed) -> None:
    for _ in range(6):
        made = plan(seen, NOW)
        created = sum(1 for s in made.steps if isinstance(s, CreateReplica))
        live = [r for r in seen.replicas if r.live]
        if created:
            surge = any(r.pod.revision == OLD for r in live) and seen.fleet.strategy != "InPlace"
            assert len(live) + created <= made.target.replicas + surge
            assert made.target.replicas <= seen.fleet.max_replicas
        seen = apply(seen, made)


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_ready_replicas_are_taken_only_down_to_what_must_stay(seen: Observed) -> None:
    for _ in range(6):
        made = plan(seen, NOW)
        ready_now = {r.name for r in seen.replicas if r.ready}
        taken = {
            s.name
            for s in made.steps
            if s.name in ready_now
            and (
                isinstance(s, DeleteReplica)
                or (
                    isinstance(s, MarkConditions) and any(m.type == names.CONDITION_DRAINING for m in s.marks)
                )
            )
        }
        if taken:
            floor = made.target.replicas
            if any(s.reason == "Rollout" for s in made.steps if s.name in taken):
                floor = max(
                    floor - seen.fleet.max_unavailable,
                    0 if seen.fleet.strategy == "InPlace" else min(1, floor),
                )
            assert len(ready_now) - len(taken) >= floor
        seen = apply(seen, made)


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_no_replica_with_a_running_stream_is_deleted_before_its_time(seen: Observed) -> None:
    for _ in range(6):
        made = plan(seen, NOW)
        loads = {r.name: r for r in seen.replicas}
        for step in made.steps:
            if isinstance(step, DeleteReplica):
                load, drain = loads[step.name].load, loads[step.name].drain
                running = load is not None and load.active > 0
                assert not running or (drain is not None and drain.at + seen.fleet.drain_timeout_s <= NOW)
        seen = apply(seen, made)


@settings(max_examples=100, deadline=None)
@given(fleets())
def test_deletion_does_nothing(seen: Observed) -> None:
    made = plan(replace(seen, fleet=replace(seen.fleet, deleting=True)), NOW)
    assert made.steps == ()
    assert made.status is None


@settings(max_examples=300, deadline=None)
@given(fleets())
def test_every_sentence_counts_as_people_do(seen: Observed) -> None:
    for _ in range(4):
        made = plan(seen, NOW)
        status: Any = made.status or {}
        said = [step.message for step in made.steps] + list(made.waits) + [made.target.message]
        said += [condition["message"] for condition in status.get("conditions", ())]
        said += [mark.message for s in made.steps if isinstance(s, MarkConditions) for mark in s.marks]
        wrong = {text: faults(text) for text in said if faults(text)}
        assert wrong == {}
        seen = apply(seen, made)
