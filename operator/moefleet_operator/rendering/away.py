"""A wish to be elsewhere: outside of the revision, because it is about one pod at one moment and not about the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of 1 to 100, against the user's own wishes: a node that has just failed is a bad place, whatever speaks for it.
WEIGHT = 100


def away_from(pod: Mapping[str, Any], nodes: Sequence[str]) -> Mapping[str, Any]:
    """The pod with a preference for any node but these; the scheduler still takes one of them where there is no other."""
    if not nodes:
        return pod
    spec: Mapping[str, Any] = pod["spec"]
    affinity: Mapping[str, Any] = spec.get("affinity") or {}
    node: Mapping[str, Any] = affinity.get("nodeAffinity") or {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    wished = [
        *(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()),
        {"weight": WEIGHT, "preference": {"matchFields": fields}},
    ]
    wishes = {**affinity, "nodeAffinity": {**node, "preferredDuringSchedulingIgnoredDuringExecution": wished}}
    return {**pod, "spec": {**spec, "affinity": wishes}}
