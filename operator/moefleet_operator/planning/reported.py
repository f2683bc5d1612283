"""What replicas and gateways report about themselves, as far as planning needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# ReplicaState of replica.proto without its prefix.
ReplicaState = Literal[
    "UNSPECIFIED", "STARTING", "FETCHING", "LOADING", "WARMING", "SERVING", "DRAINING", "DRAINED", "FAILED"
]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of requests, as sums since the process started (or over a while, as a difference of two). Seconds."""

    ended: int = 0
    failed: int = 0
    first_tokens: int = 0
    ttft_s: float = 0.0
    ttft_s_squared: float = 0.0
    paced: int = 0
    tpot_s: float = 0.0
    tpot_s_squared: float = 0.0
    # Prompt tokens that had to be computed, those found in the prefix cache left out.
    computed_tokens: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def __sub__(self, other: Outcomes) -> Outcomes:
        return Outcomes(*(getattr(self, n) - getattr(other, n) for n in self.__slots__))


@dataclass(frozen=True, slots=True)
class StartReport:
    """Seconds from the start of the process, once it has served: until weights were there, the engine could step, the canary had
    passed. `tune_s` is a part of the second; None: the engine does not tell it from loading."""

    fetch_s: float
    load_s: float
    tune_s: float | None
    start_s: float


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """The newest LoadSample of a replica, as far as planning needs it."""

    state: ReplicaState
    active: int = 0
    queued: int = 0
    outstanding_tokens: int = 0
    oldest_active_s: float = 0.0
    incarnation: str = ""
    message: str = ""
    # None: a replica of an older release does not tell.
    outcomes: Outcomes | None = None
    # Tokens of finished prompts that its cache holds, and the share of all prompt tokens that were found there so far.
    reusable_tokens: int = 0
    hit_share: float = 0.0
    # None: it has not served yet, or is of an older release.
    start: StartReport | None = None


@dataclass(frozen=True, slots=True)
class EndpointView:
    """What one gateway thinks of one replica: may it be chosen, and how many streams run through this gateway."""

    registered: bool
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway's endpoints, all of them, put together from WatchEndpoints by the I/O side."""

    incarnation: str
    version: int
    endpoints: Mapping[str, EndpointView] = field(default_factory=dict)
