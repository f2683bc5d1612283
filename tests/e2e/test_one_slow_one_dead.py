"""Three replicas, one slow and one dead: a gateway that chooses by outstanding work serves; one that takes turns would not."""

from __future__ import annotations

import asyncio

from moefleet_e2e.fleets import simulated
from moefleet_e2e.harm import kill_children, signal_children
from moefleet_e2e.kube import Kube, eventually, is_ready, ready
from moefleet_e2e.release import Release
from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End

REQUESTS = 80
PER_S = 4
# A start takes longer than the pause between two kills, so the dead one never serves again while the load runs.
START_S = 6
KILL_EVERY_S = 1.0


async def test_picks_avoid_the_slow_and_the_dead(kube: Kube, release: Release) -> None:
    kube.apply(
        simulated(
            "lame",
            kube.namespace,
            replicas=3,
            scaling={"mode": "External"},
            engine={"args": {"startSeconds": START_S}},
        )
    )
    await ready(kube, "lame", 3)
    slow, dead, well = (p["metadata"] for p in kube.ready_replicas("lame"))

    # Slow: the engine makes no step for the 20 s of the load, less than the 60 s after which it would count as hung.
    await asyncio.to_thread(signal_children, kube, slow["name"], "SIGSTOP")
    # Dead: its engine host dies, the server answers for it and exits, the kubelet starts it again, and so on.
    await asyncio.to_thread(kill_children, kube, dead["name"])
    dying = asyncio.create_task(again_and_again(kube, dead["name"]))
    load = Load(release.gateway_address(), f"{kube.namespace}/lame")
    running = asyncio.create_task(load.run([Arrival(i / PER_S, 200, 8) for i in range(REQUESTS)]))
    try:
        await eventually("all requests to be sent", lambda: load.begun == REQUESTS, REQUESTS / PER_S + 30)
        # Nothing took it out of service: whoever takes turns would have sent it its share.
        assert is_ready(kube.get("pod", slow["name"]) or {"metadata": {}})
    finally:
        await asyncio.to_thread(signal_children, kube, slow["name"], "SIGCONT")
        await running
        dying.cancel()

    assert [o for o in load.outcomes if o.end is not End.OK] == []
    by_pod = [sum(o.pod_uid == pod["uid"] for o in load.outcomes) for pod in (slow, dead, well)]
    print("requests by replica (slow, dead, well):", by_pod)
    assert sum(by_pod) == REQUESTS
    # Taking turns gives the slow one a third, or a half when the dead one is left out.
    assert by_pod[0] < REQUESTS / 4
    assert by_pod[1] == 0
    assert by_pod[2] > REQUESTS / 2


async def again_and_again(kube: Kube, pod: str) -> None:
    while True:
        await asyncio.sleep(KILL_EVERY_S)
        await asyncio.to_thread(kill_children, kube, pod)
