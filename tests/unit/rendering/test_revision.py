"""What rolls replicas and what does not. The hashes are pinned: a release that changes one restarts every fleet."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.api import MoEFleet
from moefleet_operator.rendering.revision import revision
from moefleet_testing.builders import a_resource

# Written once; changed only together with RENDERING and a decision note.
PINNED = {
    "plain": ({}, "4a60270f"),
    "torch": (
        {"engine": {"type": "Torch", "image": "torch:1", "args": {"blocks": 64}}, "replica": {"gpus": 0}},
        "99591152",
    ),
}


def of(**spec: Any) -> str:
    return revision(a_resource(**spec).spec)


@pytest.mark.parametrize("name", PINNED)
def test_hashes_stay_the_same_across_releases(name: str) -> None:
    spec, expected = PINNED[name]
    assert of(**spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"name": "other", "source": "file:///models/tiny"}},
        {"model": {"name": "tiny", "source": "file:///models/tiny-2"}},
        {"engine": {"type": "Simulated", "image": "runtime:2"}},
        {"engine": {"type": "Simulated", "image": "runtime:1", "args": {"speed": 2}}},
        {"model": {"name": "tiny", "source": "file:///models/tiny", "cache": {"volume": {"emptyDir": {}}}}},
        {"model": {"name": "tiny", "source": "file:///models/tiny", "credentials": {"name": "hub"}}},
        {"replica": {"gpus": 4}},
        {"replica": {"gpus": 8, "podTemplate": {"env": [{"name": "A", "value": "b"}]}}},
        {"replica": {"gpus": 8, "sharedMemory": "32Gi"}},
    ],
)
def test_what_needs_a_restart_is_another_revision(spec: dict[str, Any]) -> None:
    assert of(**spec) != of()


@pytest.mark.parametrize(
    "spec",
    [
        {"scaling": {"minReplicas": 2, "maxReplicas": 9}},
        {"limits": {"streamDuration": "5m"}},
        {"rollout": {"drainTimeout": "1h"}},
        {"pricing": {"gpuHourCost": "14"}},
        # Written out, but equal to the default.
        {"engine": {"type": "Simulated", "image": "runtime:1", "precision": "Auto", "args": {}}},
    ],
)
def test_what_needs_none_is_the_same_revision(spec: dict[str, Any]) -> None:
    assert of(**spec) == of()


def test_the_order_of_products_is_no_difference() -> None:
    one = of(replica={"gpus": 8, "gpuProducts": ["A", "B"]})
    assert one == of(replica={"gpus": 8, "gpuProducts": ["B", "A"]})


def test_a_fleet_made_again_has_the_same_revision() -> None:
    first, second = a_resource(), a_resource()
    other = MoEFleet.parse({"metadata": {"name": "chat", "uid": "another"}, "spec": first.spec.to_json()})
    assert revision(first.spec) == revision(second.spec) == revision(other.spec)
