"""What is: `status` of a MoEFleet. Numbers for people are rounded and written at most every 30 s."""

from typing import Annotated, Literal

from pydantic import Field

from .base import MESSAGE_MAX, ApiModel, SignedDecimal, list_map

_Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
# As in meta/v1 Condition.
_Reason = Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
_Count = Annotated[int, Field(ge=0)]
# Measured, so it may be zero and is written by format_duration.
_MeasuredDuration = Annotated[str, Field(max_length=24)]


class Condition(ApiModel):
    """One condition, as in meta/v1."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: _Reason
    """CamelCase; docs list every reason."""
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    last_transition_time: _Time
    observed_generation: _Count | None = None


class ThroughputStatus(ApiModel):
    """Tokens per second of the whole fleet."""

    input_tokens_per_second: _Count | None = None
    output_tokens_per_second: _Count | None = None
    capacity_input_tokens_per_second: _Count | None = None
    """What the ready replicas sustain inside the objective for the present mix of requests."""
    capacity_output_tokens_per_second: _Count | None = None
    utilization_percent: _Count | None = None


class ObjectiveStatus(ApiModel):
    """What requests got lately."""

    attainment_percent: SignedDecimal | None = None
    ttft_p99: Annotated[_MeasuredDuration | None, Field(alias="ttftP99")] = None
    tpot_p99: Annotated[_MeasuredDuration | None, Field(alias="tpotP99")] = None


class LastDecision(ApiModel):
    """The last change of the number of replicas, or of its reason."""

    time: _Time
    from_: Annotated[_Count, Field(alias="from")]
    to: _Count
    reason: _Reason
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    """Why, in one sentence with the numbers."""


class ScalingStatus(ApiModel):
    last_decision: LastDecision | None = None


class EconomicsStatus(ApiModel):
    """In the currency of spec.pricing."""

    cost_per_million_tokens: SignedDecimal | None = None
    revenue_per_hour: SignedDecimal | None = None
    margin_percent: SignedDecimal | None = None


class ColdStartPhase(ApiModel):
    """One part of a cold start."""

    name: Annotated[str, Field(max_length=24)]
    """scheduling, pulling, restarting, starting, fetching, loading, tuning, warming or registering."""
    p50: _MeasuredDuration


class ColdStartStatus(ApiModel):
    """From creating a pod to its first served token. Of the newest revision once three of its starts were measured, else of all."""

    p50: _MeasuredDuration | None = None
    p90: _MeasuredDuration | None = None
    p99: _MeasuredDuration | None = None
    """What the startup probe's budget is learnt from."""
    starts: _Count | None = None
    """How many starts these are of, failed attempts before them included."""
    slowest_phase: Annotated[str | None, Field(max_length=24)] = None
    """Where most of the time goes."""
    phases: Annotated[
        tuple[ColdStartPhase, ...], Field(max_length=16, json_schema_extra=list_map("name"))
    ] = ()


class RolloutStatus(ApiModel):
    """What a rollout does now; absent when none is on its way."""

    step: Literal["Surge", "InPlace", "Wait", "Canary", "Undone"]
    """Surge: a new replica beside the old ones. InPlace: an old one goes first. Wait: nothing goes before something else
    has happened. Canary: the first new replica is compared with the old ones. Undone: the revision was refused."""
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    """Why, in one sentence."""


class MoEFleetStatus(ApiModel):
    """What is, written by the operator only."""

    observed_generation: _Count | None = None
    replicas: _Count = 0
    """Replicas that exist and do not drain; /scale reads it."""
    ready_replicas: _Count = 0
    desired_replicas: _Count = 0
    replicas_summary: Annotated[str, Field(max_length=32)] = ""
    """ready/desired, for the column of kubectl get."""
    selector: Annotated[str, Field(max_length=512)] = ""
    """Label selector of the replicas that do not drain; /scale reads it."""
    revision: Annotated[str, Field(max_length=32)] = ""
    """Revision that new replicas get."""
    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=16, json_schema_extra=list_map("type"))
    ] = ()
    throughput: ThroughputStatus | None = None
    objective: ObjectiveStatus | None = None
    rollout: RolloutStatus | None = None
    scaling: ScalingStatus | None = None
    economics: EconomicsStatus | None = None
    cold_start: ColdStartStatus | None = None

    def condition(self, type_: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == type_), None)
