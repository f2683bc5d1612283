"""Everything that can happen to the core. The I/O side makes these; the core never asks, it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from moefleet_operator.planning.reported import EndpointView, GatewayView, ReplicaLoad, ReplicaState

# The types of planning that travel in events; the I/O side imports them from here, too.
__all__ = [
    "ESSENTIAL",
    "KINDS",
    "AlreadyExists",
    "Conflict",
    "DecisionMade",
    "EffectDone",
    "EndpointView",
    "Event",
    "Forbidden",
    "GatewayView",
    "Invalid",
    "Json",
    "Key",
    "Kind",
    "NotFound",
    "NumbersMeasured",
    "ObjectChanged",
    "Ok",
    "Outcome",
    "Relisted",
    "ReplicaLoad",
    "ReplicaState",
    "Stop",
    "Synced",
    "TelemetryUpdate",
    "Tick",
    "Transient",
]

# Objects cross the border as the API server's JSON (camelCase), as watched or as returned by a write.
Json = Mapping[str, Any]

# Pod: every pod that the operator may see. Those with app.kubernetes.io/name=moefleet-replica are replicas; of all
# others only node and requested resources are kept (free GPUs). GatewayPod: the gateway pods of our own namespace.
# Service and PodDisruptionBudget: those with app.kubernetes.io/managed-by=moefleet-operator, so that one deleted or
# edited by hand is healed, and nothing is written when nothing changed. ControllerRevision: those with the same label, the
# revisions of fleets and how each went. ResourceQuota: all, as room that the nodes do not show.
Kind = Literal[
    "MoEFleet",
    "Pod",
    "Node",
    "GatewayPod",
    "Service",
    "PodDisruptionBudget",
    "ControllerRevision",
    "ResourceQuota",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Without these there is nothing to operate, and who plans on old ones makes what is there already.
ESSENTIAL: tuple[Kind, ...] = ("MoEFleet", "Pod")


class Key(NamedTuple):
    """Names one object of a kind; nodes have an empty namespace. A tuple: keys are hashed more often than anything else."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


# --- what watches say ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ObjectChanged:
    """A watch saw this object; None: it is gone. Older than what the store has (resourceVersion): ignored.

    `uid`: of the object that is gone, where known, so that a late message does not hide a new object of the same name.
    """

    kind: Kind
    key: Key
    object: Json | None
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Synced:
    """The first list of a kind is complete. Nothing is planned before all kinds are.

    `available=False`: this kind cannot be watched here (a right is missing); it counts as synced and stays unknown.
    """

    kind: Kind
    available: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True)
class Relisted:
    """A full LIST of a kind, made every minute and by each new leader: heals what the watch lost.

    `as_of`: its resourceVersion. Objects may have been made since, so only what is older and missing is gone; 0: it is
    not known how old the LIST is, so nothing is gone. `began`: monotonic seconds of its first request.
    """

    kind: Kind
    objects: tuple[Json, ...]
    as_of: int
    began: float = -math.inf


# --- what replicas and gateways say ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TelemetryUpdate:
    """What changed since the last one. None: the stream is broken, so what was known is known no more.

    Send a load when state, active, queued or outstanding tokens changed, at most once a second and replica.
    """

    loads: Mapping[str, ReplicaLoad | None] = field(default_factory=dict)  # by pod uid
    gateways: Mapping[str, GatewayView | None] = field(default_factory=dict)  # by gateway pod uid


# --- what scaling says -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecisionMade:
    """`scaling.decide` for one fleet. replicas None: it does not know, so the target stays where it is."""

    fleet: Key
    replicas: int | None
    reason: str
    message: str
    # The load needs so many, and `replicas` is fewer because of maxReplicas or the size of a step; None: it is not so.
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class NumbersMeasured:
    """Numbers for people, put into status as they are (rounded, at most every 30 s). Keys are status fields:
    throughput, objective, economics, coldStart."""

    fleet: Key
    numbers: Json


# --- what became of effects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ok:
    """Done. `object` is what the API server returned (it goes into the store at once), or the RPC's answer."""

    object: Json | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """409: another resourceVersion, or another uid under that name."""

    message: str


@dataclass(frozen=True, slots=True)
class NotFound:
    message: str = ""


@dataclass(frozen=True, slots=True)
class AlreadyExists:
    """409 on create. `existing`: the object that has the name, read after the refusal; None if it was gone by then."""

    existing: Json | None


@dataclass(frozen=True, slots=True)
class Invalid:
    """400, 422, or refused by an admission policy: the same request will be refused again."""

    message: str


@dataclass(frozen=True, slots=True)
class Forbidden:
    """401, 403 (a right or quota is missing), UNAUTHENTICATED, PERMISSION_DENIED."""

    message: str
    # The namespace is being deleted: nothing can be created in it any more, whatever rights there are.
    namespace_ends: bool = False


@dataclass(frozen=True, slots=True)
class Transient:
    """Everything that may work next time: 429, 5xx, connection errors, deadlines, an effect past its `not_after`."""

    message: str
    retry_after_s: float | None = None
    # Whether it may have been carried out all the same; no: it was turned away, or never arrived.
    maybe_done: bool = True


Outcome = Ok | Conflict | NotFound | AlreadyExists | Invalid | Forbidden | Transient


@dataclass(frozen=True, slots=True)
class EffectDone:
    """Exactly one for every effect but WakeAt and Exit, in any order."""

    effect_id: int
    outcome: Outcome


# --- time and end -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of the last WakeAt has come (or any earlier time: a tick too many does no harm)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM: start nothing new, give the Lease back, then Exit."""


Event = (
    ObjectChanged
    | Synced
    | Relisted
    | TelemetryUpdate
    | DecisionMade
    | NumbersMeasured
    | EffectDone
    | Tick
    | Stop
)
