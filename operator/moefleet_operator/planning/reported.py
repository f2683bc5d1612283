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
class ReplicaLoad:
    """The newest LoadSample of a replica, as far as planning needs it."""

    state: ReplicaState
    active: int = 0
    queued: int = 0
    outstanding_tokens: int = 0
    oldest_active_s: float = 0.0
    incarnation: str = ""
    message: str = ""


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
