"""What a decision is made of. Cumulative counts never fall: whoever makes a Sample has taken care of restarts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from moefleet_perf import Calibration, StepTotals

if TYPE_CHECKING:
    from moefleet_operator.scaling.state import State


@dataclass(frozen=True, slots=True)
class Policy:
    """What the fleet's owner wants, and what its replicas are."""

    min_replicas: int
    max_replicas: int
    tpot_s: float
    ttft_s: float
    # None: nobody knows what a replica of this fleet carries, so the target stays where it is.
    calibration: Calibration | None
    # None: never. Otherwise a fleet that nobody asked for so long may sleep, whatever min_replicas says.
    scale_to_zero_after_s: float | None = None
    # Share of requests that must be inside both limits, 0 to 1.
    attainment: float = 0.99


@dataclass(frozen=True, slots=True)
class DemandTotals:
    """What arrived, summed over gateways, cumulative. Each request once, by the gateway that took it first."""

    arrivals: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    output_tokens: float = 0.0
    # Answered by the gateway itself, no replica saw them.
    shed: float = 0.0
    # Came again from the client's own retry: not in `arrivals`, but replicas see them.
    retries: float = 0.0


@dataclass(frozen=True, slots=True)
class ServedTotals:
    """What replicas took and made, summed over replicas, cumulative."""

    admitted: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Attained:
    """Requests that ended, and those of them inside both limits of the objective, cumulative."""

    requests: float = 0.0
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Queue:
    """Waiting in the gateways now."""

    requests: int = 0
    prompt_tokens: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """In the replicas now, summed over those that report."""

    replicas: int = 0
    active: int = 0
    queued: int = 0
    outstanding_prefill_tokens: int = 0
    outstanding_decode_tokens: int = 0
    kv_used_tokens: int = 0
    kv_max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Supply:
    """What the operator knows of its own replicas."""

    # The target now: what the planner steers to. A decision keeps it, raises it or lowers it.
    target: int
    # Serving and registered, not draining.
    ready: int
    # Age in seconds of each replica that is created and scheduled but not ready yet.
    pending_ages_s: tuple[float, ...] = ()
    # Waiting for a node. They count as supply, and more of them would wait as well.
    unschedulable: int = 0
    draining: int = 0
    # Newest measured cold starts (pod created to ready), at most 64; empty: none yet.
    cold_starts_s: tuple[float, ...] = ()
    # Of the ready ones, those whose prefix cache is new: ready for less than law.WARM_CACHE_S.
    cold_caches: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One tick's facts about one fleet."""

    policy: Policy
    supply: Supply
    # None: unknown. A fleet that nobody calls has a known zero.
    demand: DemandTotals | None
    # Gateways that exist but do not say anything: what they took is missing in `demand`.
    silent_gateways: int = 0
    queue: Queue = field(default_factory=Queue)
    # None: no replica has reported yet.
    served: ServedTotals | None = None
    # Ready replicas that do not report.
    silent_replicas: int = 0
    load: Load = field(default_factory=Load)
    # Sums over the engine steps of late, for the online fit of the step model; None: the calibration is all there is.
    steps: StepTotals | None = None
    # Measured over predicted time of the newest steps; None: none were made, or too few to say.
    step_time_ratio: float | None = None
    # Mean context in which replicas made their tokens of late; None: too few were made.
    context_tokens: float | None = None
    # None: nobody measures what requests get; headroom is then what was learnt from arrivals alone.
    attained: Attained | None = None


@dataclass(frozen=True, slots=True)
class DemandPoint:
    """Totals at a time in the past, as replayed after a restart."""

    at_s: float
    demand: DemandTotals
    queue_requests: int = 0
    served: ServedTotals | None = None


class Reason(StrEnum):
    """Why the target is what it is. Condition, Event, log field and metric label are the same word; meanings are below."""

    # The target follows the work.
    DEMAND_ROSE = "DemandRose"
    BACKLOG = "Backlog"
    KV_CACHE = "KVCache"
    STARTS_FAILED = "StartsFailed"
    WAKING = "Waking"
    DEMAND_FELL = "DemandFell"
    IDLE = "Idle"
    DEMAND_STEADY = "DemandSteady"
    AT_MINIMUM = "AtMinimum"
    HOLDING_BEFORE_SCALE_DOWN = "HoldingBeforeScaleDown"
    BYPASS_TRAFFIC = "BypassTraffic"
    FLAPPING = "Flapping"
    # Something stands in the way.
    AT_MAXIMUM = "AtMaximum"
    STEP_LIMITED = "StepLimited"
    OBJECTIVE_UNREACHABLE = "ObjectiveUnreachable"
    # I do not know.
    DEMAND_UNKNOWN = "DemandUnknown"
    LOAD_UNKNOWN = "LoadUnknown"
    RESTARTED = "Restarted"
    NO_CALIBRATION = "NoCalibration"
    MODEL_DRIFT = "ModelDrift"


