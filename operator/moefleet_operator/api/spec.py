"""What a user wants: `spec` of a MoEFleet. Rules that need only the object stand beside the fields, as CEL."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, model_validator

from .base import (
    DNS_LABEL_MAX,
    LIST_SET,
    ApiModel,
    Decimal,
    Duration,
    DurationOrZero,
    Quantity,
    cel,
    free_object,
    rules,
)
from .pod_template import LocalObjectReference, PodTemplate

# 1000 replicas are 8000 GPUs: more than any known fleet of one model.
REPLICAS_MAX = 1000
# One replica is one node; the largest nodes have 16 GPUs.
GPUS_MAX = 16
CONTEXT_LENGTH_MAX = 1 << 20


class ModelCache(ApiModel):
    """Where weights that come over the network are kept."""

    volume: Annotated[
        dict[str, Any],
        WithJsonSchema(free_object("As in core/v1 Volume, without its name.", maxProperties=1)),
    ]
    """A volume as in core/v1 Volume, without its name: a hostPath or a local claim is fetched to once a node, a shared claim
    once for all. The user 65532 must be able to write it. Snapshots that nobody serves from make room for new ones."""


class ModelSpec(ApiModel):
    """The model that all replicas serve."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$", max_length=128)]
    """What requests ask for. Unique at one gateway: the oldest fleet has it; `namespace/name` always works."""
    source: Annotated[str, Field(pattern=r"^(hf|s3|gs|https|pvc|oci|file)://[^\s]+$", max_length=512)]
    """Where the weights are: hf://org/name@revision, s3://bucket/path, gs://bucket/path, https://host/folder,
    pvc://claim/path, oci://image or, for a folder inside the image, file:///path. Give hf:// a commit as revision: a branch
    may be another model for each replica that starts."""
    context_length: Annotated[int, Field(ge=1, le=CONTEXT_LENGTH_MAX)] = 131072
    """Tokens of prompt and answer together, at most. A checkpoint that has less wins."""
    cache: ModelCache | None = None
    """For hf, s3, gs and https. Absent: each pod fetches for itself, into an emptyDir."""
    credentials: LocalObjectReference | None = None
    """A Secret whose keys become environment variables of the replica: HF_TOKEN, AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT_KEY, or MOEFLEET_WEIGHTS_AUTHORIZATION (the Authorization header for
    https). Addresses of mirrors are no secrets: HF_ENDPOINT and AWS_ENDPOINT_URL belong into podTemplate.env."""


class Parallelism(ApiModel):
    """How the model lies on the GPUs of one replica."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.tensor % self.expert == 0",
                "parallelism.tensor must be a multiple of parallelism.expert",
                field_path=".expert",
            )
        )
    )

    tensor: Annotated[int, Field(ge=1, le=GPUS_MAX)] = 8
    """GPUs that share one copy of the model."""
    expert: Annotated[int, Field(ge=1, le=GPUS_MAX)] = 8
    """Groups among which the experts are divided; divides `tensor`."""
    attention_data: bool = True
    """Each GPU keeps the attention (and the MLA cache) of its own sequences, instead of a copy of all."""


class EngineLimits(ApiModel):
    """What the engine is built for; memory is taken for it in advance."""

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Sequences in one step, per rank."""
    max_batch_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Tokens in one step, per rank. A step this full must stay inside the objective's time per token."""
    max_sequence_length: Annotated[int, Field(ge=1, le=CONTEXT_LENGTH_MAX)] | None = None
    """Tokens of one sequence; absent: model.contextLength."""


class KvCache(ApiModel):
    """Cache of keys and values."""

    precision: Literal["FP8", "BF16", "Auto"] = "Auto"
    # The rule repeats the bounds: the API server cuts a fractional minimum to 0 when the manifest has an integer.
    memory_fraction: Annotated[
        float,
        Field(
            ge=0.05,
            le=0.95,
            json_schema_extra=rules(
                cel("self >= 0.05 && self <= 0.95", "memoryFraction must be between 0.05 and 0.95")
            ),
        ),
    ] = 0.8
    """Share of the GPU memory that is free after loading the weights."""
    reuse: bool = True
    """Keep the cache of finished prompts for prompts that begin the same way."""


