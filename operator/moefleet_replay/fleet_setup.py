"""What a run is given besides traffic and policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from moefleet_perf import Calibration

from moefleet_replay.cold_start import ColdStart
from moefleet_replay.observation import Objective


@dataclass(frozen=True, slots=True)
class Death:
    at_s: int
    # The ready replicas with the most work die.
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class FleetSetup:
    calibration: Calibration
    objective: Objective = field(default_factory=Objective)
    min_replicas: int = 1
    max_replicas: int = 200
    cold_start: ColdStart = field(default_factory=ColdStart)
    seed: int = 0
    gpu_hour_cost: float = 14.0
    # A replica's prefix cache is warm after so many seconds (F13), its share rises evenly until then; only where the trace
    # records prefixes. 0: warm at once.
    warm_s: float = 300.0
    # Age of what a policy sees.
    sample_lag_s: int = 1
    # Intervals of lost samples, seconds (F9). Series and views of replicas stay as they were; what Kubernetes knows does not.
    lost: tuple[tuple[float, float], ...] = ()
    deaths: tuple[Death, ...] = ()
    # A drained pod holds its GPUs for so much longer: gateways let go of it, its process ends, its node is told.
    pod_end_s: float = 0.0
    # None: the ceiling of the need in the first second.
    initial_replicas: int | None = None
    policy_name: str = ""
    # Keep first and last token of every request (16 bytes each) for tests.
    keep_times: bool = False
    # The policy's controller begins anew at these seconds (F10).
    restarts: tuple[int, ...] = ()
    # Admit by what is there now and preempt the youngest, instead of guaranteed no eviction.
    preempting: bool = False
    # Clients ask for exactly as many tokens as come (max_tokens), as load generators do; production traffic asks for some limit that
    # says little, and then the gateway knows only what answers to such prompts were.
    max_tokens_told: bool = False
