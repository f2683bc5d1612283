"""Evictions while a replica drains, in all three scaling modes: as many as the budget allows, and no stream is cut.

The three fleets go through it side by side: what costs time is waiting for streams to end.
"""

from __future__ import annotations

import asyncio
import time

from moefleet_e2e.fleets import simulated
from moefleet_e2e.harm import evict_together
from moefleet_e2e.kube import Kube, Object, eventually, ready
from moefleet_e2e.release import Release
from moefleet_e2e.streams import LONG_TOKENS, ended_after, fine, streaming

# How a fleet of three replicas is told to be one of two.
BEGIN = {
    "External": {"replicas": 3, "scaling": {"mode": "External", "minReplicas": 1, "maxReplicas": 3}},
    "Automatic": {"scaling": {"mode": "Automatic", "minReplicas": 3, "maxReplicas": 3}},
    "Advisory": {"scaling": {"mode": "Advisory", "minReplicas": 3, "maxReplicas": 3}},
}
TWO = {"spec": {"scaling": {"minReplicas": 2, "maxReplicas": 2}}}


async def test_evictions_during_a_drain_keep_to_the_budget_and_cut_nothing(
    kube: Kube, release: Release
) -> None:
    # 4 GPUs a replica: nine of them, and their replacements, fit the node.
    kube.apply(
        *(
            simulated(mode.lower(), kube.namespace, replica={"gpus": 4}, **changes)
            for mode, changes in BEGIN.items()
        )
    )
    async with asyncio.TaskGroup() as stories:
        for mode in BEGIN:
            stories.create_task(story(kube, release, mode.lower()), name=mode)


async def story(kube: Kube, release: Release, name: str) -> None:
    await ready(kube, name, 3)
    async with streaming(
        release.gateway_address(),
        f"{kube.namespace}/{name}",
        per_s=1,
        output_tokens=LONG_TOKENS,
        running=9,
    ) as load:
        if name == "external":
            kube.kubectl("scale", "moefleet", name, "--replicas=2")
        else:
            kube.patch("moefleet", name, TWO)
        (drains,) = await eventually(
            f"a replica of {name} that drains", lambda: kube.draining(name), 60, lambda: kube.explain(name)
        )
        await eventually(
            f"the budget of {name} to count two replicas",
            lambda: counted(kube.get("pdb", name)) == (1, 1),
            30,
            lambda: str(kube.get("pdb", name)),
        )
        first, second = (p for p in kube.ready_replicas(name) if uid(p) != uid(drains))
        # Both at once: the drained replica is taken back for the first, and with it the budget grows again.
        answers = await asyncio.to_thread(
            evict_together, kube, [p["metadata"]["name"] for p in (first, second)]
        )
        evicted_at = time.monotonic()
        found = kube.get("pod", drains["metadata"]["name"])
        assert found, f"{name}: the draining replica went with streams in it"
        assert uid(found) == uid(drains), f"{name}: the draining replica went with streams in it"
        gone = [pod for pod, refusal in zip((first, second), answers, strict=True) if not refusal]
        if len(gone) == 2:
            # The operator answered the first one before the API server had looked at the second: only with the drained replica
            # back at work was there room for it.
            assert condition(found, "moefleet.io/Draining") == "False", (
                f"{name}: two evictions were allowed while a replica drained: {found['status']['conditions']}"
            )
        else:
            assert len(gone) == 1, f"{name}: of two evictions, one is allowed: {answers}"
            assert "disruption budget" in "".join(answers), answers
        await eventually(
            f"two replicas of {name} without the evicted one",
            lambda: (
                len(kube.ready_replicas(name)) == 2
                and not {uid(p) for p in gone} & set(map(uid, kube.replicas(name)))
            ),
            180,
            lambda: kube.explain(name),
        )
    fine(load)
    for pod in (drains, *gone):
        assert ended_after(load, evicted_at, uid(pod)), f"{name}: no stream ran in {pod['metadata']['name']}"


def counted(budget: Object | None) -> tuple[int, int] | None:
    """minAvailable and the evictions allowed; None while the disruption controller has not seen the newest budget."""
    if budget is None or budget["status"].get("observedGeneration") != budget["metadata"]["generation"]:
        return None
    return budget["spec"]["minAvailable"], budget["status"]["disruptionsAllowed"]


def condition(pod: Object, kind: str) -> str:
    return next((str(c["status"]) for c in pod["status"]["conditions"] if c["type"] == kind), "absent")


def uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])