REASONS: dict[Reason, str] = {
    Reason.DEMAND_ROSE: "Up: the work that arrives needs it.",
    Reason.BACKLOG: "Up: what already waits needs more than what arrives.",
    Reason.KV_CACHE: "Up: the contexts that are held fill more caches than the work needs replicas.",
    Reason.STARTS_FAILED: "Up: replicas that should long be ready are not, and others take their place.",
    Reason.WAKING: "Up from zero: a request came.",
    Reason.DEMAND_FELL: "Down: less was needed for the whole hold.",
    Reason.IDLE: "Zero: nobody called for idle.scaleToZeroAfter.",
    Reason.DEMAND_STEADY: "As many as are needed.",
    Reason.AT_MINIMUM: "minReplicas; less would do.",
    Reason.HOLDING_BEFORE_SCALE_DOWN: "Less would do now, but not yet for the whole hold.",
    Reason.BYPASS_TRAFFIC: "Replicas got more than the gateways sent; the larger count is used. Route all callers through the gateway.",
    Reason.FLAPPING: "Replicas were started too often soon after others were taken down; nothing goes down for up to an hour.",
    Reason.AT_MAXIMUM: "More are needed than maxReplicas allows.",
    Reason.STEP_LIMITED: "More are needed than may start at once; the next step follows when these are ready.",
    Reason.OBJECTIVE_UNREACHABLE: "An empty step is slower than timePerOutputToken allows, so no number of replicas helps.",
    Reason.DEMAND_UNKNOWN: "A gateway is silent, or none has reported yet; nothing goes down until it speaks.",
    Reason.LOAD_UNKNOWN: "A ready replica is silent; nothing goes down until it speaks or is not ready.",
    Reason.RESTARTED: "The operator has no memory of the demand yet; nothing goes down for one cold start.",
    Reason.MODEL_DRIFT: "Steps take other times than the model says; nothing goes down, and a quarter more is kept when they are slower.",
    Reason.NO_CALIBRATION: "Nobody knows what one replica of this fleet carries, so the target stays.",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """The numbers of a decision, in replicas where no unit is named. Log fields and metrics take them as they are."""

    # Work that arrives (short windows), its prompt part and the rest.
    arriving: float = 0.0
    arriving_prefill: float = 0.0
    # The same over the longer windows on which the target rests, without headroom.
    forecast: float = 0.0
    # The highest forecast of late, halved every hour: what is kept when demand falls faster than that.
    level: float = 0.0
    # What the hour of the day adds to the forecast, as a share of it; 0 unless it has skill.
    season_ratio: float = 0.0
    # Share of the forecast's loss that the hour of the day would spare, over about the last day.
    season_skill: float = 0.0
    # Share of the forecast kept free for what comes during a cold start.
    headroom_ratio: float = 0.0
    # Of the requests, those that headroom leaves out, and days of allowed misses that are unspent.
    allowed_share: float = 0.0
    budget_balance: float = 0.0
    backlog: float = 0.0
    kv: float = 0.0
    # Their sum as the law has it, before rounding, bounds, caps and holds.
    need: float = 0.0
    # What one replica carries of the present mix, and what limits it ("" while unknown).
    capacity_rps: float = 0.0
    capacity_input_tok_s: float = 0.0
    capacity_output_tok_s: float = 0.0
    bound: str = ""
    arrival_rps: float = 0.0
    mean_input_tokens: float = 0.0
    mean_output_tokens: float = 0.0
    # Replicas: wanted now, enough even for somewhat more (the target goes down to it, not to `wanted`), most that was
    # enough in the hold, and pending ones given up.
    wanted: int = 0
    enough: int = 0
    held: int = 0
    dead: int = 0
    hold_s: float = 0.0
    lead_s: float = 0.0
    # 1 when replicas served more than gateways admitted.
    bypass: int = 0
    # Of the ready replicas, the share whose prefix cache is counted as empty because it is new.
    cold_cache_share: float = 0.0
    # Measured over predicted step time while the model is not believed; 0: it is.
    step_time_ratio: float = 0.0
    # Starts of the last hour that came soon after a replica was taken down.
    flaps: int = 0

    def as_dict(self) -> dict[str, float | int | str]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Decision:
    """`replicas` is always inside the bounds and is the present target whenever the law does not know better."""

    replicas: int
    reason: Reason
    # One sentence with the numbers.
    message: str
    terms: Terms
    state: State
    # The law knew enough to lower the target, had there been a reason to.
    certain: bool = True
