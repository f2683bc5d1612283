"""Two real nodes: replicas on both serve, and emptying one moves its replica without a failed request."""

from __future__ import annotations

import time

from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import Kube, Object, eventually, ready, run
from moefleet_e2e.release import Release
from moefleet_e2e.streams import ended_after, fine, streaming


def node(pod: Object) -> str:
    return str(pod["spec"].get("nodeName") or "")


async def test_both_nodes_serve_and_emptying_one_fails_no_request(kube: Kube, release: Release) -> None:
    kube.apply(simulated("pair", kube.namespace, replicas=2, scaling={"mode": "External"}))
    await ready(kube, "pair", 2)
    pods = {p["metadata"]["uid"]: node(p) for p in kube.replicas("pair")}
    assert len(set(pods.values())) == 2, pods
    gateways = {node(p) for p in release.pods("gateway")}
    print("replicas on", sorted(pods.values()), "gateways on", sorted(gateways))

    async with streaming(release.gateway_address(), f"{kube.namespace}/pair") as load:
        await eventually(
            "an answer from each node",
            lambda: {pods[o.pod_uid] for o in load.outcomes if o.pod_uid} == set(pods.values()),
            60,
        )
        # Each node has room for one replica: the one that moves needs the other node's.
        kube.kubectl("scale", "moefleet", "pair", "--replicas=1")
        await eventually(
            "one replica", lambda: len(kube.replicas("pair")) == 1, 120, lambda: kube.explain("pair")
        )
        (left,) = kube.replicas("pair")
        emptied = node(left)
        at = time.monotonic()
        run(
            "kubectl", "drain", emptied, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s",
            limit_s=270,
        )  # fmt: skip
        try:
            await eventually(
                "the replica on the other node",
                lambda: (
                    [node(p) for p in kube.ready_replicas("pair")] == sorted(set(pods.values()) - {emptied})
                ),
                120,
                lambda: kube.explain("pair"),
            )
            await eventually(
                "an answer from there",
                lambda: ended_after(load, at, kube.ready_replicas("pair")[0]["metadata"]["uid"]),
                60,
            )
        finally:
            run("kubectl", "uncordon", emptied)
    fine(load)
    assert ended_after(load, at, left["metadata"]["uid"]), "no stream ran in the replica that moved"
