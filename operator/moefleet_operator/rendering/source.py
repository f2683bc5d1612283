"""`model.source`: what the pod needs so that the runtime finds the weights there, or can fetch them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

from moefleet_weights.failing import WeightsError
from moefleet_weights.source import (
    CLAIMS_FOLDER,
    IMAGE_FOLDER,
    BucketSource,
    FileSource,
    HubSource,
    OciSource,
    PvcSource,
    WebSource,
    parse_source,
)

from moefleet_operator.api import MoEFleetSpec, conditions

from .problem import Problem

# Where the runtime keeps what it fetches.
CACHE_FOLDER: Final = "/var/lib/moefleet/cache"


@dataclass(frozen=True, slots=True)
class Mount:
    """Of the volume `model`; None: the weights are in the image, or nobody needs them."""

    path: str = ""
    # As in core/v1 Volume, without its name.
    volume: Mapping[str, Any] | None = None
    # The runtime writes there what it fetches.
    fetches: bool = False


def mount_for(spec: MoEFleetSpec) -> Mount | Problem:
    """Only what is certainly wrong is refused here; whether the weights are there, the replica finds out."""
    model = spec.model
    try:
        source = parse_source(model.source)
    except WeightsError as error:
        return Problem(conditions.MODEL_SOURCE_MISSING, f"spec.{error.message}")
    # It needs no checkpoint: a rehearsal must not pull 236 GB.
    simulated = spec.engine.type == "Simulated"
    match source:
        case FileSource():
            return Mount()
        case PvcSource(claim):
            volume = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            return Mount(f"{CLAIMS_FOLDER}/{claim}", volume)
        case OciSource(image):
            # Pulled by the kubelet, with the pod's pull secrets.
            return Mount() if simulated else Mount(IMAGE_FOLDER, {"image": {"reference": image}})
        case HubSource() | BucketSource() | WebSource():
            if simulated:
                return Mount()
            return Mount(CACHE_FOLDER, model.cache.volume if model.cache else {"emptyDir": {}}, fetches=True)
        case _:
            assert_never(source)
