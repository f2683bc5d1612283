"""One fleet of two replicas through all that may happen to it while streams run: none fails and none is cut."""

from __future__ import annotations

import time

import pytest
from moefleet_e2e.fleets import simulated
from moefleet_e2e.harm import kill_pods
from moefleet_e2e.kube import Kube, Object, eventually, ready
from moefleet_e2e.release import Release
from moefleet_e2e.streams import LONG_TOKENS, ended_after, fine, streaming

FLEET = "steady"


@pytest.fixture(scope="module")
def fleet(module_kube: Kube) -> Kube:
    module_kube.apply(simulated(FLEET, module_kube.namespace, replicas=2, scaling={"mode": "External"}))
    return module_kube


def uids(pods: list[Object]) -> set[str]:
    return {p["metadata"]["uid"] for p in pods}


def revisions(pods: list[Object]) -> set[str]:
    return {p["metadata"]["labels"]["moefleet.io/revision"] for p in pods}


def rolled(kube: Kube, old: set[str]) -> bool:
    pods = kube.replicas(FLEET)
    return len(pods) == 2 and len(kube.ready_replicas(FLEET)) == 2 and not (revisions(pods) & old)


async def test_a_spec_change_rolls_every_replica_under_load(fleet: Kube, release: Release) -> None:
    await ready(fleet, FLEET, 2)
    old = revisions(fleet.replicas(FLEET))
    async with streaming(release.gateway_address(), f"{fleet.namespace}/{FLEET}") as load:
        fleet.patch("moefleet", FLEET, {"spec": {"engine": {"limits": {"maxBatchSize": 512}}}})
        await eventually(
            "both replicas of the new revision", lambda: rolled(fleet, old), 240, lambda: fleet.explain(FLEET)
        )
    fine(load)


async def test_the_leader_is_killed_in_the_middle_of_a_rollout(fleet: Kube, release: Release) -> None:
    await ready(fleet, FLEET, 2)
    old = revisions(fleet.replicas(FLEET))
    async with streaming(release.gateway_address(), f"{fleet.namespace}/{FLEET}") as load:
        fleet.patch("moefleet", FLEET, {"spec": {"engine": {"limits": {"maxBatchSize": 256}}}})
        await eventually(
            "the first new replica",
            lambda: revisions(fleet.replicas(FLEET)) - old,
            60,
            lambda: fleet.explain(FLEET),
        )
        leader = release.leader()
        assert leader
        kill_pods(release.kube, leader)
        assert revisions(fleet.replicas(FLEET)) & old, "the rollout was over before the leader was killed"
        await eventually("the rollout to end", lambda: rolled(fleet, old), 300, lambda: fleet.explain(FLEET))
    fine(load)
    slots = [p["metadata"]["labels"]["moefleet.io/slot"] for p in fleet.replicas(FLEET)]
    assert len(slots) == len(set(slots)), "a slot was given twice"


async def test_both_operators_are_killed_while_a_replica_drains(fleet: Kube, release: Release) -> None:
    await ready(fleet, FLEET, 2)
    both = uids(fleet.replicas(FLEET))
    model = f"{fleet.namespace}/{FLEET}"
    async with streaming(
        release.gateway_address(), model, per_s=1, output_tokens=LONG_TOKENS, running=8
    ) as load:
        fleet.kubectl("scale", "moefleet", FLEET, "--replicas=1")
        (drains,) = await eventually(
            "a replica that drains", lambda: fleet.draining(FLEET), 60, lambda: fleet.explain(FLEET)
        )
        kill_pods(release.kube, *(p["metadata"]["name"] for p in release.pods("operator")))
        killed_at = time.monotonic()
        assert uids(fleet.replicas(FLEET)) == both, "the drain was over before the operators were killed"
        await eventually(
            "the drain to end",
            lambda: uids(fleet.replicas(FLEET)) == both - {drains["metadata"]["uid"]},
            240,
            lambda: fleet.explain(FLEET),
        )
    fine(load)
    assert ended_after(load, killed_at, drains["metadata"]["uid"]), (
        "no stream ran in it when they were killed"
    )


async def test_a_chart_upgrade_cuts_no_stream(fleet: Kube, release: Release) -> None:
    await ready(fleet, FLEET, 1)
    pods = uids(fleet.replicas(FLEET))
    async with streaming(release.gateway_address(), f"{fleet.namespace}/{FLEET}") as load:
        await release.replace_pods("upgraded")
    fine(load)
    assert uids(fleet.replicas(FLEET)) == pods, "upgrading the chart rolled a replica"
