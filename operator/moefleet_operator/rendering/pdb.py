"""The fleet's PodDisruptionBudget. Always an integer minAvailable: the disruption controller would otherwise read
spec.replicas through /scale, which is not the truth in the modes Automatic and Advisory."""

from __future__ import annotations

from typing import Any

from moefleet_operator import names
from moefleet_operator.api import MoEFleet

from .pod import owner_reference


def render_pdb(fleet: MoEFleet, desired: int) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": names.pdb_name(fleet.metadata.name),
            "namespace": fleet.metadata.namespace,
            "labels": names.child_labels(fleet.metadata.name),
            "ownerReferences": [owner_reference(fleet)],
        },
        "spec": {
            "minAvailable": max(0, desired - fleet.spec.rollout.max_unavailable),
            "selector": {"matchLabels": names.active_labels(fleet.metadata.name)},
            # A replica that does not serve must not keep a node from being emptied. Its grace still covers its streams.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