class EngineSpec(ApiModel):
    """What makes the tokens."""

    type: Literal["TensorRTLLM", "Torch", "Simulated"] = "TensorRTLLM"
    """TensorRTLLM for production; Torch serves real checkpoints on a CPU or one GPU; Simulated answers at the speed of a
    calibrated replica, for load tests and rehearsals."""
    image: Annotated[str, Field(pattern=r"^[^\s]+$", max_length=512)]
    """Runtime image of this engine type."""
    # No default in the schema: what fits depends on the engine and the GPUs; MoEFleetSpec fills it in.
    parallelism: Annotated[Parallelism, Field(json_schema_extra={"default": None})] = Parallelism()
    """Absent: TensorRTLLM uses all GPUs of the replica, the others one device."""
    precision: Literal["FP8", "BF16", "Auto"] = "Auto"
    """Of the weights; Auto: as the checkpoint has them."""
    limits: EngineLimits = EngineLimits()
    kv_cache: KvCache = KvCache()
    args: Annotated[
        dict[str, Any],
        WithJsonSchema(
            free_object(
                "Further arguments of the engine, checked by name before a pod is made.", maxProperties=64
            )
        ),
    ] = Field(default_factory=dict)
    """Further arguments of the engine, checked by name before a pod is made: an unknown one is the condition
    ModelReady=False/EngineArgumentUnknown."""


class ReplicaSpec(ApiModel):
    """One replica: one pod on one node with all its GPUs."""

    gpus: Annotated[int, Field(ge=0, le=GPUS_MAX)] = 8
    """0 is for the engines Torch and Simulated."""
    gpu_resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=253)] = (
        "nvidia.com/gpu"
    )
    gpu_products: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=DNS_LABEL_MAX)], ...],
        Field(max_length=16, json_schema_extra=LIST_SET),
    ] = ()
    """Values of the node label nvidia.com/gpu.product that will do; empty: any."""
    shared_memory: Quantity = "64Gi"
    """Size of /dev/shm; counts against the pod's memory limit."""
    pod_template: PodTemplate = PodTemplate()


class Objective(ApiModel):
    """What a request may expect, and how many must get it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "double(self.attainmentPercent) >= 50.0 && double(self.attainmentPercent) <= 100.0",
                "attainmentPercent must be between 50 and 100",
                field_path=".attainmentPercent",
            )
        )
    )

    time_to_first_token: Duration = "2s"
    time_per_output_token: Duration = "100ms"
    attainment_percent: Decimal = "99"
    """Share of requests inside both limits, between 50 and 100."""


class Idle(ApiModel):
    """What happens when nobody asks."""

    scale_to_zero_after: Duration | None = None
    """Without requests for so long, the fleet sleeps; the next request wakes it. Absent: never."""


class ScalingSpec(ApiModel):
    """How many replicas there are and who decides it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.minReplicas <= self.maxReplicas",
                "minReplicas must not be larger than maxReplicas",
                field_path=".minReplicas",
            ),
            cel(
                "self.minReplicas >= 1",
                "minReplicas must be at least 1; for a fleet that may sleep set idle.scaleToZeroAfter",
                field_path=".minReplicas",
            ),
        )
    )

    mode: Literal["Automatic", "External", "Advisory"] = "Automatic"
    """Automatic: by token throughput. External: spec.replicas, set by hand, HPA or KEDA through /scale. Advisory: decides and
    says so in status, but leaves the number of replicas as it is."""
    min_replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX)] = 1
    """Never fewer while awake, in every mode."""
    max_replicas: Annotated[int, Field(ge=1, le=REPLICAS_MAX)] = 1
    """Never more, in every mode. Each replica costs its GPUs, so raising it is the user's own decision."""
    objective: Objective = Objective()
    idle: Idle | None = None


class LimitsSpec(ApiModel):
    """Limits that the gateway enforces."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "duration(self.hold) <= duration('10m')",
                "hold must be at most 10m: clients give up long before",
                field_path=".hold",
            )
        )
    )

    stream_duration: Duration = "15m"
    """A stream that runs longer is ended; no scaling or rollout ends a younger one."""
    queued_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Requests that may wait for a replica; more are refused with RESOURCE_EXHAUSTED."""
    hold: DurationOrZero = "60s"
    """How long a request may wait while there is no replica; then UNAVAILABLE. 0s: not at all. Where the fleet sleeps and its
    cold start (status.coldStart) takes longer than this, requests are refused at once and told when to come again; to hold them
    instead, make this longer than a cold start."""


