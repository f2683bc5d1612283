"""Three replicas, one slow and one dead: a gateway that chooses by outstanding work serves; one that takes turns would not."""

from __future__ import annotations

import asyncio
import contextlib

from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import CommandError, Kube, eventually
from moefleet_e2e.release import Release
from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End

REQUESTS = 60


async def test_picks_avoid_the_slow_and_the_dead(kube: Kube, release: Release) -> None:
    kube.apply(simulated("lame", kube.namespace, replicas=3, scaling={"mode": "External"}))
    await eventually(
        "three ready", lambda: len(kube.ready_replicas("lame")) == 3, 180, lambda: kube.explain("lame")
    )
    slow, dead, well = kube.ready_replicas("lame")

    # The dead one: its engine host is killed, the server answers for it and exits, the kubelet starts it again, and so on
    # until it backs off. Nothing runs in it yet: what is shown here is that nothing is sent to it.
    # The slow one: its engine host is stopped for most of each second, as a replica with a throttled GPU would look.
    lame = [
        asyncio.create_task(in_pod(kube, slow["metadata"]["name"], LIMP)),
        asyncio.create_task(again_and_again(kube, dead["metadata"]["name"], DIE)),
    ]
    await eventually(
        "the gateway to see it die",
        lambda: len(kube.ready_replicas("lame")) == 2,
        60,
        lambda: kube.explain("lame"),
    )
    load = Load(release.gateway_address(), f"{kube.namespace}/lame")
    await load.run([Arrival(i / 4, 200, 40) for i in range(REQUESTS)])
    for task in lame:
        task.cancel()
    assert [o for o in load.outcomes if o.end is not End.OK] == []
    by_pod = {
        p["metadata"]["uid"]: sum(o.pod_uid == p["metadata"]["uid"] for o in load.outcomes)
        for p in (slow, dead, well)
    }
    print("requests by replica (slow, dead, well):", list(by_pod.values()))
    # Round robin gives the slow one a third.
    assert by_pod[slow["metadata"]["uid"]] < REQUESTS / 4
    assert by_pod[well["metadata"]["uid"]] > REQUESTS / 2


# Every process of the container but PID 1 (which cannot be stopped from inside) and the script itself.
OTHERS = """
import os, pathlib, signal, time
def others():
    return [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and int(p.name) not in (1, os.getpid())]
def send(what):
    for pid in others():
        try: os.kill(pid, what)
        except ProcessLookupError: pass
"""
LIMP = (
    OTHERS
    + """
end = time.time() + 40
while time.time() < end:
    send(signal.SIGSTOP); time.sleep(0.8); send(signal.SIGCONT); time.sleep(0.2)
"""
)
DIE = OTHERS + "send(signal.SIGKILL)"


async def again_and_again(kube: Kube, pod: str, script: str) -> None:
    while True:
        await in_pod(kube, pod, script)
        await asyncio.sleep(1)


async def in_pod(kube: Kube, pod: str, script: str) -> None:
    with contextlib.suppress(CommandError):  # the container that is killed takes the exec with it
        await asyncio.to_thread(kube.kubectl, "exec", pod, "--", "python3", "-c", script, limit_s=120)
