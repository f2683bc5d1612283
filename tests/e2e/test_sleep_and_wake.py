"""Nobody calls, the fleet sleeps; the chart is upgraded, two hundred call at once, and the one that they woke answers all."""

from __future__ import annotations

from datetime import datetime

from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import Kube, Object, eventually, ready, reason
from moefleet_e2e.release import Release
from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End

REQUESTS = 200
START_S = 20


def cold_start_s(pod: Object) -> float:
    """From its creation to Ready, in whole seconds as the API server keeps them."""
    at = next(c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == "Ready")
    return (
        datetime.fromisoformat(at) - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    ).total_seconds()


async def test_two_hundred_calls_wake_a_sleeping_fleet_once_and_none_is_lost(
    kube: Kube, release: Release
) -> None:
    kube.apply(
        simulated(
            "nap",
            kube.namespace,
            engine={"args": {"speed": 1.0, "startSeconds": START_S}},
            scaling={"idle": {"scaleToZeroAfter": "10s"}, "maxReplicas": 1},
            limits={"hold": "120s"},
        )
    )
    await ready(kube, "nap")
    await eventually(
        "it sleeps",
        lambda: not kube.replicas("nap") and reason(kube.get("moefleet", "nap"), "Available") == "Asleep",
        240,
        lambda: kube.explain("nap"),
    )

    # Nobody who runs now has ever seen this fleet awake.
    await release.replace_pods("upgraded while all sleep")
    assert not kube.replicas("nap"), "an upgrade woke the fleet"

    load = Load(release.gateway_address(), f"{kube.namespace}/nap")
    await load.run([Arrival(0.0, 100, 8) for _ in range(REQUESTS)])
    assert [(o.code, o.detail) for o in load.outcomes if o.end is not End.OK] == []
    assert len({o.pod_uid for o in load.outcomes}) == 1
    # Tokens flow as soon as the gateways know it, a moment before its pod is Ready.
    await ready(kube, "nap")
    (pod,) = kube.replicas("nap")
    cold_s = cold_start_s(pod)
    first_s = min(o.ttft_s for o in load.outcomes if o.ttft_s is not None)
    print(f"first token after {first_s:.1f} s, cold start {cold_s:.0f} s, {REQUESTS} held, none lost")
    assert cold_s >= START_S
    # Times of pods are whole seconds. Samples and ticks of 5 s each alone would make it up to 1.5.
    assert first_s < 1.4 * (cold_s + 1.0)
