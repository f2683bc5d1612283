"""Which changes of a spec need new pods: exactly those that change this hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import EngineSpec, ModelSpec, MoEFleetSpec, ReplicaSpec

# Raised only by a decision note, when pods rendered by an older operator must not go on. Everything that a release may
# change freely (labels, probes, grace, defaults, our own environment variables) is outside of the hash, so that an
# upgrade of the chart replaces no replica.
RENDERING = 1


def revision_inputs(spec: MoEFleetSpec) -> dict[str, Any]:
    """What is hashed: what the user wrote, without values that equal our defaults (a default may change in a release)."""
    replica = _chosen(spec.replica)
    if "gpuProducts" in replica:
        # A set: another order is the same wish.
        replica["gpuProducts"] = sorted(replica["gpuProducts"])
    return {
        "rendering": RENDERING,
        "model": _chosen(spec.model),
        "engine": _chosen(spec.engine),
        "replica": replica,
    }


def revision(spec: MoEFleetSpec) -> str:
    canonical = json.dumps(revision_inputs(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[: names.REVISION_CHARS]


def _chosen(part: ModelSpec | EngineSpec | ReplicaSpec) -> dict[str, Any]:
    return part.model_dump(by_alias=True, exclude_defaults=True, exclude_none=True, mode="json")