class Canary(ApiModel):
    """How a new revision proves itself.

    The first replica of a new revision is compared with the old ones (failed requests, time to first token, time per output
    token) before the rest follows; a revision that is worse is refused, and the last good one goes on."""

    window: DurationOrZero = "1m"
    """At least so long from when it is ready; at most three times as long while it has had fewer than `requests`. 0s: not at
    all, it only has to become ready."""
    requests: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Requests that should have ended there for the comparison to count."""


class RolloutSpec(ApiModel):
    """How replicas are replaced when the spec changes."""

    strategy: Literal["Auto", "Surge", "InPlace"] = "Auto"
    """Surge makes the new replica first, InPlace ends the old one first, Auto surges where there is room and never takes the
    last ready replica away."""
    max_unavailable: Annotated[int, Field(ge=1, le=REPLICAS_MAX)] = 1
    canary: Canary = Canary()
    drain_timeout: Duration = "15m"
    """How long a replica may finish its streams before it is deleted; at least limits.streamDuration."""


class PricingSpec(ApiModel):
    """What tokens are sold for and GPUs cost; shown as cost and margin, decides nothing. An absent price is unknown."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", max_length=3)] = "CNY"
    input_per_million_tokens: Decimal | None = None
    cached_input_per_million_tokens: Decimal | None = None
    output_per_million_tokens: Decimal | None = None
    gpu_hour_cost: Decimal | None = None


class MoEFleetSpec(ApiModel):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.scaling.mode != 'External' || has(self.replicas)",
                "scaling.mode External needs spec.replicas",
                field_path=".replicas",
                reason="FieldValueRequired",
            ),
            cel(
                "self.scaling.mode == 'External' || !has(self.replicas)",
                "spec.replicas (also kubectl scale, HPA and KEDA) needs scaling.mode External; "
                "in the modes Automatic and Advisory set scaling.minReplicas and scaling.maxReplicas",
                field_path=".replicas",
                reason="FieldValueForbidden",
            ),
            cel(
                "duration(self.rollout.drainTimeout) >= duration(self.limits.streamDuration)",
                "rollout.drainTimeout must be at least limits.streamDuration, or a drain would cut streams",
                field_path=".rollout.drainTimeout",
            ),
            cel(
                "self.engine.type != 'TensorRTLLM' || self.replica.gpus >= 1",
                "engine.type TensorRTLLM needs replica.gpus of at least 1",
                field_path=".replica.gpus",
            ),
            cel(
                "self.engine.type != 'TensorRTLLM' || !has(self.engine.parallelism) "
                "|| self.engine.parallelism.tensor <= self.replica.gpus",
                "engine.parallelism.tensor must fit replica.gpus",
                field_path=".engine.parallelism.tensor",
            ),
            cel(
                "self.engine.type != 'Torch' || !has(self.engine.parallelism) "
                "|| self.engine.parallelism.tensor == 1",
                "engine.type Torch runs on one device: engine.parallelism.tensor must be 1",
                field_path=".engine.parallelism.tensor",
            ),
            cel(
                "!has(self.engine.limits.maxSequenceLength) "
                "|| self.engine.limits.maxSequenceLength <= self.model.contextLength",
                "engine.limits.maxSequenceLength must not be larger than model.contextLength",
                field_path=".engine.limits.maxSequenceLength",
            ),
        )
    )

    replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX)] | None = None
    """Only with scaling.mode External, where it is required: the number of replicas, written by hand, HPA or KEDA."""
    model: ModelSpec
    engine: EngineSpec
    replica: ReplicaSpec = ReplicaSpec()
    scaling: ScalingSpec = ScalingSpec()
    limits: LimitsSpec = LimitsSpec()
    rollout: RolloutSpec = RolloutSpec()
    pricing: PricingSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_parallelism(cls, data: Any) -> Any:
        """What the user left to us, as text: before the parts are parsed only their dicts are here."""
        if not isinstance(data, dict) or not isinstance(data.get("engine"), dict):
            return data
        engine = data["engine"]
        if engine.get("parallelism") is not None:
            return data
        ways = 1
        if engine.get("type", "TensorRTLLM") == "TensorRTLLM":
            replica = data.get("replica")
            gpus = replica.get("gpus") if isinstance(replica, dict) else getattr(replica, "gpus", None)
            ways = 8 if gpus is None else gpus
        given = {"tensor": ways, "expert": ways, "attentionData": ways > 1}
        return {**data, "engine": {**engine, "parallelism": given}}

    @property
    def max_sequence_length(self) -> int:
        """The engine's limit, with its default filled in."""
        return self.engine.limits.max_sequence_length or self.model.context_length
