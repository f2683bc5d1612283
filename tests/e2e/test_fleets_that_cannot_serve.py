"""Valid manifests that the world cannot serve: each says why and what to do, hurts nobody else, and heals with its cause."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from moefleet_e2e.fleets import merged, simulated, tiny
from moefleet_e2e.kube import Kube, Object, condition, eventually, ready, reason
from moefleet_e2e.release import Release
from moefleet_e2e.streams import fine, streaming


@dataclass(frozen=True)
class Broken:
    name: str
    reason: str
    # What the message has to name, so that a reader knows what to change.
    says: str
    make: Any
    wrong: dict[str, Any]


# So that all of them fit the node when they are healed.
FOUR = {"replica": {"gpus": 4}}
BROKEN = (
    Broken("typo", "EngineArgumentUnknown", r"speeed.*speed", simulated, {"engine": {"args": {"speeed": 1}}}),
    Broken(
        "nofile",
        "ModelSourceMissing",
        r"model\.source.*/models/absent",
        tiny,
        {"model": {"source": "file:///models/absent"}},
    ),
    # A folder without a checkpoint, and one with a broken one.
    Broken("nomodel", "ModelSourceMissing", r"/etc/config\.json", tiny, {"model": {"source": "file:///etc"}}),
    Broken(
        "badfile",
        "ModelUnreadable",
        r"/broken/config\.json",
        tiny,
        {
            "model": {"source": "file:///broken"},
            "replica": {
                "podTemplate": {
                    "volumes": [{"name": "broken", "configMap": {"name": "broken"}}],
                    "volumeMounts": [{"name": "broken", "mountPath": "/broken"}],
                }
            },
        },
    ),
    Broken(
        "noimage",
        "ImagePullFailed",
        r"moefleet\.test/absent:dev.*check engine\.image",
        simulated,
        {"engine": {"image": "moefleet.test/absent:dev"}},
    ),
    Broken(
        "giant",
        "NoNodeFits",
        r"replica\.gpus|gpuResource|add nodes",
        simulated,
        {"replica": {"gpuResource": "nvidia.com/gpu-of-tomorrow"}},
    ),
    Broken(
        "picky", "NoNodeFits", r"match|product", simulated, {"replica": {"gpuProducts": ["NVIDIA-B9000"]}}
    ),
)


async def test_each_says_why_hurts_nobody_and_heals(kube: Kube, release: Release) -> None:
    broken = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "broken", "namespace": kube.namespace},
        "data": {"config.json": '{"architectures": ["Deepseek'},
    }
    kube.apply(simulated("well", kube.namespace), broken)
    await ready(kube, "well")
    before = lives(kube, "well")
    async with streaming(release.gateway_address(), f"{kube.namespace}/well", per_s=1) as load:
        kube.apply(*(b.make(b.name, kube.namespace, **merged(FOUR, b.wrong)) for b in BROKEN))
        await asyncio.gather(*(told(kube, b) for b in BROKEN))
        assert condition(kube.get("moefleet", "well"), "Ready") == "True"
        kube.apply(*(b.make(b.name, kube.namespace, **FOUR) for b in BROKEN))
        await asyncio.gather(*(ready(kube, b.name) for b in BROKEN))
    fine(load)
    assert lives(kube, "well") == before


async def told(kube: Kube, broken: Broken) -> None:
    """Ready=False with the reason, a message that names what to change, and an Event of the same reason."""
    await eventually(
        f"{broken.name} to say {broken.reason}",
        lambda: reason(kube.get("moefleet", broken.name), "Ready") == broken.reason,
        180,
        lambda: kube.explain(broken.name),
    )
    found = kube.get("moefleet", broken.name) or {}
    said = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
    assert said["status"] == "False", said
    assert re.search(broken.says, said["message"]), said
    await eventually(
        f"an Event of {broken.name} with {broken.reason}",
        lambda: [e for e in kube.events(broken.name) if e.get("reason") == broken.reason],
        30,
        lambda: kube.explain(broken.name),
    )


def lives(kube: Kube, fleet: str) -> list[tuple[str, int]]:
    """Replicas and how often their processes began again."""
    return [(p["metadata"]["uid"], restarts(p)) for p in kube.replicas(fleet)]


def restarts(pod: Object) -> int:
    return sum(c["restartCount"] for c in pod["status"].get("containerStatuses", []))


async def test_a_second_fleet_cannot_take_a_model_name(kube: Kube) -> None:
    kube.apply(simulated("first", kube.namespace, model={"name": "shared"}))
    await ready(kube, "first")
    kube.apply(simulated("second", kube.namespace, model={"name": "shared"}))
    await eventually(
        "ModelNameTaken",
        lambda: reason(kube.get("moefleet", "second"), "Ready") == "ModelNameTaken",
        60,
        lambda: kube.explain("second"),
    )
    assert condition(kube.get("moefleet", "first"), "Ready") == "True"
    assert not kube.replicas("second")
    kube.delete("moefleet", "first")
    await ready(kube, "second")
