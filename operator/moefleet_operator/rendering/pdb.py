"""The fleet's PodDisruptionBudget. Always an integer minAvailable: the disruption controller would otherwise read
spec.replicas through /scale, which is not the truth in the modes Automatic and Advisory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import MoEFleet

from .pod import owner_reference


def render_pdb(fleet: MoEFleet, desired: int, left_out: Iterable[str] = ()) -> dict[str, Any]:
    """`left_out` are the uids of the replicas that drain. They are told in a label, as a hash, for one reason: a pod whose label
    changes so that it leaves a budget's selector wakes no disruption controller (it looks up budgets by the new labels), and
    the budget went on counting a draining replica as a healthy one for as long as nothing else happened: it would have let
    an eviction too many through. Any change of the budget's own object makes it count again."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": names.pdb_name(fleet.metadata.name),
            "namespace": fleet.metadata.namespace,
            "labels": {**names.child_labels(fleet.metadata.name), names.LABEL_LEFT_OUT: _mark(left_out)},
            "ownerReferences": [owner_reference(fleet)],
        },
        "spec": {
            "minAvailable": max(0, desired - fleet.spec.rollout.max_unavailable),
            "selector": {"matchLabels": names.active_labels(fleet.metadata.name)},
            # A replica that does not serve must not keep a node from being emptied. Its grace still covers its streams.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _mark(uids: Iterable[str]) -> str:
    ordered = ",".join(sorted(uids))
    return f"{zlib.crc32(ordered.encode()):08x}" if ordered else "none"
