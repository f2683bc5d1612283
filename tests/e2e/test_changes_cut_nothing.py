"""Spec changes, killed operators, evictions and chart upgrades, each while streams run: none fails and none is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import CommandError, Kube, Object, condition, eventually, reason
from moefleet_e2e.release import Release
from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End


@asynccontextmanager
async def streaming(release: Release, model: str, seconds: int = 600) -> AsyncIterator[Load]:
    """Two requests a second, each a stream of a few seconds, for as long as the block runs; then all of them end."""
    load = Load(release.gateway_address(), model)
    task = asyncio.create_task(load.run([Arrival(i / 2, 200, 80) for i in range(seconds * 2)]))
    try:
        await eventually("streams to run", lambda: len(load.outcomes) >= 2, 60)
        yield load
    finally:
        load.stop()
        await task


def fine(load: Load) -> None:
    assert [o for o in load.outcomes if o.end is not End.OK] == []
    assert len(load.outcomes) > 5, "too little ran to show anything"


def revisions(pods: list[Object]) -> set[str]:
    return {p["metadata"]["labels"]["moefleet.io/revision"] for p in pods}


async def ready(kube: Kube, name: str, replicas: int) -> None:
    await eventually(
        f"{replicas} ready replicas of {name}",
        lambda: len(kube.ready_replicas(name)) == replicas,
        180,
        lambda: kube.explain(name),
    )


def rolled(kube: Kube, name: str, old: set[str], replicas: int) -> bool:
    pods = kube.replicas(name)
    return (
        len(pods) == replicas and len(kube.ready_replicas(name)) == replicas and not (revisions(pods) & old)
    )


async def test_a_spec_change_rolls_every_replica_under_load(kube: Kube, release: Release) -> None:
    kube.apply(simulated("roll", kube.namespace, replicas=2, scaling={"mode": "External"}))
    await ready(kube, "roll", 2)
    old = revisions(kube.replicas("roll"))
    async with streaming(release, f"{kube.namespace}/roll") as load:
        kube.patch("moefleet", "roll", {"spec": {"engine": {"limits": {"maxBatchSize": 512}}}})
        await eventually(
            "both replicas of the new revision",
            lambda: rolled(kube, "roll", old, 2),
            240,
            lambda: kube.explain("roll"),
        )
    fine(load)


async def test_the_leader_is_killed_in_the_middle_of_a_rollout(kube: Kube, release: Release) -> None:
    kube.apply(simulated("widow", kube.namespace, replicas=2, scaling={"mode": "External"}))
    await ready(kube, "widow", 2)
    old = revisions(kube.replicas("widow"))
    async with streaming(release, f"{kube.namespace}/widow") as load:
        kube.patch("moefleet", "widow", {"spec": {"engine": {"limits": {"maxBatchSize": 512}}}})
        await eventually(
            "the first new replica",
            lambda: revisions(kube.replicas("widow")) - old,
            60,
            lambda: kube.explain("widow"),
        )
        leader = release.leader()
        assert leader
        release.kube.kubectl("delete", "pod", leader, "--grace-period=0", "--force")
        await eventually(
            "the rollout to end", lambda: rolled(kube, "widow", old, 2), 300, lambda: kube.explain("widow")
        )
    fine(load)
    slots = [p["metadata"]["labels"]["moefleet.io/slot"] for p in kube.replicas("widow")]
    assert len(slots) == len(set(slots)), "a slot was given twice"


@pytest.mark.parametrize("mode", ["External", "Automatic", "Advisory"])
async def test_an_eviction_waits_for_the_budget_and_then_for_the_streams(
    mode: str, kube: Kube, release: Release
) -> None:
    name = f"evict-{mode.lower()}"
    changes: Object = {"scaling": {"mode": mode, "minReplicas": 2, "maxReplicas": 3}}
    if mode == "External":
        changes["replicas"] = 2
    kube.apply(simulated(name, kube.namespace, **changes))
    await ready(kube, name, 2)
    async with streaming(release, f"{kube.namespace}/{name}") as load:
        budget = kube.get("pdb", name) or {}
        assert budget["spec"]["minAvailable"] == 1
        await eventually(
            "the budget to be counted",
            lambda: (kube.get("pdb", name) or {})["status"].get("disruptionsAllowed") == 1,
            60,
        )
        first, second = (p["metadata"]["name"] for p in kube.replicas(name))
        evict(kube, first)
        with pytest.raises(CommandError, match="disruption budget"):
            evict(kube, second)
        await eventually(
            "a replacement", lambda: len(kube.ready_replicas(name)) == 2, 180, lambda: kube.explain(name)
        )
    fine(load)


def evict(kube: Kube, pod: str) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": kube.namespace},
    }
    kube.kubectl(
        "create",
        "--raw",
        f"/api/v1/namespaces/{kube.namespace}/pods/{pod}/eviction",
        "-f",
        "-",
        stdin=json.dumps(body),
    )


async def test_a_second_fleet_cannot_take_a_model_name(kube: Kube) -> None:
    kube.apply(simulated("first", kube.namespace, model={"name": "shared"}))
    await ready(kube, "first", 1)
    kube.apply(simulated("second", kube.namespace, model={"name": "shared"}))
    await eventually(
        "ModelNameTaken",
        lambda: reason(kube.get("moefleet", "second"), "Ready") == "ModelNameTaken",
        60,
        lambda: kube.explain("second"),
    )
    assert condition(kube.get("moefleet", "first"), "Ready") == "True"
    kube.delete("moefleet", "first")
    await eventually(
        "healed",
        lambda: condition(kube.get("moefleet", "second"), "Ready") == "True",
        180,
        lambda: kube.explain("second"),
    )


async def test_a_fleet_that_the_world_cannot_serve_says_why_and_heals(kube: Kube) -> None:
    kube.apply(
        simulated("typo", kube.namespace, engine={"args": {"speeed": 1}}),
        simulated(
            "nofile",
            kube.namespace,
            engine={"type": "Torch", "args": None},
            model={"source": "file:///models/absent"},
        ),
        simulated("giant", kube.namespace, replica={"gpuResource": "nvidia.com/gpu-of-tomorrow"}),
        simulated("well", kube.namespace),
    )
    await ready(kube, "well", 1)
    for name in ("typo", "nofile", "giant"):

        def told(name: str = name) -> bool:
            found = kube.get("moefleet", name)
            return condition(found, "Ready") == "False" and reason(found, "Ready") not in (
                None,
                "ReplicasStarting",
            )

        await eventually(f"{name} to say why", told, 120, lambda name=name: kube.explain(name))  # type: ignore[misc]
        print(name, reason(kube.get("moefleet", name), "Ready"))
    kube.apply(simulated("typo", kube.namespace))
    await ready(kube, "typo", 1)


async def test_a_chart_upgrade_cuts_no_stream(kube: Kube, release: Release) -> None:
    kube.apply(simulated("keep", kube.namespace))
    await ready(kube, "keep", 1)
    pods = {p["metadata"]["uid"] for p in kube.replicas("keep")}
    async with streaming(release, f"{kube.namespace}/keep") as load:
        before = {p["metadata"]["name"] for p in release.pods("gateway")}
        release.values = {
            "gateway": {"podAnnotations": {"e2e": "upgraded"}},
            "operator": {"podAnnotations": {"e2e": "upgraded"}},
        }
        await asyncio.to_thread(release.upgrade)
        await eventually(
            "new gateway pods",
            lambda: not before & {p["metadata"]["name"] for p in release.pods("gateway")},
            120,
        )
    fine(load)
    assert {p["metadata"]["uid"] for p in kube.replicas("keep")} == pods, (
        "upgrading the chart rolled a replica"
    )
