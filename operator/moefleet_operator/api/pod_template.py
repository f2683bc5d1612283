"""`replica.podTemplate`: the named places where a user may change the replica's pod, and no others."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from .base import (
    DNS_SUBDOMAIN_MAX,
    LIST_ATOMIC,
    Annotations,
    ApiModel,
    Labels,
    Quantity,
    cel,
    free_object,
    list_map,
    rules,
)

# Names that the operator sets itself; the CRD refuses them, so that nothing is overridden silently.
RESERVED_PREFIX = "moefleet.io/"
RESERVED_ENV_PREFIX = "MOEFLEET_"
RESERVED_VOLUMES = ("dshm", "tmp", "model")


class LocalObjectReference(ApiModel):
    name: Annotated[str, Field(min_length=1, max_length=DNS_SUBDOMAIN_MAX)]
    """Name of an object in the fleet's namespace."""


class EnvVar(ApiModel):
    """An environment variable of the runtime container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                f"!self.name.startsWith('{RESERVED_ENV_PREFIX}')",
                f"names that start with {RESERVED_ENV_PREFIX} are set by the operator",
            ),
            cel("!(has(self.value) && has(self.valueFrom))", "give value or valueFrom, not both"),
        )
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=128)]
    value: Annotated[str, Field(max_length=4096)] | None = None
    value_from: (
        Annotated[dict[str, Any], WithJsonSchema(free_object("As in core/v1 EnvVarSource."))] | None
    ) = None


class ResourceRequirements(ApiModel):
    """CPU, memory and others of the runtime container. GPUs come from replica.gpus and are refused here."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(!has(self.requests) || self.requests.all(k, !k.endsWith('/gpu'))) "
                "&& (!has(self.limits) || self.limits.all(k, !k.endsWith('/gpu')))",
                "GPUs are set by replica.gpus and replica.gpuResource",
            )
        )
    )

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None


_Toleration = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "key": {"type": "string", "maxLength": 317},
                "operator": {"type": "string", "enum": ["Exists", "Equal", "Lt", "Gt"]},
                "value": {"type": "string", "maxLength": 63},
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "tolerationSeconds": {"type": "integer", "format": "int64", "minimum": 0},
            },
        }
    ),
]


def _named_object(description: str, *required: str) -> Any:
    properties = {key: {"type": "string", "minLength": 1, "maxLength": 1024} for key in required}
    return WithJsonSchema(free_object(description, properties=properties, required=list(required)))


class PodTemplate(ApiModel):
    """Named overrides of the replica's pod; what is not named here is the operator's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                f"!has(self.labels) || self.labels.all(k, !k.startsWith('{RESERVED_PREFIX}') "
                "&& !k.startsWith('app.kubernetes.io/'))",
                f"labels that start with {RESERVED_PREFIX} or app.kubernetes.io/ are set by the operator",
                field_path=".labels",
            ),
            cel(
                f"!has(self.annotations) || self.annotations.all(k, !k.startsWith('{RESERVED_PREFIX}'))",
                f"annotations that start with {RESERVED_PREFIX} are set by the operator",
                field_path=".annotations",
            ),
            cel(
                "!has(self.volumes) || self.volumes.all(v, !(v.name in "
                f"[{', '.join(repr(n) for n in RESERVED_VOLUMES)}]))",
                f"the volume names {', '.join(RESERVED_VOLUMES)} are the operator's",
                field_path=".volumes",
            ),
        )
    )

    labels: Labels | None = None
    """Further labels of the pod."""
    annotations: Annotations | None = None
    """Further annotations of the pod."""
    node_selector: Labels | None = None
    """Node labels that a node must have, besides the GPU products."""
    tolerations: (
        Annotated[tuple[_Toleration, ...], Field(max_length=32, json_schema_extra=LIST_ATOMIC)] | None
    ) = None
    """Taints that the pod tolerates, besides the taint of the GPU resource."""
    affinity: Annotated[dict[str, Any], WithJsonSchema(free_object("As in core/v1 Affinity."))] | None = None
    """As in core/v1 Affinity; a required GPU product is added to its node affinity."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=100, json_schema_extra=list_map("name"))] | None = (
        None
    )
    """Further environment variables of the runtime container."""
    volumes: (
        Annotated[
            tuple[Annotated[dict[str, Any], _named_object("As in core/v1 Volume.", "name")], ...],
            Field(max_length=32, json_schema_extra=list_map("name")),
        ]
        | None
    ) = None
    """Further volumes. Those that the namespace's Pod Security level forbids make the pod fail, not the fleet."""
    volume_mounts: (
        Annotated[
            tuple[
                Annotated[dict[str, Any], _named_object("As in core/v1 VolumeMount.", "name", "mountPath")],
                ...,
            ],
            Field(max_length=32, json_schema_extra=list_map("mountPath")),
        ]
        | None
    ) = None
    """Further mounts of the runtime container."""
    resources: ResourceRequirements | None = None
    """CPU and memory of the runtime container; absent: what the operator takes for the engine."""
    priority_class_name: Annotated[str, Field(max_length=DNS_SUBDOMAIN_MAX)] | None = None
    service_account_name: Annotated[str, Field(max_length=DNS_SUBDOMAIN_MAX)] | None = None
    """Absent: `default` of the namespace; no token is mounted either way."""
    image_pull_secrets: (
        Annotated[tuple[LocalObjectReference, ...], Field(max_length=16, json_schema_extra=list_map("name"))]
        | None
    ) = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    runtime_class_name: Annotated[str, Field(max_length=DNS_SUBDOMAIN_MAX)] | None = None
    scheduler_name: Annotated[str, Field(max_length=DNS_SUBDOMAIN_MAX)] | None = None
