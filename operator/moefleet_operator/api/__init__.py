"""The resource `MoEFleet` (moefleet.io/v1alpha1): its types, its conditions and reasons, and what is generated from them.

Here belong the pydantic models, the words of status, durations and decimals as text, and the generators of the CRD and of
the chart's values schema. Parsing ignores fields that it does not know: newer API servers and clients are welcome.
Not here: what follows from a spec (planning, rendering, scaling). Nothing here reads a clock, a file or the network,
except the generators when they run as programs.
"""

from .durations import parse_duration_s
from .fleet import API_GROUP, API_VERSION, KIND, PLURAL, MoEFleet, ObjectMeta
from .pod_template import EnvVar, LocalObjectReference, PodTemplate, ResourceRequirements
from .spec import (
    EngineLimits,
    EngineSpec,
    Idle,
    KvCache,
    LimitsSpec,
    ModelSpec,
    MoEFleetSpec,
    Objective,
    Parallelism,
    PricingSpec,
    ReplicaSpec,
    RolloutSpec,
    ScalingSpec,
)
from .status import (
    ColdStartStatus,
    Condition,
    EconomicsStatus,
    LastDecision,
    MoEFleetStatus,
    ObjectiveStatus,
    ScalingStatus,
    ThroughputStatus,
)

__all__ = [
    "API_GROUP",
    "API_VERSION",
    "KIND",
    "PLURAL",
    "ColdStartStatus",
    "Condition",
    "EconomicsStatus",
    "EngineLimits",
    "EngineSpec",
    "EnvVar",
    "Idle",
    "KvCache",
    "LastDecision",
    "LimitsSpec",
    "LocalObjectReference",
    "MoEFleet",
    "MoEFleetSpec",
    "MoEFleetStatus",
    "ModelSpec",
    "ObjectMeta",
    "Objective",
    "ObjectiveStatus",
    "Parallelism",
    "PodTemplate",
    "PricingSpec",
    "ReplicaSpec",
    "ResourceRequirements",
    "RolloutSpec",
    "ScalingSpec",
    "ScalingStatus",
    "ThroughputStatus",
    "parse_duration_s",
]
