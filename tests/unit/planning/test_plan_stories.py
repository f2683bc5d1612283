"""One fleet, one moment, one plan: the table is the planner's contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from moefleet_operator.planning.observed import Capacity, Decision, Fleet, Observed, Replica
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
from moefleet_operator.rendering.problem import Problem
from moefleet_testing.builders import (
    NEW,
    NOW,
    OLD,
    a_fleet,
    a_gateway,
    a_pod,
    a_rendered,
    draining,
    failed,
    false,
    observed,
    pending,
    ready,
    starting,
    terminating,
)


@dataclass
class Row:
    story: str
    replicas: list[Replica] = field(default_factory=list)
    # Verb and name's end (revision's first digit and slot), for example "create 1-0".
    expected: list[str] = field(default_factory=list)
    fleet: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def said(made: Plan) -> list[str]:
    out = []
    for step in made.steps:
        end = (
            f"{step.name.split('-')[1][0]}-{step.name.split('-')[2]}"
            if step.name.count("-") == 2
            else step.name
        )
        match step:
            case CreateReplica():
                out.append(f"create {end}")
            case DeleteReplica():
                out.append(f"delete {end}")
            case MarkConditions():
                marks = ",".join(f"{m.type.split('/')[-1]}={m.status}" for m in step.marks)
                out.append(f"mark {end} {marks}")
            case MarkActive():
                out.append(f"label {end} {step.active}")
            case CallDrain():
                out.append(f"drain {end}")
            case CallResume():
                out.append(f"resume {end}")
            case _:
                out.append(f"{type(step).__name__} {end}")
    return sorted(out)


DRAIN = "Draining=True,gateway-registered=False"
ROOM = {"capacity": Capacity(4, 8, 8)}
FULL = {"capacity": Capacity(0, 8, 8)}

ROWS = [
    Row("nothing to do", [ready(0)]),
    Row("a new fleet gets its replicas, lowest slots first", [], ["create 1-0", "create 1-1"], {"replicas": 2}, ROOM),
    Row("pending and starting replicas are supply", [pending(0), starting(1)], [], {"replicas": 2}, ROOM),
    Row("a terminating pod keeps its name and is no supply", [terminating(0)], ["create 1-1"], {}, ROOM),
    Row("a pod deleted by hand is replaced although it still drains", [ready(0), terminating(1)], ["create 1-2"], {"replicas": 2}, ROOM),
    Row("a name that somebody else has is left alone", [], ["create 1-1"], {}, {**ROOM, "taken": frozenset({f"chat-{NEW}-0"})}),
    Row("a fleet that is being deleted creates nothing", [], [], {"deleting": True}, ROOM),
    Row("a fleet that is being deleted takes nothing away either", [ready(0), ready(1)], [], {"deleting": True}),
    # --- scale down -------------------------------------------------------------------------------------------
    Row("a replica that never served goes first and at once", [ready(0), starting(1)], ["delete 1-1"]),
    Row("of two that never served the pending one goes", [starting(0), pending(1), ready(2)], ["delete 1-1"], {"replicas": 2}),
    Row("a replica with live streams is the last to go", [ready(0, tokens=900), ready(1, tokens=10)], [f"mark 1-1 {DRAIN}"]),
    Row("equal replicas: the highest slot goes", [ready(0), ready(1), ready(2)], [f"mark 1-2 {DRAIN}"], {"replicas": 2}),
    Row("scaled to zero by hand", [ready(0)], [f"mark 1-0 {DRAIN}"], {"replicas": 0}),
    # --- the drain road -----------------------------------------------------------------------------------------
    Row("the label follows the condition", [ready(0), draining(1, labelled=False)], ["label 1-1 False"]),
    Row(
        "the replica is told once the gateways have withdrawn it",
        [ready(0), draining(1, state="SERVING", for_s=1)],
        ["drain 1-1"],
    ),
    Row(
        "gateways that still choose it are waited for",
        [ready(0), draining(1, state="SERVING", for_s=2)],
        [],
        {},
        {"gateways": (a_gateway(uid_1_1=(True, 0)),)},
    ),
    Row(
        "but not longer than 5 s",
        [ready(0), draining(1, state="SERVING", for_s=6)],
        ["drain 1-1"],
        {},
        {"gateways": (a_gateway(uid_1_1=(True, 0)),)},
    ),
    Row(
        "a gateway that is not ready is not waited for",
        [ready(0), draining(1, state="SERVING", for_s=2)],
        ["drain 1-1"],
        {},
        {"gateways": (a_gateway(), a_gateway("gateway-1", is_ready=False, uid_1_1=(True, 0)))},
    ),
    Row("running streams are waited for", [ready(0), draining(1, active=3)]),
    Row(
        "streams in flight at a gateway are waited for",
        [ready(0), draining(1, state="DRAINED")],
        [],
        {},
        {"gateways": (a_gateway(uid_1_1=(False, 1)),)},
    ),
    Row("nothing runs any more: it goes", [ready(0), draining(1, state="DRAINED")], ["delete 1-1"]),
    Row("drainTimeout holds also where its label cannot be changed", [ready(0), draining(1, active=3, for_s=901, labelled=False)], ["delete 1-1"]),
    Row("drainTimeout is over: it goes with its streams", [ready(0), draining(1, active=3, for_s=901)], ["delete 1-1"]),
    Row(
        "a replica of which nothing is known is told again, not deleted",
        [ready(0), Replica(draining(1).pod, None)],
        ["drain 1-1"],
    ),
    # --- resume ---------------------------------------------------------------------------------------------------
    Row("scaling up takes a draining replica back before it creates one", [ready(0), draining(1, active=1)], ["resume 1-1"], {"replicas": 2}, ROOM),
    Row("it is in service when its process serves again", [ready(0), draining(1, state="SERVING")], ["mark 1-1 Draining=False"], {"replicas": 2}, ROOM),
    Row("one that must leave its node is not taken back", [ready(0), draining(1, active=1, reason="Eviction")], ["create 1-2"], {"replicas": 2}, ROOM),
    Row(
        "one that did not take Resume is not asked again",
        [ready(0), draining(1, active=1)],
        ["create 1-2"],
        {"replicas": 2},
        {**ROOM, "unresumable": frozenset({"uid-1-1"})},
    ),
    Row(
        "a live replica that refuses work is opened again",
        [Replica(ready(0).pod, ReplicaLoad("DRAINING"))],
        ["resume 1-0"],
    ),
    # --- rollout ------------------------------------------------------------------------------------------------------
    Row("with room a new replica is made beside the old one", [ready(0, OLD)], ["create 1-0"], {}, ROOM),
    Row("nothing goes before the new one is ready", [ready(0, OLD), starting(0)], [], {}, ROOM),
    Row("then an old one drains", [ready(0, OLD), ready(0)], [f"mark 0-0 {DRAIN}"], {}, ROOM),
    Row("one at a time", [ready(0, OLD), ready(1, OLD), ready(2, OLD), starting(0)], [], {"replicas": 3}, ROOM),
    Row("without room Auto goes in place", [ready(0, OLD), ready(1, OLD)], [f"mark 0-1 {DRAIN}"], {"replicas": 2}, FULL),
    Row("but never with the last ready replica", [ready(0, OLD)], [], {}, FULL),
    Row("InPlace may take the last one", [ready(0, OLD)], [f"mark 0-0 {DRAIN}"], {"strategy": "InPlace"}, FULL),
    Row("in place: the new one waits in the scheduler's queue for the old one's place", [ready(0, OLD), draining(1, OLD, reason="Rollout", active=2)], ["create 1-0"], {"replicas": 2}, FULL),
    Row("room unknown and one replica: one pod may be pending", [ready(0, OLD)], ["create 1-0"]),
    Row("room unknown and several: in place", [ready(0, OLD), ready(1, OLD)], [f"mark 0-1 {DRAIN}"], {"replicas": 2}),
    Row(
        "the surge pod found no room: Auto goes in place",
        [ready(0, OLD), ready(1, OLD), pending(0, unschedulable_for_s=2)],
        [f"mark 0-1 {DRAIN}"],
        {"replicas": 2},
        FULL,
    ),
    Row(
        "the surge pod found no room: Surge waits",
        [ready(0, OLD), ready(1, OLD), pending(0, unschedulable_for_s=2)],
        [],
        {"replicas": 2, "strategy": "Surge"},
        FULL,
    ),
    Row("an old replica that never served is replaced at once", [ready(0, OLD), starting(1, OLD)], ["delete 0-1"], {"replicas": 2}, ROOM),
    Row("maxUnavailable counts replicas that are not ready", [ready(0, OLD), ready(1, OLD), starting(2, OLD, started=True)], [f"mark 0-2 {DRAIN}"], {"replicas": 3}, FULL),
    Row("the surge is there already: a second one is not made", [ready(0), ready(1), ready(0, OLD), starting(1, OLD, started=True), starting(2, OLD, started=True)], [f"mark 0-2 {DRAIN}"], {"replicas": 4}, ROOM),
    # --- what goes wrong -------------------------------------------------------------------------------------------------
    Row("a failed pod is replaced in the next slot", [failed(0)], ["create 1-1"], {}, ROOM),
    Row("the second failure within 10 minutes waits", [failed(0), failed(1)], [], {}, ROOM),
    Row("failed pods are kept 10 minutes", [ready(2), failed(0, ago_s=601), failed(1, ago_s=100)], ["delete 1-0"]),
    Row("an unschedulable replica stops further ones", [ready(0), pending(1, unschedulable_for_s=5)], [], {"replicas": 4}),
    Row("two unschedulable ones are one too many", [ready(0), pending(1, unschedulable_for_s=60), pending(2, unschedulable_for_s=60)], ["delete 1-2"], {"replicas": 3}),
    Row("without room one more waits in the scheduler's queue", [ready(0)], ["create 1-1"], {"replicas": 4}, FULL),
    Row("room unknown: no more at once than have found a node", [ready(0), ready(1)], ["create 1-2", "create 1-3"], {"replicas": 8}),
    Row("with a node autoscaler all are made", [pending(0, unschedulable_for_s=60)], ["create 1-1", "create 1-2"], {"replicas": 3}, {"node_autoscaler": True}),
    Row("a spec that cannot be rendered creates nothing and takes nothing", [ready(0, OLD)], [], {"replicas": 2}, {"rendered": Problem("EngineArgumentUnknown", "no such argument")}),
    Row("the model name belongs to an older fleet: no replicas", [ready(0)], [f"mark 1-0 {DRAIN}"], {}, {"name_owner": "models/elder"}),
    # --- registration ------------------------------------------------------------------------------------------------------
    Row(
        "the gate opens when all ready gateways know it",
        [Replica(a_pod(0, conditions={"ContainersReady": ready(0).pod.conditions["Ready"]}), None)],
        ["mark 1-0 gateway-registered=True"],
        {},
        {"gateways": (a_gateway(uid_1_0=(True, 0)),)},
    ),
    Row("no gateway knows it: it waits", [Replica(a_pod(0, conditions={"ContainersReady": ready(0).pod.conditions["Ready"]}), None)]),
    Row(
        "without a gateway in the release the gate opens",
        [Replica(a_pod(0, conditions={"ContainersReady": ready(0).pod.conditions["Ready"]}), None)],
        ["mark 1-0 gateway-registered=True"],
        {},
        {"gateway_expected": False, "gateways": ()},
    ),
    # --- orphans --------------------------------------------------------------------------------------------------------------
    Row("an orphan of the same revision is adopted", [], ["AdoptReplica 1-0"], {}, {**ROOM, "orphans": (a_pod(0, owner_uid=""),), "taken": frozenset({f"chat-{NEW}-0"})}),
    Row("one with another token is not", [], ["create 1-1"], {}, {**ROOM, "orphans": (a_pod(0, owner_uid="", token_sha256="ff"),), "taken": frozenset({f"chat-{NEW}-0"})}),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.story)
def test_plan(row: Row) -> None:
    seen = observed(*row.replicas, fleet=a_fleet(**row.fleet), **row.facts)
    assert said(plan(seen, NOW)) == sorted(row.expected)


def test_every_step_says_why() -> None:
    for row in ROWS:
        seen = observed(*row.replicas, fleet=a_fleet(**row.fleet), **row.facts)
        for step in plan(seen, NOW).steps:
            assert step.reason
            assert len(step.message) > 10, f"{row.story}: {step}"


def test_the_clock_of_a_drain_is_the_condition() -> None:
    """A plan wakes up when waiting for gateways ends, and then at drainTimeout."""
    early = observed(
        ready(0), draining(1, state="SERVING", for_s=2), gateways=(a_gateway(uid_1_1=(True, 0)),)
    )
    assert plan(early, NOW).wake_at == NOW + 3
    late = observed(ready(0), draining(1, active=2, for_s=100))
    assert plan(late, NOW).wake_at == NOW + 800


def test_the_end_of_a_drain_wakes_the_plan_while_its_label_is_refused() -> None:
    made = plan(observed(ready(0), draining(1, active=3, for_s=100, labelled=False)), NOW)
    assert made.wake_at == NOW + 800
    (over,) = plan(observed(ready(0), draining(1, active=3, for_s=901, labelled=False)), NOW).steps
    assert over.message == "drainTimeout of 900 s is over with 3 requests left (0 in flight at the gateways)"


def test_a_replica_whose_time_is_over_gets_a_short_grace_and_an_idle_one_its_own() -> None:
    (over,) = plan(observed(ready(0), draining(1, active=3, for_s=901)), NOW).steps
    (idle,) = plan(observed(ready(0), draining(1, state="DRAINED")), NOW).steps
    assert isinstance(over, DeleteReplica)
    assert isinstance(idle, DeleteReplica)
    assert (over.grace_s, idle.grace_s) == (30, None)


def test_a_replica_taken_back_into_service_waits_for_all_gateways_again() -> None:
    conditions = {
        "ContainersReady": ready(0).pod.conditions["Ready"],
        "moefleet.io/Draining": false("Resumed", NOW - 2),
    }
    back = Replica(a_pod(0, conditions=conditions), ReplicaLoad("SERVING"))
    gateways = (a_gateway(uid_1_0=(True, 0)), a_gateway("gateway-1"))
    assert plan(observed(back, gateways=gateways), NOW).steps == ()
    assert len(plan(observed(back, gateways=gateways), NOW + 9).steps) == 1, "one is enough after 10 s"


def test_unschedulable_replicas_that_are_taken_back_are_not_made_again() -> None:
    stuck = [pending(slot, unschedulable_for_s=60) for slot in range(3)]
    seen = observed(ready(3), *stuck, fleet=a_fleet(replicas=4), capacity=Capacity(2, 4, 4))
    assert Counter(type(s).__name__ for s in plan(seen, NOW).steps) == {"DeleteReplica": 2}


# --- how many ------------------------------------------------------------------------------------------------------


def wanted(fleet: Fleet, decision: Decision | None, *replicas: Replica) -> tuple[int, str | None]:
    seen: Observed = observed(*replicas, fleet=fleet, decision=decision)
    target = plan(seen, NOW).target
    return target.replicas, target.limited.reason if target.limited else None


@pytest.mark.parametrize(
    ("story", "fleet", "decision", "expected"),
    [
        ("Automatic follows the decision", {"mode": "Automatic"}, 3, (3, None)),
        ("never above maxReplicas", {"mode": "Automatic"}, 30, (8, "AtMaximum")),
        ("never below minReplicas", {"mode": "Automatic", "min_replicas": 2}, 1, (2, "AtMinimum")),
        ("unknown holds the last target", {"mode": "Automatic", "status": {"desiredReplicas": 5}}, None, (5, None)),
        ("unknown without a status keeps what lives", {"mode": "Automatic"}, None, (2, None)),
        ("a fleet that may sleep sleeps", {"mode": "Automatic", "may_sleep": True}, 0, (0, None)),
        ("one that may not stays awake", {"mode": "Automatic"}, 0, (1, "AtMinimum")),
        ("asleep and unknown stays asleep", {"mode": "Automatic", "may_sleep": True, "status": {"desiredReplicas": 0}}, None, (0, None)),
        ("Advisory does not act", {"mode": "Advisory", "status": {"desiredReplicas": 2}}, 7, (2, None)),
        ("Advisory wakes a fleet that slept", {"mode": "Advisory", "status": {"desiredReplicas": 0}}, 0, (1, "AtMinimum")),
        ("External is spec.replicas", {"replicas": 4}, 7, (4, None)),
        ("External is bounded, too", {"replicas": 20}, None, (8, "AtMaximum")),
        ("External may sleep", {"replicas": 0}, None, (0, None)),
    ],
)  # fmt: skip
def test_target(
    story: str, fleet: dict[str, Any], decision: int | None, expected: tuple[int, str | None]
) -> None:
    made = Decision(decision, "DemandSteady", "a test") if decision is not None else None
    assert wanted(a_fleet(**fleet), made, ready(0), ready(1)) == expected, story


def test_rendered_pods_get_their_slot() -> None:
    (step,) = plan(observed(fleet=a_fleet(), rendered=a_rendered(), **ROOM), NOW).steps
    assert isinstance(step, CreateReplica)
    assert step.body["metadata"]["name"] == step.name == f"chat-{NEW}-0"
    assert step.body["metadata"]["labels"]["moefleet.io/slot"] == "0"
