"""What one run says: the seam between the fleet and the reports. Field names of `Summary` are those of `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

# One GPU-hour of an 8-GPU replica counts eight.
GPUS_PER_REPLICA = 8


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares are 0 to 1. Percentiles are over all requests of the run; nothing is excluded as warm-up."""

    policy: str
    requests: int
    # Share of requests inside both limits, and inside each. Requests that never ended count as missed.
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    # Share of the 5-minute windows (by arrival, those with requests) in which the wanted share of requests was inside.
    windows_5min_ok: float
    # Billed from pod creation to end of drain.
    gpu_hours: float
    # GPU-hours times the price of one, over millions of prompt and output tokens together.
    cost_per_mtok: float
    ttft_p50_s: float
    ttft_p99_s: float
    ttft_p999_s: float
    tpot_p99_s: float
    replica_starts: int
    # Changes of the target.
    scaling_actions: int
    peak_replicas: int
    wall_s: float

    def to_json(self) -> dict[str, str | int | float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DecisionLine:
    at_s: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Per minute of the run, for plots; lists of one length."""

    minute_s: list[float] = field(default_factory=list)
    arrivals_per_s: list[float] = field(default_factory=list)
    input_tok_s: list[float] = field(default_factory=list)
    output_tok_s: list[float] = field(default_factory=list)
    # Replicas: at work, on their way, leaving, and what the closed form says was needed.
    ready: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    draining: list[float] = field(default_factory=list)
    need: list[float] = field(default_factory=list)
    # Of the requests that arrived in the minute.
    requests: list[int] = field(default_factory=list)
    within: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunResult:
    summary: Summary
    timeline: Timeline
    decisions: list[DecisionLine]
    # Seconds of compiling, apart from wall_s.
    compile_s: float
    # What was run: trace, scale, days, calibration, cold start, objective, seed, policy and knobs, and the hash of the arrivals.
    setup: dict[str, str | int | float]
    # Replica-seconds above and below the need, and the same inside surges: what an attacker of the method would ask for.
    extra: dict[str, float] = field(default_factory=dict)
