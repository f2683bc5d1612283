"""One gateway of two dies without a word: its own streams end with a status that says so, and nobody else notices."""

from __future__ import annotations

import asyncio
import time

from moefleet_e2e.fleets import simulated
from moefleet_e2e.harm import kill_children, kill_first_process
from moefleet_e2e.kube import Kube, Object, eventually, is_ready, ready
from moefleet_e2e.release import Release
from moefleet_e2e.streams import ended_after, fine, streaming
from moefleet_load.stream import End, channel, generate, token_request

# A client's connection attempts to a Service that still lists a dead endpoint: refused, then tried again.
CONNECT_LIMIT_S = 60


def address(pod: Object) -> str:
    """Of Envoy in this very pod: only so is it known which streams go through it."""
    return f"{pod['status']['podIP']}:8080"


def back(release: Release, pod: Object, container: str) -> bool:
    """Whether the container has begun again since `pod` was seen, and the pod serves."""
    found = release.kube.get("pod", pod["metadata"]["name"]) or pod
    return is_ready(found) and restarts(found, container) > restarts(pod, container)


def restarts(pod: Object, container: str) -> int:
    every = pod["status"]["containerStatuses"] + pod["status"]["initContainerStatuses"]
    return next(int(s["restartCount"]) for s in every if s["name"] == container)


async def test_a_killed_envoy_ends_only_its_own_streams(kube: Kube, release: Release) -> None:
    kube.apply(simulated("edge", kube.namespace))
    await ready(kube, "edge")
    model = f"{kube.namespace}/edge"
    dies, lives = release.pods("gateway")
    async with (
        streaming(address(dies), model) as lost,
        streaming(address(lives), model) as kept,
    ):
        lost.stop()
        at = time.monotonic()
        await asyncio.to_thread(kill_children, release.kube, dies["metadata"]["name"], "envoy")
        # A new client, by the Service: one of its two endpoints is gone, the other serves.
        async with channel(release.gateway_address()) as opened:
            await asyncio.wait_for(opened.channel_ready(), CONNECT_LIMIT_S)
            got = await generate(opened, token_request("new", model, 10, 5))
        assert got.end is End.OK, got
        await eventually("the killed gateway to serve again", lambda: back(release, dies, "envoy"), 120)
    fine(kept)
    assert ended_after(kept, at)
    cut = [o for o in lost.outcomes if o.end is not End.OK]
    assert cut, "nothing ran through it"
    assert {o.code for o in cut} <= {"UNAVAILABLE", "INTERNAL"}, cut
    assert all(o.detail for o in cut), cut
    assert all(o.ended_s > at for o in cut), cut


async def test_a_killed_picker_is_noticed_by_no_running_stream(kube: Kube, release: Release) -> None:
    kube.apply(simulated("edge", kube.namespace))
    await ready(kube, "edge")
    model = f"{kube.namespace}/edge"
    pod = release.pods("gateway")[0]
    async with streaming(address(pod), model) as load:
        load.stop()
        # What has begun runs by then: a request whose pick dies with the picker is told so, which is another story.
        await asyncio.sleep(1.0)
        at = time.monotonic()
        kill_first_process(pod, "picker")

        await eventually("the picker to be back", lambda: back(release, pod, "picker"), 120)
        async with channel(address(pod)) as opened:
            got = await generate(opened, token_request("new", model, 10, 5))
        assert got.end is End.OK, got
    assert [o for o in load.outcomes if o.end is not End.OK] == []
    assert ended_after(load, at), "nothing ran when it was killed"
