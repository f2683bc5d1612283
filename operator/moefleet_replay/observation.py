"""What a policy may look at: the seam between the simulated fleet and those who decide its size.

Everything a peer's published algorithm reads is here once, as series of seconds and as views of replicas. Nothing of the
future is, except through `foresight`, which only the oracle gets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from moefleet_perf import Calibration, StepTotals


class Signal(IntEnum):
    """One number per second for the whole fleet. Counts are of that second, states are at its end."""

    # Requests that arrived, and their tokens. OUTPUT is the true length: only what has completed is known to anybody.
    ARRIVALS = 0
    ARRIVED_INPUT_TOKENS = 1
    ARRIVED_CACHED_TOKENS = 2
    # As the gateway predicts it at arrival (mean of completed requests of the same prompt class).
    ARRIVED_PREDICTED_OUTPUT_TOKENS = 3
    # What replicas did: prompt tokens computed, tokens generated, requests admitted to a batch, requests ended.
    PREFILLED_TOKENS = 4
    GENERATED_TOKENS = 5
    ADMITTED = 6
    COMPLETED = 7
    COMPLETED_INPUT_TOKENS = 8
    COMPLETED_OUTPUT_TOKENS = 9
    # Sums over the requests that got their first token (TTFT), or ended (TPOT, of those with two tokens or more), in that second.
    FIRST_TOKENS = 10
    TTFT_SUM_S = 11
    TPOT_COUNT = 12
    TPOT_SUM_S = 13
    # Of the completed ones, those inside both limits of the objective.
    COMPLETED_IN_OBJECTIVE = 14
    # States: waiting in the gateway, waiting in replicas, in a batch (prefill or decode), prompt tokens not yet computed of
    # everything that waits or runs, tokens still to generate (as predicted), tokens in caches.
    GATEWAY_QUEUED = 15
    REPLICA_QUEUED = 16
    RUNNING = 17
    OUTSTANDING_PREFILL_TOKENS = 18
    OUTSTANDING_DECODE_TOKENS = 19
    KV_USED_TOKENS = 20
    # Replicas.
    READY = 21
    PENDING = 22
    DRAINING = 23
    # Steps ended in that second and the time that they took, over all replicas.
    STEPS = 24
    STEP_TIME_SUM_S = 25


class Series(Protocol):
    """The seconds so far. A window is the last `window_s` whole seconds; before the start of the run there is nothing, and
    means are over the seconds that exist (0.0 when there is none)."""

    def mean(self, signal: Signal, window_s: float) -> float: ...

    def total(self, signal: Signal, window_s: float) -> float: ...

    def highest(self, signal: Signal, window_s: float) -> float: ...

    def last(self, signal: Signal) -> float: ...

    def values(self, signal: Signal, window_s: float) -> list[float]:
        """Oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class Objective:
    ttft_s: float = 2.0
    tpot_s: float = 0.1
    # Share of requests that must be inside both limits, 0 to 1.
    attainment: float = 0.99


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One ready replica now."""

    uid: int
    ready_since_s: float
    queued: int
    running: int
    outstanding_prefill_tokens: int
    outstanding_decode_tokens: int
    kv_used_tokens: int
    # Mean over the steps of the last 10 s; 0.0 when idle.
    step_time_s: float


class Foresight(Protocol):
    """Only for the oracle and for fleets of a fixed size."""

    def work_at(self, from_s: float, to_s: float) -> float:
        """Mean need of [from_s, to_s) in replicas (arrivals over closed-form capacity of their own mix)."""
        ...

    @property
    def until_s(self) -> float:
        """End of the trace: a fixed fleet is sized over all of it."""
        ...


@dataclass(frozen=True, slots=True)
class Observation:
    """One moment of one fleet."""

    # Seconds since the start of the run.
    now_s: float
    objective: Objective
    # The true step model and limits: what every model-based policy is given as its calibration.
    calibration: Calibration
    min_replicas: int
    max_replicas: int
    # What was asked for last: ready and pending together.
    target: int
    ready: int
    # Seconds since creation of each replica that is not ready yet, oldest first.
    pending_ages_s: tuple[float, ...]
    draining: int
    # Measured cold starts (created to ready), newest last, at most 64.
    cold_starts_s: tuple[float, ...]
    series: Series
    replicas: tuple[ReplicaView, ...]
    # Sums over all steps of all replicas since the run began: what LoadSample carries for the online fit.
    steps: StepTotals
    # Seconds that the oldest request in the gateway has waited; 0.0 when none waits.
    oldest_wait_s: float = 0.0
    foresight: Foresight | None = None
    # True when samples are lost at this moment (F9): series are then stale from the loss on.
    metrics_lost: bool = False
    labels: dict[str, str] = field(default_factory=dict)
