"""What the world does to replicas, and what the planner does about it: each event, its steps, and what the condition says.

decisions/0013-world-events.md lists every event with its tests; those that planning decides alone are the rows here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.facts import Condition, NodeFacts, Taint, node_facts, pod_facts
from moefleet_operator.planning.leaving import AVOID_MAX, avoid
from moefleet_operator.planning.nodes import (
    CANDIDATE_TAINT,
    GONE,
    GPU_FAILED_AFTER_S,
    NODE_LOST_AFTER_S,
    TAKING,
    NodeSeen,
    Shortage,
    shortage,
    trouble,
)
from moefleet_operator.planning.observed import Capacity, DrainSeen, Observed, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.steps import CreateReplica, DeleteReplica, MarkConditions, Plan
from moefleet_operator.rendering.away import away_from
from moefleet_operator.rendering.problem import Problem
from moefleet_testing.builders import (
    NEW,
    NOW,
    OLD,
    a_fleet,
    a_pod,
    draining,
    failed,
    false,
    observed,
    pending,
    ready,
    starting,
    terminating,
    true,
)

GPU = "nvidia.com/gpu"
ROOM, FULL = Capacity(2, 8, 8), Capacity(0, 8, 8)


def a_node(name: str = "node-0", **changes: Any) -> NodeFacts:
    facts: dict[str, Any] = {
        "name": name, "uid": name, "version": 1, "labels": {}, "allocatable": {GPU: 8000}, "taints": (), "open": True,
    }  # fmt: skip
    return NodeFacts(**{**facts, **changes})


def on(replica: Replica, short: Shortage | None = None, **node: Any) -> Replica:
    return replace(replica, node=NodeSeen(a_node(replica.pod.node, **node), short))


def cordoned(replica: Replica) -> Replica:
    return on(replica, open=False, cordoned=True)


def tainted(replica: Replica, key: str) -> Replica:
    return on(replica, taints=(Taint(key, "", "NoSchedule"),))


def silent(replica: Replica, for_s: float = 90.0, heard: bool = False) -> Replica:
    """On a node that is NotReady; the control plane calls its pods not ready then."""
    conditions = {**replica.pod.conditions, "Ready": false("NodeNotReady")}
    gone = replace(replica, pod=replace(replica.pod, conditions=conditions))
    gone = gone if heard else replace(gone, load=None)
    return on(gone, open=False, unready_since=NOW - for_s)


def short(for_s: float) -> Shortage:
    return Shortage(GPU, 7, 8, for_s)


def unhealthy(replica: Replica) -> Replica:
    return replace(replica, pod=replace(replica.pod, unhealthy=(f"{GPU} GPU-3",)))


def not_ready(replica: Replica) -> Replica:
    conditions = {**replica.pod.conditions, "Ready": false(), "ContainersReady": false()}
    container = replica.pod.container
    assert container is not None
    pod = replace(replica.pod, conditions=conditions, container=replace(container, ready=False))
    return replace(replica, pod=pod)


def ended(replica: Replica, why: str, message: str = "") -> Replica:
    target = Condition("True", why, message, NOW)
    return replace(
        replica,
        pod=replace(replica.pod, conditions={**replica.pod.conditions, names.CONDITION_DISRUPTION: target}),
    )


def crashing(slot: int = 0, restarts: int = 5, **container: Any) -> Replica:
    facts = {"state": "waiting", "reason": "CrashLoopBackOff", "restarts": restarts, **container}
    return starting(slot, **facts)


def said(made: Plan) -> list[str]:
    out = []
    for step in made.steps:
        end = step.name.rsplit("-", 1)[1]
        match step:
            case CreateReplica():
                out.append(f"create {end}")
            case DeleteReplica():
                out.append(f"delete {end}")
            case MarkConditions():
                drains = any(m.type == names.CONDITION_DRAINING and m.status == "True" for m in step.marks)
                out.append(f"drain {end} {step.reason}" if drains else f"mark {end}")
            case _:
                out.append(f"{type(step).__name__} {end}")
    return sorted(out)


def condition(made: Plan, type_: str) -> tuple[str, str]:
    assert made.status is not None
    found = next(c for c in made.status["conditions"] if c["type"] == type_)
    return found["status"], found["reason"]


@dataclass
class Row:
    story: str
    replicas: list[Replica]
    expected: list[str] = field(default_factory=list)
    # Reason of Disrupted=True; empty: it is False.
    disrupted: str = ""
    wanted: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


E = "Eviction"
WITH_ROOM: dict[str, Any] = {"capacity": ROOM}
WITHOUT: dict[str, Any] = {"capacity": FULL}

ROWS = [
    Row("nothing is wrong", [on(ready(0))]),
    # --- cordon ------------------------------------------------------------------------------------------------
    Row("cordoned, with room: another is made first", [cordoned(ready(0))], ["create 1"], "NodeCordoned", facts=WITH_ROOM),
    Row("cordoned, and one still drains elsewhere: it comes back, nothing cold is made", [cordoned(ready(0)), on(draining(1, active=2))], ["CallResume 1"], "NodeCordoned", facts=WITH_ROOM),
    Row("but not one that drains on such a node, too", [cordoned(ready(0)), cordoned(draining(1, active=2))], ["create 2"], "NodeCordoned", facts=WITH_ROOM),
    Row("nothing goes before it is ready", [cordoned(ready(0)), on(starting(1))], [], "NodeCordoned", facts=WITH_ROOM),
    Row("then the one on the cordoned node drains", [cordoned(ready(0)), on(ready(1))], [f"drain 0 {E}"], "NodeCordoned", facts=WITH_ROOM),
    Row("cordoned, without room: it serves on, and it is said", [cordoned(ready(0))], [], "NodeCordoned", facts=WITHOUT),
    Row("with a node autoscaler a pod brings the room", [cordoned(ready(0))], ["create 1"], "NodeCordoned", facts={**WITHOUT, "node_autoscaler": True}),
    Row("two on cordoned nodes: one at a time", [cordoned(ready(0)), cordoned(ready(1))], ["create 2"], "NodeCordoned", 2, WITH_ROOM),
    Row("its load says which of two goes first", [cordoned(ready(0, tokens=900)), cordoned(ready(1, tokens=5)), on(ready(2))], [f"drain 1 {E}"], "NodeCordoned", 2, WITH_ROOM),
    Row("one that never served there starts elsewhere at once", [on(ready(0)), cordoned(starting(1))], ["delete 1"], "NodeCordoned", 2, WITH_ROOM),
    Row("without room it goes on starting where it is", [on(ready(0)), cordoned(starting(1))], [], "NodeCordoned", 2, WITHOUT),
    Row("fewer are wanted: the one on the cordoned node goes", [cordoned(ready(0)), on(ready(1))], [f"drain 0 {E}"], "NodeCordoned", 1, WITH_ROOM),
    Row("uncordoned before anything happened", [on(ready(0)), on(pending(1))], ["delete 1"], "", facts=WITH_ROOM),
    Row("uncordoned while it drains and one is missing: it is taken back", [on(draining(0, state="SERVING", reason=E))], ["mark 0"], "", facts=WITH_ROOM),
    Row("still cordoned: it is not taken back", [cordoned(draining(0, state="DRAINING", active=1, reason=E))], ["create 1"], "NodeCordoned", facts=WITH_ROOM),
    Row("a rollout has the one place beside; what it brings leaves the node anyway", [cordoned(ready(0, OLD)), starting(0)], [], "NodeCordoned", facts=WITH_ROOM),
    # --- nodes that will be taken away ---------------------------------------------------------------------------
    *[Row(f"taint {key}: replaced first", [tainted(ready(0), key)], ["create 1"], reason, facts=WITH_ROOM) for key, (reason, _) in TAKING.items()],
    Row("without room one waits in the scheduler's queue: the node goes in any case", [tainted(ready(0), "ToBeDeletedByClusterAutoscaler")], ["create 1"], "NodeBeingRemoved", facts=WITHOUT),
    Row("but not two", [tainted(ready(0), "karpenter.sh/disrupted"), pending(1, unschedulable_for_s=9)], [], "NodeBeingRemoved", facts=WITHOUT),
    Row("a candidate is no more than a candidate", [tainted(ready(0), CANDIDATE_TAINT)], [], "", facts=WITH_ROOM),
    Row("but when fewer are wanted it goes first", [tainted(ready(0), CANDIDATE_TAINT), on(ready(1))], ["drain 0 ScaleDown"], "", 1, WITH_ROOM),
    # --- nodes that are lost ---------------------------------------------------------------------------------------
    Row("not ready for less than a minute: a kubelet that is started anew", [silent(ready(0), for_s=20)], [], "", facts=WITH_ROOM),
    Row("lost: what is not heard is given up at once", [silent(ready(0))], [f"drain 0 {E}"], "NodeLost", facts=WITH_ROOM),
    Row("and replaced", [silent(draining(0, reason=E, active=2))], ["CallDrain 0", "create 1"], "NodeLost", facts=WITH_ROOM),
    Row("it is heard, so only its kubelet is cut off: another is made first", [silent(ready(0), heard=True), on(ready(1))], ["create 2"], "NodeLost", 2, WITH_ROOM),
    Row("it came back while its place was still empty", [on(draining(0, state="SERVING", reason=E))], ["mark 0"], "", facts=WITH_ROOM),
    Row("it came back after it was replaced: it drains to its end, nothing is there twice", [on(draining(0, state="DRAINED", reason=E, active=0)), on(ready(1))], ["delete 0"], "", facts=WITH_ROOM),
    Row("so many nodes at once: it is the control plane that does not hear them", [silent(ready(0)), silent(ready(1))], [], "NodeLost", 2, {**WITH_ROOM, "nodes_unheard": True}),
    *[Row(f"taint {key}: gone without a minute's wait", [replace(tainted(not_ready(ready(0)), key), load=None)], [f"drain 0 {E}"], "NodeLost", facts=WITH_ROOM) for key in GONE],
    # --- GPUs --------------------------------------------------------------------------------------------------------
    Row("the kubelet calls a GPU of a serving replica unhealthy", [on(unhealthy(ready(0)))], ["create 1"], "GpuFailed", facts=WITH_ROOM),
    Row("the node has fewer GPUs than its pods use", [on(ready(0), short(90))], ["create 1"], "GpuFailed", facts=WITH_ROOM),
    Row("for less than a minute: its device plugin registers", [on(ready(0), short(20))], [], "", facts=WITH_ROOM),
    Row("it does not serve any more: it goes at once", [on(ready(0)), on(unhealthy(not_ready(ready(1))))], [f"drain 1 {E}"], "GpuFailed", 2, WITH_ROOM),
    Row("without room it stays", [on(unhealthy(ready(0)))], [], "GpuFailed", facts=WITHOUT),
    # --- pods that others end ----------------------------------------------------------------------------------------
    Row("preempted: replaced, and it is said by whom", [ended(terminating(0), "PreemptionByScheduler", "preempted by x")], ["create 1"], "Preempted", facts=WITH_ROOM),
    Row("evicted by kubectl drain", [on(ready(0)), ended(terminating(1), "EvictionByEvictionAPI")], ["create 2"], "PodEvicted", 2, WITH_ROOM),
    Row("given up by the control plane", [ended(terminating(0), "DeletionByTaintManager")], ["create 1"], "NodeLost", facts=WITH_ROOM),
    Row("deleted by hand", [terminating(0)], ["create 1"], "PodDeleted", facts=WITH_ROOM),
    Row("evicted by its kubelet", [failed(0)], ["create 1"], "PodEvicted", facts=WITH_ROOM),
    Row("our own drain is no disruption", [on(ready(0)), draining(1, active=1)], [], "", facts=WITH_ROOM),
    # --- specs that are edited ---------------------------------------------------------------------------------------
    Row("edited while one drains: it goes on draining, what is missing is of the new revision", [on(ready(0, OLD)), draining(1, OLD, active=2)], ["create 0"], "", 2, WITH_ROOM),
    Row("and edited back: it is taken back, nothing cold is made", [on(ready(0)), draining(1, active=2)], ["CallResume 1"], "", 2, WITH_ROOM),
    Row("fewer wanted and more again before the drain began to bite", [on(ready(0)), draining(1, state="SERVING", for_s=1)], ["mark 1"], "", 2, WITH_ROOM),
    # --- crash loops -------------------------------------------------------------------------------------------------
    Row("ends again and again on one node while others serve: another node", [on(ready(0)), on(crashing(1))], ["delete 1"], "", 2, WITH_ROOM),
    Row("not before the kubelet has tried a few times", [on(ready(0)), on(crashing(1, restarts=3))], [], "", 2, WITH_ROOM),
    Row("not while its process runs", [on(ready(0)), on(crashing(1, state="running", reason=""))], [], "", 2, WITH_ROOM),
    Row("nowhere else to go", [on(ready(0)), on(crashing(1))], [], "", 2, WITHOUT),
    Row("two at once is no node's fault", [on(ready(0)), on(crashing(1)), on(crashing(2))], [], "", 3, WITH_ROOM),
    Row("nobody of this revision serves: it is the revision's fault", [on(crashing(0))], [], "", 1, WITH_ROOM),
    Row("an image that only this node cannot pull", [on(ready(0)), on(starting(1, state="waiting", reason="ImagePullBackOff"))], ["delete 1"], "", 2, WITH_ROOM),
]  # fmt: skip


def seen(row: Row) -> Observed:
    return observed(*row.replicas, fleet=a_fleet(replicas=row.wanted), **row.facts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.story)
def test_event(row: Row) -> None:
    made = plan(seen(row), NOW)
    assert said(made) == sorted(row.expected)
    expected = ("True", row.disrupted) if row.disrupted else ("False", "NotDisrupted")
    assert condition(made, reasons.DISRUPTED) == expected


def test_what_is_said_names_pod_node_and_cause() -> None:
    made = plan(
        observed(cordoned(ready(0)), cordoned(ready(1)), fleet=a_fleet(replicas=2), capacity=FULL), NOW
    )
    assert made.status is not None
    text = next(c["message"] for c in made.status["conditions"] if c["type"] == "Disrupted")
    assert text == f"chat-{NEW}-0 serves on: node-0 is cordoned; and 1 more replica"
    gone = plan(observed(ended(terminating(0), "PreemptionByScheduler", "preempted by models/big")), NOW)
    assert gone.status is not None
    text = next(c["message"] for c in gone.status["conditions"] if c["type"] == "Disrupted")
    assert text == f"chat-{NEW}-0 ends: preempted by models/big"


@pytest.mark.parametrize("since_s", [0.0, NODE_LOST_AFTER_S - 1])
def test_the_planner_looks_again_when_a_node_will_count_as_lost(since_s: float) -> None:
    made = plan(observed(silent(ready(0), for_s=since_s), capacity=ROOM), NOW)
    assert made.wake_at is not None
    assert made.wake_at <= NOW + NODE_LOST_AFTER_S - since_s
    made = plan(observed(on(ready(0), short(since_s)), capacity=ROOM), NOW)
    assert made.wake_at == NOW + GPU_FAILED_AFTER_S - since_s


# --- quota -----------------------------------------------------------------------------------------------------


def test_a_quota_that_refuses_is_a_limit_of_capacity_with_its_numbers() -> None:
    words = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=16, limited: 16"
    refused = {"create": Problem(reasons.QUOTA_EXCEEDED, f"CreateReplica chat-{NEW}-2: {words}")}
    made = plan(
        observed(on(ready(0)), on(ready(1)), fleet=a_fleet(replicas=3), refused=refused, capacity=ROOM), NOW
    )
    assert condition(made, reasons.CAPACITY_LIMITED) == ("True", "QuotaExceeded")
    assert made.status is not None
    text = next(c["message"] for c in made.status["conditions"] if c["type"] == "CapacityLimited")
    assert words in text
    assert condition(made, reasons.STALLED)[0] == "False", "a quota that is freed heals it"


# --- a fresh node ----------------------------------------------------------------------------------------------


def test_a_replacement_would_rather_not_stand_where_others_failed() -> None:
    there = replace(failed(0), pod=replace(failed(0).pod, node="node-7"))
    made = plan(observed(there, capacity=ROOM), NOW)
    body = next(s.body for s in made.steps if isinstance(s, CreateReplica))
    (wish,) = body["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["preference"]["matchFields"] == [
        {"key": "metadata.name", "operator": "NotIn", "values": ["node-7"]}
    ]
    plain = plan(observed(fleet=a_fleet(replicas=1), capacity=ROOM), NOW)
    assert "affinity" not in next(s.body for s in plain.steps if isinstance(s, CreateReplica))["spec"]


def test_the_wish_is_added_to_those_of_the_user_and_changes_nothing_of_theirs() -> None:
    theirs = {"podAntiAffinity": {"x": 1}, "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"y": 2}, "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}}  # fmt: skip
    pod = {"metadata": {"name": "a"}, "spec": {"affinity": theirs, "containers": []}}
    moved = away_from(pod, ("n1",))
    assert away_from(pod, ()) is pod
    assert theirs["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == [{"weight": 1}]
    found = moved["spec"]["affinity"]
    assert found["podAntiAffinity"] == {"x": 1}
    assert found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {"y": 2}
    assert [
        w["weight"] for w in found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    ] == [1, 100]


def test_few_nodes_are_kept_in_mind_the_newest_failures_first() -> None:
    many = [
        replace(failed(n), pod=replace(failed(n).pod, node=f"node-{n}", created_at=NOW - n)) for n in range(9)
    ]
    assert avoid(observed(*many)) == tuple(f"node-{n}" for n in range(AVOID_MAX))
    assert avoid(observed(on(ready(0)), on(starting(1)))) == ()


# --- clocks ------------------------------------------------------------------------------------------------------


def aged(replica: Replica, oldest_s: float) -> Replica:
    assert replica.load is not None
    return replace(replica, load=replace(replica.load, active=1, oldest_active_s=oldest_s))


@pytest.mark.parametrize(
    ("story", "replica", "expected"),
    [
        ("an hour forward in a drain of 15 minutes: the replica's own clock says 10 s", aged(draining(1, for_s=3600), 10.0), []),
        ("and of one that we have seen begin to drain a minute ago, whatever it says (seed 738)", replace(aged(draining(1, state="SERVING", for_s=3600), 10.0), drain_seen=DrainSeen(60.0, whole=True)), ["CallDrain 1"]),
        ("also when it is not heard", replace(draining(1, for_s=3600), load=None, drain_seen=DrainSeen(60.0, whole=True)), ["CallDrain 1"]),
        ("but not longer than it may", replace(draining(1, for_s=3600, active=1), drain_seen=DrainSeen(901.0, whole=True)), ["delete 1"]),
        ("marked by one whose clock was half an hour behind and who ended before he told it (seed 2873)", replace(draining(1, state="SERVING", for_s=1719, active=9), drain_seen=DrainSeen(0.5, whole=False)), ["CallDrain 1"]),
        ("one that refuses to drain is believed for one drainTimeout", replace(draining(1, state="SERVING", for_s=1719, active=9), drain_seen=DrainSeen(901.0, whole=False)), ["delete 1"]),
        ("its stream has really had its time", aged(draining(1, for_s=3600), 3590.0), ["delete 1"]),
        ("nothing is known of its stream", draining(1, for_s=3600, active=1), ["delete 1"]),
        ("it is not heard", replace(draining(1, for_s=3600), load=None), ["delete 1"]),
        ("an hour back: the drain began in the future and is counted from now", draining(1, for_s=-3600, active=1), ["drain 1 ScaleDown"]),
        ("a few seconds of drift are nothing", draining(1, for_s=-5, active=1), []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_clock_that_is_set_during_a_drain(story: str, replica: Replica, expected: list[str]) -> None:
    made = plan(observed(on(ready(0)), replica), NOW)
    assert said(made) == expected, story


def test_failures_said_to_be_in_the_future_hold_up_no_replacement() -> None:
    ahead = [failed(n, ago_s=-3600.0) for n in range(3)]
    assert "create 3" in said(plan(observed(*ahead, capacity=ROOM), NOW))
    assert "create 3" not in said(plan(observed(*[failed(n, ago_s=5) for n in range(3)], capacity=ROOM), NOW))


def test_a_node_clock_that_is_ahead_does_not_keep_a_replica_from_being_registered() -> None:
    conditions = {"ContainersReady": true(at=NOW + 7200)}
    from moefleet_testing.builders import a_gateway

    gateways = (a_gateway(uid_1_0=(True, 0)), a_gateway("gateway-1"))
    coming = Replica(a_pod(0, conditions=conditions), ReplicaLoad("SERVING"))
    assert said(plan(observed(coming, gateways=gateways), NOW)) == ["mark 0"]


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["sound", "cordoned", "taken", "lost", "heard", "gpu", "new"]), min_size=1, max_size=5),
    wanted=st.integers(1, 5),
    fits=st.sampled_from([None, 0, 1, 3]),
    jump_s=st.sampled_from([0.0, 86_400.0, -86_400.0]),
)  # fmt: skip
def test_never_fewer_ready_than_wanted_by_our_own_doing(
    kinds: list[str], wanted: int, fits: int | None, jump_s: float
) -> None:
    make = {
        "sound": lambda n: on(ready(n)), "cordoned": lambda n: cordoned(ready(n)),
        "taken": lambda n: tainted(ready(n), "karpenter.sh/disrupted"), "lost": lambda n: silent(ready(n)),
        "heard": lambda n: silent(ready(n), heard=True), "gpu": lambda n: on(unhealthy(ready(n))),
        "new": lambda n: on(starting(n)),
    }  # fmt: skip
    replicas = [make[kind](n) for n, kind in enumerate(kinds)]
    found = observed(*replicas, fleet=a_fleet(replicas=wanted), capacity=Capacity(fits, 8, 8))
    made = plan(found, NOW + jump_s)
    gone = {s.name for s in made.steps if isinstance(s, DeleteReplica | MarkConditions)}
    were = [r for r in replicas if r.ready]
    left = [r for r in were if r.name not in gone]
    assert len(left) >= min(wanted, len(were))
    creates = sum(isinstance(s, CreateReplica) for s in made.steps)
    live = sum(1 for r in replicas if r.live and r.name not in gone)
    assert live + creates <= max(wanted + 1, live)


# --- from the API server's JSON ----------------------------------------------------------------------------------


def test_a_node_says_whether_it_is_cordoned_and_since_when_it_is_silent() -> None:
    told = {"type": "Ready", "status": "Unknown", "lastTransitionTime": "2027-01-15T08:00:00Z"}
    facts = node_facts({"spec": {"unschedulable": True}, "status": {"conditions": [told]}})
    assert (facts.open, facts.cordoned, facts.unready_since) == (False, True, NOW)
    assert node_facts({"status": {"conditions": [{**told, "status": "True"}]}}).unready_since is None
    assert node_facts({}).unready_since is None, "a node that has never spoken is new, not lost"


def test_a_pod_says_which_of_its_devices_are_broken() -> None:
    devices = [{"resourceID": "GPU-1", "health": "Healthy"}, {"resourceID": "GPU-2", "health": "Unhealthy"}]
    status = {"containerStatuses": [{"name": "runtime", "allocatedResourcesStatus": [{"name": GPU, "resources": devices}]}]}  # fmt: skip
    assert pod_facts({"status": status}).unhealthy == (f"{GPU} GPU-2",)
    assert pod_facts({"status": {"containerStatuses": [{"name": "runtime"}]}}).unhealthy == ()


def test_devices_are_short_when_the_pods_have_more_than_the_node_has() -> None:
    pod = a_pod(0, requests={"cpu": 4000, GPU: 8000})
    assert shortage(pod, a_node(), {GPU: 8000}, None, NOW) is None
    assert shortage(pod, a_node(allocatable={GPU: 7000}), {GPU: 8000}, NOW - 5, NOW) == Shortage(
        GPU, 7, 8, 5.0
    )
    assert shortage(pod, a_node(allocatable={GPU: 15_000}), {GPU: 16_000}, None, NOW) == Shortage(
        GPU, 15, 16, 0.0
    )
    assert shortage(a_pod(0, requests={"cpu": 4000}), a_node(allocatable={}), {}, None, NOW) is None


def test_the_gravest_of_several_troubles_is_the_one_that_counts() -> None:
    both = NodeSeen(
        a_node(open=False, cordoned=True, unready_since=NOW - 90, taints=(Taint("karpenter.sh/disrupted", "", "NoSchedule"),))
    )  # fmt: skip
    found = trouble(ready(0).pod, both, NOW)
    assert found is not None
    assert (found.reason, found.lost) == ("NodeLost", True)
