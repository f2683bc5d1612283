"""Whole rollouts, step by step in a tiny world: what users of other systems complain about does not happen here.

Numbers 36 to 48 are those of the complaints in decision 0012.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from moefleet_operator import names
from moefleet_operator.planning.observed import Capacity, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.revisions import PastRevision
from moefleet_operator.planning.steps import DeleteReplica, MarkConditions
from moefleet_testing.builders import (
    NOW,
    OLD,
    a_fleet,
    a_gateway,
    a_pod,
    a_rendered,
    false,
    observed,
    pending,
    ready,
    true,
)
from moefleet_testing.rolling import Behaviour, World

A, B, C, D = "aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"
HOUR_S = 3600.0


def done(world: World, revision: str) -> bool:
    return world.ready(revision) == world.fleet.replicas == world.ready() == len(world.pods)


def rolled(world: World, revision: str) -> None:
    world.run(HOUR_S, lambda: done(world, revision))
    assert done(world, revision), world.tell()


# --- a good revision ---------------------------------------------------------------------------------------------------


def test_a_good_revision_is_compared_on_one_replica_and_then_rolls() -> None:
    world = World(A, places=8).steady()
    assert world.verdict(A) == "good"
    world.change(B)
    world.run(60.0)
    assert (world.live(B), world.ready(A)) == (1, 3), (
        "one replica of it and no more until it has proved itself"
    )
    assert world.step() == "Canary", world.tell()
    assert "is compared with 3 older replicas until" in world.why()
    assert world.condition("Ready").startswith("False/RolloutInProgress")
    rolled(world, B)
    assert world.verdict(B) == "good"
    assert world.least_ready == 3
    assert world.created == [B] * 3
    assert world.condition("RolloutHeld").startswith("False")
    assert world.step() == ""


def test_without_traffic_it_is_watched_for_its_window_and_passes() -> None:
    world = World(A, places=8, requests_per_step=0).steady()
    world.change(B)
    world.run(HOUR_S, lambda: world.verdict(B) == "good")
    assert 60.0 <= since_ready(world, B) < 75.0


def test_with_little_traffic_it_is_watched_three_times_as_long_and_no_longer() -> None:
    world = World(A, places=8, requests_per_step=5).steady()
    world.change(B)
    world.run(HOUR_S, lambda: world.ready(B) == 1)
    world.run(10.0)
    world.requests_per_step = 0
    world.run(HOUR_S, lambda: world.verdict(B) == "good")
    assert 180.0 <= since_ready(world, B) < 200.0


def test_a_replica_of_an_older_release_does_not_tell_and_that_refuses_nobody() -> None:
    world = World(A, places=8)
    world.behaviours[A] = Behaviour(silent=True)
    world.steady().change(B)
    rolled(world, B)


def since_ready(world: World, revision: str) -> float:
    first = min(p.ready_at for p in world.pods.values() if p.revision == revision and p.ready_at is not None)
    return world.now - first


# --- a bad one ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason", "words"),
    [
        (Behaviour(failed_share=0.4), "CanaryErrors", "requests failed, before it was 0 of"),
        (Behaviour(tpot_s=0.09), "CanarySlower", "each further token takes 92 ms in the mean of"),
        (Behaviour(ttft_s=1.0), "CanarySlower", "the first token takes 1000 ms in the mean of"),
        (Behaviour(crashes=True), "CanaryCrashes", "restarted 3 times"),
        (Behaviour(never_ready=True), "CanaryNotReady", "not ready 900 s after it had a node"),
        (Behaviour(never_ready=True, loads=True), "CanaryNotReady", "not ready 2100 s after it had a node"),
        (Behaviour(no_image=True), "CanaryNotReady", "not ready 300 s after it had a node"),
    ],
)
@pytest.mark.parametrize("places", [3, 8])
def test_a_bad_revision_is_refused_with_the_numbers_and_the_old_one_goes_on(
    how: Behaviour, reason: str, words: str, places: int
) -> None:
    world = World(A, places=places).steady()
    world.behaviours[B] = how
    world.change(B)
    world.run(HOUR_S, lambda: world.verdict(B) == "refused" and done(world, A))
    assert (world.verdict(B), done(world, A)) == ("refused", True), world.tell()
    assert world.created.count(B) == 1, "one replica was all that it cost"
    assert world.least_ready >= (3 if places == 8 else 2)
    held = world.condition("RolloutHeld")
    assert held.startswith(f"True/{reason}: revision {B} is refused, {A} goes on: "), held
    assert words in held
    assert world.step() == "Undone"
    assert world.condition("Stalled").startswith(f"True/{reason}")
    # Scaling goes on in the last good revision, and nothing of the refused one comes back.
    world.places = 8
    world.scale(5)
    world.run(HOUR_S)
    assert done(world, A), world.tell()
    assert world.created.count(B) == 1
    assert world.condition("RolloutHeld") == held, (
        "the numbers stay, although nothing of it is left to measure"
    )


@pytest.mark.parametrize("places", [3, 8])
def test_what_the_api_server_refuses_keeps_no_place_from_what_it_takes(places: int) -> None:
    world = World(A, places=places).steady()
    world.behaviours[B] = Behaviour(forbidden=True)
    world.change(B)
    world.run(HOUR_S, lambda: world.verdict(B) == "refused" and done(world, A))
    assert world.condition("RolloutHeld").startswith(
        f"True/PodRefused: revision {B} is refused, {A} goes on: CreateReplica"
    )
    assert world.least_ready >= (3 if places == 8 else 2)
    del world.pods[f"chat-{A}-0"]
    world.run(120.0)
    assert done(world, A), "one that is lost is made again"
    world.change(C)
    rolled(world, C)


def test_a_refused_revision_heals_with_the_next_change() -> None:
    world = refused(B)
    world.change(C)
    rolled(world, C)
    assert world.condition("RolloutHeld").startswith("False")


def test_going_back_heals_at_once() -> None:
    world = refused(B)
    world.created.clear()
    world.change(A)
    world.run(5.0)
    assert done(world, A)
    assert world.condition("RolloutHeld").startswith("False")
    assert world.created == []


def test_one_who_goes_away_from_a_refused_revision_and_comes_back_gets_another_try() -> None:
    world = refused(B)
    world.change(A)
    world.run(60.0)
    world.behaviours[B] = Behaviour()
    world.change(B)
    world.run(5.0)
    assert world.verdict(B) == ""
    rolled(world, B)


def refused(revision: str) -> World:
    world = World(A, places=8).steady()
    world.behaviours[revision] = Behaviour(failed_share=0.5)
    world.change(revision)
    world.run(HOUR_S, lambda: world.verdict(revision) == "refused" and done(world, A))
    return world


def test_a_fleet_that_slept_through_a_bad_change_wakes_with_the_last_good_one() -> None:
    world = World(A, places=8).steady()
    world.scale(0)
    world.run(60.0)
    world.behaviours[B] = Behaviour(crashes=True)
    world.change(B)
    world.run(60.0)
    world.scale(1)
    rolled(world, A)
    assert world.condition("RolloutHeld").startswith("True/CanaryCrashes")


def test_a_spec_that_cannot_be_rendered_does_not_let_the_fleet_die_out() -> None:
    world = World(A, places=8).steady()
    world.unrenderable = True
    world.scale(5)
    rolled(world, A)
    assert world.condition("Stalled").startswith("True/EngineArgumentUnknown")


def test_where_nothing_is_kept_to_go_back_to_a_bad_canary_holds_the_rollout() -> None:
    """The operator was upgraded in the middle of a rollout: what the old replicas were made of was never written down."""
    world = World(A, places=8).steady()
    world.history.clear()
    world.behaviours[B] = Behaviour(failed_share=0.5)
    world.change(B)
    world.run(HOUR_S)
    assert (world.verdict(B), world.live(B), world.ready(A)) == ("", 1, 3)
    assert world.condition("RolloutHeld").startswith("True/CanaryErrors")
    assert "no earlier revision is kept" in world.condition("RolloutHeld")
    world.change(C)
    rolled(world, C)


def test_the_first_revision_of_a_fleet_has_nothing_to_go_back_to_and_is_tried_on() -> None:
    world = World(A, places=8)
    world.behaviours[A] = Behaviour(crashes=True)
    world.run(HOUR_S)
    assert (world.verdict(A), world.live(A)) == ("", 3)
    world.behaviours[A] = Behaviour()
    rolled(world, A)


def test_history_is_bounded_and_keeps_what_is_needed() -> None:
    world = World(A, places=8).steady()
    for n in range(14):
        world.behaviours[f"{n:08x}"] = Behaviour(failed_share=0.5)
        world.change(f"{n:08x}")
        world.run(HOUR_S, lambda n=n: world.verdict(f"{n:08x}") == "refused" and done(world, A))  # type: ignore[misc]
    assert len(world.history) == 10
    assert world.verdict(A) == "good", "the oldest of all, and the only one that can serve"


# --- 36, 37, 47: no spare GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "least"), [("Auto", 2), ("InPlace", 2)])
def test_36_a_cluster_without_a_spare_gpu_rolls_in_place(strategy: str, least: int) -> None:
    world = World(A, places=3, strategy=strategy).steady()
    world.change(B)
    rolled(world, B)
    assert world.least_ready == least
    reason = "there is no room for more, and maxUnavailable is 1"
    if strategy == "InPlace":
        reason = "rollout.strategy is InPlace"
    assert ("InPlace", f"chat-{A}-2 goes first, because {reason}") in world.stands


def test_36_max_unavailable_is_honoured_and_used() -> None:
    world = World(A, places=4, wanted=4, max_unavailable=2).steady()
    world.change(B)
    rolled(world, B)
    assert world.least_ready == 2


@pytest.mark.parametrize("wanted", [3, 4])
def test_36_what_drains_to_make_room_for_a_canary_is_not_taken_back_into_its_place(wanted: int) -> None:
    world = World(A, places=3, strategy="InPlace", max_unavailable=2).steady()
    for pod in world.pods.values():
        pod.streams = 2
    world.change(B)
    world.run(30.0, lambda: world.live(B) == 1)
    world.scale(wanted)
    # The world itself checks that a plan comes to rest.
    world.run(300.0)
    assert world.ready(A) >= 1
    for pod in world.pods.values():
        pod.streams = 0
        pod.state = "DRAINED" if pod.draining else pod.state
    world.places = 4
    rolled(world, B)


def test_36_one_that_was_taken_back_a_moment_ago_is_not_drained_again() -> None:
    """Seed 228 of the simulation: ten times a second, while a canary waited for a node."""
    gate = names.GATE_REGISTERED
    serves = a_pod(
        1, OLD, {"PodScheduled": true(), "ContainersReady": true(), "Ready": false(), gate: false()}
    )
    seen = observed(
        pending(0, unschedulable_for_s=5),
        ready(0, OLD),
        Replica(serves, ReplicaLoad("SERVING")),
        fleet=a_fleet(replicas=3, strategy="InPlace"),
        history=(PastRevision("chat-old", "uid-old", OLD, 1, "good"),),
        good=a_rendered(OLD),
        capacity=Capacity(0, 3, 3),
    )
    assert [s for s in plan(seen, NOW).steps if s.reason == "Rollout"] == []


def test_36_in_place_with_one_replica_a_revision_that_fails_its_requests_is_taken_back() -> None:
    world = World(A, places=1, wanted=1, strategy="InPlace").steady()
    world.run(120.0)
    world.behaviours[B] = Behaviour(failed_share=0.5)
    world.change(B)
    world.run(HOUR_S, lambda: world.verdict(B) == "refused")
    assert "failed, and 10 % is allowed" in world.condition("RolloutHeld")
    world.run(300.0, lambda: world.ready(A) == 1)
    assert (world.ready(A), world.live(B)) == (1, 0), world.tell()


def test_36_surge_never_ends_an_old_one_first() -> None:
    world = World(A, places=3, strategy="Surge").steady()
    world.change(B)
    world.run(HOUR_S)
    assert world.ready(A) == 3
    assert world.condition("RolloutHeld").startswith("True/NoRoomForSurge")
    world.places = 4
    rolled(world, B)
    assert world.least_ready == 3


def test_37_the_last_replica_waits_for_a_gpu_and_says_so_and_goes_on_by_itself() -> None:
    world = World(A, places=1, wanted=1).steady()
    world.change(B)
    world.run(HOUR_S)
    assert world.ready(A) == 1
    assert world.step() == "Wait"
    assert world.condition("RolloutHeld").startswith(
        "True/LastReadyReplica: 1 of 1 replica is ready and there is no room"
    )
    world.places = 2
    rolled(world, B)
    assert world.least_ready == 1


def test_37_a_quota_counts_as_room() -> None:
    world = World(A, places=8).steady()
    world.quotas = [
        {
            "metadata": {"name": "gpus"},
            "status": {"hard": {"requests.nvidia.com/gpu": "24"}, "used": {"requests.nvidia.com/gpu": "24"}},
        }
    ]
    world.change(B)
    world.run(5.0)
    why = f"chat-{A}-2 goes first, because ResourceQuota gpus leaves none, and maxUnavailable is 1"
    assert ("InPlace", why) in world.stands
    world.run(HOUR_S)
    assert (world.ready(), world.live(B)) == (2, 0), "the quota has not let go of it yet"
    assert world.condition("CapacityLimited").startswith("True/QuotaExceeded: by ResourceQuota gpus")
    world.quotas[0]["status"]["used"] = {"requests.nvidia.com/gpu": "16"}
    world.run(60.0, lambda: world.live(B) == 1)
    assert world.live(B) == 1


def test_47_a_rollout_never_needs_more_than_one_place_more() -> None:
    world = World(A, places=20, wanted=6).steady()
    world.change(B)
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(world.pods))
        return done(world, B)

    world.run(2 * HOUR_S, look)
    assert done(world, B), world.tell()
    assert (most, world.least_ready) == (7, 6)


# --- 38: ready is what the gateways send requests to -----------------------------------------------------------------------


def test_38_the_last_old_replica_stays_until_the_gateways_know_the_new_one() -> None:
    gate = "moefleet.io/gateway-registered"
    serves = a_pod(0, conditions={"ContainersReady": true(), "Ready": false(), gate: false()})
    new = Replica(serves, ReplicaLoad("SERVING"))
    for gateways in ((), (a_gateway(),), (a_gateway("g"), a_gateway("h", uid_1_0=(True, 0)))):
        made = plan(observed(ready(0, OLD), new, gateways=gateways, capacity=Capacity(4, 8, 8)), NOW)
        assert [s for s in made.steps if s.name == f"chat-{OLD}-0"] == []
    registered = {**serves.conditions, "Ready": true(), gate: true()}
    known = Replica(replace(serves, conditions=registered), ReplicaLoad("SERVING"))
    made = plan(observed(ready(0, OLD), known, capacity=Capacity(4, 8, 8)), NOW)
    assert [s.reason for s in made.steps if s.name == f"chat-{OLD}-0"] == ["Rollout"]


# --- 39, 40: edits while a rollout is on its way ---------------------------------------------------------------------------


def test_39_three_quick_edits_restart_nobody() -> None:
    world = World(A, places=4).steady()
    for revision in (B, C, D):
        world.change(revision)
        world.run(5.0)
    rolled(world, D)
    assert world.least_ready == 3
    assert world.deleted.count(A) == 3
    assert world.created.count(D) == 3
    assert world.created.count(B) <= 1
    assert world.created.count(C) <= 1


@pytest.mark.parametrize("places", [3, 4])
def test_39_an_edit_joins_a_rollout_that_is_half_way(places: int) -> None:
    world = World(A, places=places).steady()
    world.change(B)
    world.run(HOUR_S, lambda: world.ready(B) == 2)
    world.change(C)
    world.run(120.0, lambda: world.ready(C) == 1)
    assert world.ready(C) == 1, world.tell()
    assert world.ready() - world.ready(C) >= 2, "what serves goes on serving while the newest is compared"
    rolled(world, C)
    assert world.least_ready >= (3 if places == 4 else 2)


def test_39_the_place_of_the_canary_goes_to_the_newest_revision() -> None:
    world = World(A, places=4).steady()
    world.change(B)
    world.run(HOUR_S, lambda: world.step() == "Canary")
    world.change(C)
    world.run(HOUR_S, lambda: world.ready(C) == 1)
    assert (world.ready(A), world.live(B)) == (3, 0), (
        "the old canary gave way, not those that had proved themselves"
    )


def test_40_a_revert_uses_what_still_runs() -> None:
    world = World(A, places=4, max_unavailable=1).steady()
    world.change(B)
    world.run(HOUR_S, lambda: world.ready(B) >= 1 and world.ready(A) == 2)
    before = {p.uid for p in world.pods.values() if p.revision == A and p.ready}
    world.created.clear()
    world.change(A)
    rolled(world, A)
    assert before <= {p.uid for p in world.pods.values()}
    assert world.created == [A] * (3 - len(before))
    assert world.least_ready >= 2


def test_40_one_that_was_taken_back_is_not_ready_before_its_gate_is_open() -> None:
    """Seed 1618 of the simulation: the kubelet still called it Ready, and the only other replica went."""
    gate = names.GATE_REGISTERED
    back = {"ContainersReady": true(), "Ready": true(), gate: false("Draining")}
    for conditions, goes in ((back, []), ({**back, gate: true()}, ["Rollout"])):
        resumed = Replica(a_pod(0, conditions=conditions), ReplicaLoad("SERVING"))
        made = plan(observed(resumed, ready(0, OLD), capacity=Capacity(4, 8, 8)), NOW)
        assert [s.reason for s in made.steps if s.name == f"chat-{OLD}-0"] == goes


def test_40_a_revert_takes_back_replicas_that_still_drain() -> None:
    world = World(A, places=3).steady()
    for pod in world.pods.values():
        pod.streams = 2
    world.change(B)
    world.run(HOUR_S, lambda: any(p.draining for p in world.pods.values()))
    world.change(A)
    world.run(30.0)
    assert world.ready(A) == 3
    assert world.deleted.count(A) == 0


def test_40_a_revert_makes_no_cold_replica_while_a_warm_one_drains() -> None:
    """Seeds 138, 199, 231, 235 and 457 of the simulation."""
    world = World(A, places=8).steady()
    for pod in world.pods.values():
        pod.streams = 2
    world.change(B)
    world.run(HOUR_S, lambda: world.ready(B) == world.ready() == 3)
    assert sum(p.draining for p in world.pods.values()) == 3
    world.created.clear()
    world.change(A)
    rolled(world, A)
    assert world.created == []
    assert world.least_ready == 3


# --- 41, 44: what the operator remembers --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, True])
def test_41_44_an_operator_that_forgets_everything_again_and_again_goes_on_where_it_was(bad: bool) -> None:
    """Every two minutes another process leads; annotations are dropped by somebody all the while."""
    world = World(A, places=8).steady()
    if bad:
        world.behaviours[B] = Behaviour(failed_share=0.5)
    world.change(B)
    end = world.now + 2 * HOUR_S
    goal = A if bad else B
    while world.now < end and not (done(world, goal) and world.verdict(B) in ("good", "refused")):
        world.forget()
        for revision in world.history.values():
            revision["metadata"].pop("annotations", None)
        world.run(120.0)
    assert done(world, goal), world.tell()
    assert world.created == ([B] if bad else [B] * 3)
    assert world.least_ready == 3
    if bad:
        assert world.condition("RolloutHeld").startswith("True/CanaryErrors"), "the reason is no annotation"


def test_44_all_old_replicas_bad_is_no_reason_to_wait() -> None:
    world = World(A, places=3).steady()
    world.behaviours[A] = Behaviour(crashes=True)
    world.run(60.0)
    assert world.ready() == 0
    world.created.clear()
    world.change(B)
    world.run(60.0)
    assert world.ready(B) == 3, world.tell()


# --- 42, 43, 45, 46, 48 ----------------------------------------------------------------------------------------------------


def test_42_old_replicas_that_serve_are_no_success() -> None:
    world = World(A, places=8).steady()
    world.change(B)
    world.run(5.0)
    world.run(HOUR_S, lambda: not world.condition("Ready").startswith("False"))
    assert done(world, B), "Ready only when the wanted revision serves"


def test_43_an_edit_that_changes_no_pod_takes_no_replica() -> None:
    world = World(A, places=8, wanted=6).steady()
    world.steps.clear()
    world.change(A)
    world.run(HOUR_S)
    assert world.steps == []


def test_45_broken_old_replicas_spend_no_budget() -> None:
    world = World(A, places=3).steady()
    world.behaviours[B] = Behaviour(start_s=5.0)
    broken = sorted(world.pods)[0]
    world.behaviours[A] = Behaviour()
    world.pods[broken].ready_at, world.pods[broken].restarts = None, 0
    world.behaviours[A] = Behaviour(start_s=10 * HOUR_S)
    world.change(B)
    world.run(10.0)
    gone = [s for s in world.steps if isinstance(s, DeleteReplica) and s.name == broken]
    assert gone, "it made way at once"
    rolled(world, B)
    assert world.least_ready >= 1


def test_48_streams_end_before_their_replica_goes() -> None:
    world = World(A, places=3).steady()
    for pod in world.pods.values():
        pod.streams = 1
    world.change(B)
    world.run(120.0)
    drained = [s for s in world.steps if isinstance(s, MarkConditions) and s.reason == "Rollout"]
    assert len({s.name for s in drained}) == 1, "one at a time"
    assert world.deleted == []
    # The world itself refuses to delete a pod with streams in it.
    while not done(world, B):
        for pod in world.pods.values():
            if pod.draining and pod.streams:
                pod.streams, pod.state = 0, "DRAINED"
        world.run(60.0)


def test_evicted_replicas_are_no_fault_of_the_revision() -> None:
    world = World(A, places=8).steady()
    world.change(B)
    for _ in range(5):
        world.run(HOUR_S, lambda: world.ready(B) == 1)
        canary = next(p for p in world.pods.values() if p.revision == B)
        # Its node goes, and the pod with it.
        del world.pods[canary.name]
    assert world.verdict(B) == ""
    rolled(world, B)
