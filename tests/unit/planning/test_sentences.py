"""What a person reads, whole: the first Event, the conditions, the texts of waiting. And that the reader of texts reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from moefleet_operator.planning.observed import Capacity, Decision, Observed
from moefleet_operator.planning.plan import plan
from moefleet_testing.builders import NOW, OLD, a_fleet, draining, failed, observed, pending, ready, starting
from moefleet_testing.reading import faults

AUTOMATIC = a_fleet(mode="Automatic")
ROOM = Capacity(4, 8, 8)
FULL = Capacity(0, 8, 8)
CRASHED = starting(
    0, state="waiting", reason="CrashLoopBackOff", restarts=1, last_message="Error with code 1"
)


def step(seen: Observed) -> str:
    return plan(seen, NOW).steps[0].message


def said(seen: Observed, condition: str) -> str:
    status = plan(seen, NOW).status
    assert status is not None
    return next(str(c["message"]) for c in status["conditions"] if c["type"] == condition)


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (observed(fleet=AUTOMATIC, capacity=ROOM), "1 replica is wanted and there is none: minReplicas is 1 and nothing is known of the load yet"),
        (observed(fleet=a_fleet(mode="Automatic", min_replicas=3), capacity=ROOM), "3 replicas are wanted and there is none: minReplicas is 3 and nothing is known of the load yet"),
        (observed(ready(0), fleet=a_fleet(mode="Automatic", status={"desiredReplicas": 2}), capacity=ROOM), "2 replicas are wanted and there is 1: nothing is known of the load yet, so 2 replicas stay"),
        (observed(ready(0), fleet=AUTOMATIC, capacity=ROOM, decision=Decision(3, "DemandRose", "work for 2.31 replicas arrives")), "3 replicas are wanted and there is 1: work for 2.31 replicas arrives"),
        (observed(ready(0), ready(1), ready(2)), "1 replica is wanted and there are 3: spec.replicas is 1"),
        (observed(ready(0), fleet=a_fleet(replicas=0)), "no replica is wanted: spec.replicas is 0"),
        (observed(fleet=a_fleet(replicas=None), capacity=ROOM), "1 replica is wanted and there is none: spec.replicas is not set, so 1 replica stays"),
        (observed(ready(0), fleet=a_fleet(mode="Advisory", status={"desiredReplicas": 2}), capacity=ROOM, decision=Decision(5, "DemandRose", "")), "2 replicas are wanted and there is 1: mode Advisory: 2 replicas stay; scaling would take 5"),
        (observed(ready(0, OLD), capacity=ROOM), "revision 11111111: a new replica beside 1 old one"),
        (observed(ready(0, OLD), ready(0)), "revision 11111111 replaces 00000000: 1 of 2 replicas is old, 1 of 1 wanted will be ready meanwhile"),
        (observed(ready(0), draining(1, active=1, for_s=901)), "drainTimeout of 900 s is over with 1 request left (0 in flight at the gateways)"),
        (observed(ready(2), failed(0, ago_s=601), failed(1, ago_s=100)), "it failed 600 s ago; of failed pods the newest 5 are kept for 600 s"),
    ],
)  # fmt: skip
def test_a_step(seen: Observed, sentence: str) -> None:
    assert step(seen) == sentence


@pytest.mark.parametrize(
    ("seen", "condition", "sentence"),
    [
        (observed(ready(0)), "Ready", "1 of 1 replica of revision 11111111 is ready"),
        (observed(ready(0)), "Available", "1 replica is ready, minReplicas is 1"),
        (observed(ready(0)), "ModelReady", "1 replica has loaded the model"),
        (observed(ready(0), ready(1), fleet=a_fleet(replicas=2)), "ModelReady", "2 replicas have loaded the model"),
        (observed(ready(0, OLD), starting(0)), "Ready", "0 of 1 replica of revision 11111111 is ready, 1 is of an older revision"),
        (observed(starting(0)), "Progressing", "0 of 1 replica is ready"),
        (observed(ready(0), draining(1, active=2)), "Progressing", "1 replica finishes its streams, until 2027-01-15T08:14:50Z at the latest"),
        (observed(CRASHED), "Ready", "0 of 1 replica of revision 11111111 is ready: chat-11111111-0: restarted once: Error with code 1"),
        (observed(ready(0), fleet=a_fleet(replicas=3), capacity=FULL), "CapacityLimited", "8 nodes are large enough for a replica, and there is no room for more"),
        (observed(ready(0), fleet=a_fleet(replicas=3), capacity=Capacity(0, 1, 0)), "CapacityLimited", "the only node that matches is too small for one replica; lower replica.gpus or add nodes"),
        (observed(ready(0), fleet=a_fleet(replicas=3), capacity=Capacity(0, 0, 0)), "CapacityLimited", "no node matches the replica's selectors and tolerations; lower replica.gpus or add nodes"),
        (observed(ready(0, OLD), capacity=FULL), "RolloutHeld", "1 of 1 replica is ready and there is no room for more: taking one away would leave none; free GPUs, or allow it with rollout.strategy InPlace"),
        (observed(ready(0), fleet=a_fleet(mode="Automatic", max_replicas=1), decision=Decision(1, "AtMaximum", "4 are needed", 4)), "ScalingLimited", "the load needs 4 replicas, maxReplicas is 1"),
        (observed(ready(0), fleet=AUTOMATIC, decision=Decision(1, "StepLimited", "4 are needed", 4)), "ScalingLimited", "the load needs 4 replicas; at most 1 for now, more when these are ready"),
    ],
)  # fmt: skip
def test_a_condition(seen: Observed, condition: str, sentence: str) -> None:
    assert said(seen, condition) == sentence


def test_unknown_room_is_not_called_no_room() -> None:
    seen = observed(ready(0, OLD), ready(1, OLD), fleet=a_fleet(replicas=2, max_unavailable=0))
    assert "nobody knows whether there is room for more" in said(seen, "RolloutHeld")


def test_pods_that_wait_for_a_node_are_counted() -> None:
    seen = observed(
        ready(0),
        pending(1, unschedulable_for_s=60),
        pending(2, unschedulable_for_s=60),
        fleet=a_fleet(replicas=3),
    )
    assert step(seen) == "2 replicas wait for a node, only 1 should; it never served"


def test_nothing_is_known_is_not_said_when_scaling_spoke() -> None:
    spoke = Decision(None, "DemandUnknown", "1 gateway is silent")
    seen = observed(fleet=AUTOMATIC, capacity=ROOM, decision=spoke)
    assert step(seen) == "1 replica is wanted and there is none: minReplicas is 1 and 1 gateway is silent"
    held = replace(seen, fleet=a_fleet(mode="Automatic", status={"desiredReplicas": 2}))
    assert step(held).endswith("1 gateway is silent, so 2 replicas stay")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("1 replicas live", True),
        ("3 replica is ready", True),
        ("1 ready replicas", True),
        ("1 are wanted", True),
        ("1 of 3 replicas are old", True),
        ("2 of 3 replicas is old", True),
        ("From 1 to 3 replicas: 3 replicas: work", True),
        ("ends with a colon:", True),
        ("1 replica is ready", False),
        ("0 replicas are ready", False),
        ("1 of 3 replicas is old", False),
        ("0 of 1 replica is ready", False),
        ("0 of 1 replica are ready", True),
        ("each carries 1 requests/s, work for 2.31 replicas arrives", False),
    ],
)
def test_the_reader_reads(text: str, wrong: bool) -> None:
    assert bool(faults(text)) is wrong


def test_of_two_that_wait_for_a_node_the_older_revision_goes() -> None:
    """Taken back, the new one would be made again by the rollout and taken back again, every 30 s (seed 4664)."""
    seen = observed(
        ready(0, OLD),
        ready(1, OLD),
        pending(2, OLD, unschedulable_for_s=600),
        pending(0, unschedulable_for_s=60),
        fleet=a_fleet(replicas=3, strategy="Surge"),
        capacity=FULL,
    )
    made = plan(seen, NOW).steps
    assert [(type(s).__name__, s.name) for s in made] == [("DeleteReplica", pending(2, OLD).name)]
