"""What people read: conditions with reasons, one sentence with numbers, and no write when nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from moefleet_operator.api import MoEFleet
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.observed import Capacity, Decision, Observed, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.writing import retargets, write_at
from moefleet_operator.rendering.problem import Problem
from moefleet_testing.builders import NOW, OLD, a_fleet, draining, failed, observed, pending, ready, starting

ROOM = Capacity(4, 8, 8)


def conditions(seen: Observed) -> dict[str, str]:
    status = plan(seen, NOW).status
    assert status is not None
    return {c["type"]: f"{c['status']}/{c['reason']}" for c in status["conditions"]}


CRASHED = starting(
    0,
    state="waiting",
    reason="CrashLoopBackOff",
    restarts=3,
    last_message='{"reason": "ModelSourceMissing", "message": "/models/tiny is not a folder"}\n',
)
KILLED = starting(
    0, state="waiting", reason="CrashLoopBackOff", restarts=3, last_message="OOMKilled with code 137"
)
PORT_TAKEN = starting(
    0,
    state="terminated",
    reason="Error",
    message='{"reason": "AddressUnavailable", "message": "listen [::]:8500: Address already in use"}\n',
)
FETCHING = replace(
    starting(0),
    load=ReplicaLoad("FETCHING", message="fetches hf://a/b@main: 37 % of 236 GB, 1.1 GB/s, 2 min left"),
)
FORBIDDEN, UNREACHABLE = (
    starting(
        0,
        state="waiting",
        reason="CrashLoopBackOff",
        restarts=3,
        last_message=f'{{"reason": "{reason}", "message": "s3://b/p"}}',
    )
    for reason in ("ModelSourceForbidden", "ModelSourceUnreachable")
)
LOADED = a_fleet(mode="Automatic", max_replicas=1)
NO_IMAGE = starting(0, state="waiting", reason="ImagePullBackOff", message="not found")


@pytest.mark.parametrize(
    ("story", "seen", "expected"),
    [
        ("all is well", observed(ready(0)), {"Ready": "True/AllReplicasReady", "Available": "True/MinimumReplicasReady", "Progressing": "False/UpToDate", "Reconciling": "False/UpToDate", "Stalled": "False/NotStalled", "ModelReady": "True/ModelLoaded", "CapacityLimited": "False/CapacitySufficient", "ScalingLimited": "False/NotLimited", "RolloutHeld": "False/NotHeld"}),
        ("nothing yet", observed(capacity=ROOM), {"Ready": "False/NoReplicas", "Reconciling": "True/ScalingUp", "ModelReady": "Unknown/ModelUnknown"}),
        ("starting", observed(starting(0)), {"Ready": "False/ReplicasStarting", "Available": "False/NoReplicas", "ModelReady": "False/ModelLoading"}),
        ("weights come over the network", observed(FETCHING), {"Ready": "False/ReplicasStarting", "ModelReady": "False/ModelFetching", "Stalled": "False/NotStalled"}),
        ("the bucket refuses", observed(FORBIDDEN), {"Ready": "False/ModelSourceForbidden", "ModelReady": "False/ModelSourceForbidden", "Stalled": "True/ModelSourceForbidden"}),
        ("the hub is down for a while", observed(UNREACHABLE), {"ModelReady": "False/ModelSourceUnreachable", "Stalled": "False/NotStalled"}),
        ("scaling up while the minimum serves", observed(ready(0), starting(1), fleet=a_fleet(mode="Automatic"), decision=Decision(2, "WorkArrives", "2 are needed")), {"Ready": "True/MinimumReplicasReady", "Reconciling": "True/ScalingUp"}),
        ("a drain", observed(ready(0), draining(1, active=2)), {"Ready": "True/AllReplicasReady", "Progressing": "True/WaitingForDrain"}),
        ("a rollout", observed(ready(0, OLD), starting(0)), {"Ready": "False/RolloutInProgress", "Available": "True/MinimumReplicasReady", "Reconciling": "True/RolloutInProgress"}),
        ("a rollout that is held", observed(ready(0, OLD), capacity=Capacity(0, 8, 8)), {"RolloutHeld": "True/LastReadyReplica", "Ready": "False/LastReadyReplica"}),
        ("the new revision fails", observed(ready(0, OLD), NO_IMAGE), {"RolloutHeld": "True/NewRevisionFails", "Stalled": "True/ImagePullFailed", "Reconciling": "False/ImagePullFailed", "Available": "True/MinimumReplicasReady"}),
        ("the weights are missing: the runtime's last words", observed(CRASHED), {"Ready": "False/ModelSourceMissing", "ModelReady": "False/ModelSourceMissing", "Stalled": "True/ModelSourceMissing"}),
        ("the kernel kills it at its memory limit again and again", observed(KILLED), {"Ready": "False/OutOfMemory", "ModelReady": "False/OutOfMemory", "Stalled": "True/OutOfMemory"}),
        ("a sidecar has its port", observed(PORT_TAKEN), {"Ready": "False/AddressUnavailable", "ModelReady": "Unknown/ModelUnknown", "Stalled": "False/NotStalled"}),
        ("an engine argument is unknown", observed(ready(0, OLD), rendered=Problem("EngineArgumentUnknown", "no argument 'sped'")), {"Stalled": "True/EngineArgumentUnknown", "Available": "True/MinimumReplicasReady"}),
        ("no node is large enough", observed(pending(0, unschedulable_for_s=9), fleet=a_fleet(replicas=2), capacity=Capacity(0, 3, 0)), {"CapacityLimited": "True/NoNodeFits", "Ready": "False/NoNodeFits", "Stalled": "True/NoNodeFits"}),
        ("the only replica finds no node", observed(pending(0, unschedulable_for_s=9), capacity=Capacity(0, 0, 0)), {"CapacityLimited": "True/NoNodeFits", "Ready": "False/NoNodeFits", "Stalled": "True/NoNodeFits"}),
        ("the last replica waits for GPUs", observed(ready(0), pending(1, unschedulable_for_s=9), fleet=a_fleet(replicas=2), capacity=Capacity(0, 3, 3)), {"CapacityLimited": "True/GpusExhausted", "Ready": "False/GpusExhausted", "Stalled": "False/NotStalled"}),
        ("it finds no node, and nodes are not ours to see", observed(pending(0, unschedulable_for_s=9)), {"CapacityLimited": "True/Unschedulable", "Ready": "False/Unschedulable"}),
        ("the scheduler has not looked at it yet", observed(pending(0)), {"CapacityLimited": "False/CapacitySufficient", "Ready": "False/ReplicasStarting"}),
        ("a node autoscaler has a moment", observed(pending(0, unschedulable_for_s=9), node_autoscaler=True), {"CapacityLimited": "False/CapacitySufficient", "Ready": "False/ReplicasStarting"}),
        ("the node autoscaler brings none", observed(pending(0, unschedulable_for_s=31), node_autoscaler=True), {"CapacityLimited": "True/Unschedulable", "Ready": "False/Unschedulable", "Stalled": "False/NotStalled"}),
        ("in place: the new one waits for the place of the one that drains", observed(ready(0, OLD), draining(1, OLD, reason="Rollout"), pending(0, unschedulable_for_s=9), fleet=a_fleet(replicas=2)), {"CapacityLimited": "False/CapacitySufficient", "Ready": "False/RolloutInProgress"}),
        ("Surge: enough old ones serve", observed(ready(0, OLD), pending(0, unschedulable_for_s=9), fleet=a_fleet(strategy="Surge"), capacity=Capacity(0, 3, 3)), {"CapacityLimited": "False/CapacitySufficient", "RolloutHeld": "True/NoRoomForSurge"}),
        ("all GPUs are taken", observed(ready(0), fleet=a_fleet(replicas=2), capacity=Capacity(0, 3, 3)), {"CapacityLimited": "True/GpusExhausted", "Ready": "False/GpusExhausted"}),
        ("the model name is taken", observed(name_owner="models/elder"), {"Ready": "False/ModelNameTaken", "Available": "False/ModelNameTaken", "Stalled": "True/ModelNameTaken"}),
        ("asleep", observed(fleet=a_fleet(mode="Automatic", may_sleep=True), decision=Decision(0, "Idle", "nobody asks")), {"Ready": "True/Asleep", "Available": "False/Asleep", "Reconciling": "False/UpToDate"}),
        ("no gateway", observed(replace(starting(0), pod=replace(ready(0).pod, conditions={k: v for k, v in ready(0).pod.conditions.items() if k == "ContainersReady"})), gateways=()), {"Ready": "False/NoGateway"}),
        ("pods fail one after the other", observed(failed(0), failed(1)), {"Ready": "False/PodEvicted"}),
        ("the API server refuses pods", observed(refused={"create": Problem("PodRefused", "violates PodSecurity")}), {"Ready": "False/PodRefused", "Stalled": "True/PodRefused"}),
        ("the load needs more than maxReplicas", observed(ready(0), fleet=LOADED, decision=Decision(1, "AtMaximum", "4 are needed", 4)), {"ScalingLimited": "True/AtMaximum"}),
        ("the load needs more than may start at once", observed(ready(0), fleet=LOADED, decision=Decision(1, "StepLimited", "12 are needed", 12)), {"ScalingLimited": "True/StepLimited"}),
        ("maxReplicas was lowered, and that is enough", observed(ready(0), fleet=LOADED, decision=Decision(1, "AtMaximum", "maxReplicas is 1")), {"ScalingLimited": "False/NotLimited"}),
        ("the load needs more, but it is not a bound that holds it", observed(ready(0), fleet=LOADED, decision=Decision(1, "DemandUnknown", "1 gateway is silent", 4)), {"ScalingLimited": "False/NotLimited"}),
        ("more is wanted than maxReplicas", observed(*[ready(i) for i in range(8)], fleet=a_fleet(replicas=9)), {"ScalingLimited": "True/AtMaximum"}),
    ],
)  # fmt: skip
def test_conditions(story: str, seen: Observed, expected: dict[str, str]) -> None:
    found = conditions(seen)
    assert {k: found[k] for k in expected} == expected, story


def test_every_reason_is_in_the_vocabulary_and_every_condition_is_written() -> None:
    for _story, seen, _expected in test_conditions.pytestmark[0].args[1]:  # type: ignore[attr-defined]
        for type_, text in conditions(seen).items():
            assert type_ in reasons.CONDITION_TYPES
            assert text.split("/")[1] in reasons.REASONS, text
        assert set(conditions(seen)) == set(reasons.CONDITION_TYPES)


def test_the_status_is_what_the_api_knows() -> None:
    status = plan(
        observed(ready(0), fleet=a_fleet(mode="Automatic"), decision=Decision(1, "Steady", "1")), NOW
    ).status
    assert status is not None
    body = {
        "spec": {"model": {"name": "m", "source": "file:///m"}, "engine": {"image": "i"}},
        "status": status,
    }
    parsed = MoEFleet.parse(body).status
    assert parsed.replicas == parsed.ready_replicas == parsed.desired_replicas == 1
    assert parsed.selector == "moefleet.io/fleet=chat,moefleet.io/active=true"
    assert parsed.to_json() == status


def test_draining_replicas_are_left_out() -> None:
    status = plan(observed(ready(0), draining(1, active=1)), NOW).status
    assert status is not None
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)


def again(seen: Observed, status: Any, later_s: float) -> Any:
    """The next status when this one has been written."""
    return plan(replace(seen, fleet=replace(seen.fleet, status=status)), NOW + later_s).status


def test_a_status_that_was_written_is_not_written_again() -> None:
    seen = observed(ready(0), draining(1, active=2))
    first = plan(seen, NOW).status
    assert first is not None
    second = again(seen, first, 47.0)
    assert second == first, "transition times, decision and messages stay while nothing changes"
    assert write_at(second, first, 0.0, NOW + 47.0) is None


def changed(status: Any, **parts: Any) -> Any:
    return {**status, **parts}


def test_when_a_status_is_written() -> None:
    live = plan(observed(ready(0)), NOW).status
    assert live is not None
    assert write_at(live, {}, 0.0, 100.0) == 100.0, "the first one at once"
    assert write_at(changed(live, desiredReplicas=3), live, 99.9, 100.0) == 100.0, "a new target at once"
    assert write_at(changed(live, readyReplicas=3), live, 99.9, 100.0) == pytest.approx(101.9), "counts: 2 s"
    numbers = changed(live, throughput={"outputTokensPerSecond": 5})
    assert write_at(numbers, live, 99.0, 100.0) == 129.0, "numbers: 30 s"
    assert write_at(live, numbers, 60.0, 100.0) == 100.0, "numbers that are gone are taken out"
    assert retargets(changed(live, desiredReplicas=3), live)
    assert not retargets(changed(live, readyReplicas=3), live)


def test_the_last_decision_keeps_its_moment_until_number_or_reason_change() -> None:
    def at(seconds: float, decision: Decision, status: Any, *replicas: Replica) -> Any:
        fleet = a_fleet(mode="Automatic", status=status)
        return plan(observed(*replicas, fleet=fleet, decision=decision), NOW + seconds).status

    first = at(0, Decision(1, "Steady", "0.9 of 1"), {}, ready(0))
    same = at(60, Decision(1, "Steady", "0.8 of 1"), first, ready(0))
    assert same["scaling"] == first["scaling"]
    up = at(90, Decision(3, "WorkArrives", "2.4 of 1"), same, ready(0))["scaling"]["lastDecision"]
    assert (up["from"], up["to"], up["reason"], up["message"]) == (1, 3, "WorkArrives", "2.4 of 1")


def test_the_condition_says_how_far_a_fetch_is() -> None:
    status = plan(observed(FETCHING), NOW).status
    assert status is not None
    (found,) = (c for c in status["conditions"] if c["type"] == "ModelReady")
    assert found["message"].endswith(": fetches hf://a/b@main: 37 % of 236 GB, 1.1 GB/s, 2 min left")
