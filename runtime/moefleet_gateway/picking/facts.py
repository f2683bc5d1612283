"""What the gateway knows of the world: fleets, replicas and their load. Immutable; the newest one wins."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Per fleet, from `spec.limits`; the defaults are those of the resource."""

    queued_requests: int = 1000  # waiting in one gateway pod, above it RESOURCE_EXHAUSTED
    hold_s: float = 60.0  # a request waits at most this long for a replica
    stream_duration_s: float = 900.0  # counted from the pick, so that a held request is not short of time


@dataclass(frozen=True, slots=True)
class ColdStart:
    """From creating a pod to its first served token, as the fleet's status has it."""

    p50_s: float
    p90_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    namespace: str
    name: str
    uid: str
    created: str  # RFC 3339 in UTC, which sorts by age as text
    model: str
    engine: str = ""
    context_length: int = 0  # 0: unknown, then nothing is refused for its length
    limits: Limits = field(default_factory=Limits)
    ready_replicas: int | None = None  # of the status; None: it says nothing
    cold_start: ColdStart | None = None  # None: not measured yet

    @property
    def key(self) -> str:
        """Name of the fleet's EDS cluster, and of the fleet in `x-moefleet-fleet`."""
        return f"{self.namespace}/{self.name}"

    @property
    def qualified_model(self) -> str:
        return f"{self.namespace}/{self.model}"


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod as the source (Kubernetes or a file) shows it."""

    uid: str
    name: str
    fleet: str  # key of the fleet
    fleet_uid: str
    address: str  # ip:port of the gRPC server, [ip]:port for IPv6
    control: str  # ip:port of ReplicaService; empty: the source vouches for it, there is nobody to ask
    ready: bool  # ContainersReady, never Ready (that one waits for us)
    draining: bool  # condition moefleet.io/Draining, or a deletionTimestamp from anybody

    @property
    def cluster(self) -> str:
        return self.fleet


@dataclass(frozen=True, slots=True)
class Load:
    """The newest LoadSample of a replica, and when it came."""

    pod_uid: str
    serving: bool
    state: str
    received_s: float
    active: int = 0
    queued: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """A replica as an answer to Envoy: where, and who is meant."""

    uid: str
    address: str
