"""Who comes and who goes when the target has changed.

`planned` asks the operator's own planner, `moefleet_operator.planning.shape`: the very code that runs in a cluster chooses what to
cancel, to drain, to take back and how many to make. It drives the policy `moefleet`. What it sees here is a fleet of one revision on
nodes without end: pods have a node at once, starts that fail restart in their pod and look like slow ones, and a drained pod is gone
when its last request has ended. Rollouts, evictions, unschedulable pods and the gateways' registration (seconds, in both
directions) are not played.

`plain` is for everybody else: the same order of leaving (pending ones first, the youngest of them first, then the ready one with
least left to do, then the highest slot), but nobody comes back from a drain. A test runs both on a recorded hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.facts import Condition, ContainerFacts, PodFacts
from moefleet_operator.planning.observed import Capacity, Fleet, Observed, Replica
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.shape import shape
from moefleet_operator.planning.steps import Target
from moefleet_operator.rendering.pod import RenderedPod

_FLEET = Fleet(
    namespace="replay",
    name="fleet",
    uid="fleet",
    generation=1,
    created_at=0.0,
    deleting=False,
    model_name="model",
    mode="Automatic",
    min_replicas=1,
    max_replicas=names.SLOT_MAX,
    replicas=None,
    may_sleep=False,
    strategy="Auto",
    max_unavailable=0,
    drain_timeout_s=3600.0,
    stream_duration_s=3600.0,
)
_RENDERED = RenderedPod(fleet="fleet", revision="00000000", body={}, token_sha256="")
_ROOM = Capacity(fits=10**6, nodes_matching=10**6, nodes_large_enough=10**6)
_RUNNING = ContainerFacts(
    ready=True, started=True, state="running", reason="", message="", restarts=0, last_message=""
)
_READY = Condition("True", "", "", 0.0)
_DRAINING = Condition("True", reasons.SCALE_DOWN, "", 0.0)


@dataclass(frozen=True, slots=True)
class PodSeen:
    """One pod as the planner is to see it."""

    uid: int
    slot: int
    created_s: float
    # Not ready yet: None.
    outstanding_tokens: int | None = None
    active: int = 0
    queued: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Moves:
    """uids of pods to cancel or drain and of draining ones to take back; how many to make."""

    leave: tuple[int, ...]
    resume: tuple[int, ...]
    create: int


def planned(pods: Iterable[PodSeen], wanted: int, now_s: float) -> Moves:
    observed = Observed(
        fleet=_FLEET, rendered=_RENDERED, replicas=tuple(_replica(p) for p in pods), capacity=_ROOM
    )
    found = shape(observed, Target(wanted, "Replay", "the policy says so"), now_s)
    return Moves(
        leave=tuple(int(leaving.replica.uid) for leaving in found.drain),
        resume=tuple(int(replica.uid) for replica in found.resume),
        create=sum(making.count for making in found.create),
    )


def plain(pods: Iterable[PodSeen], wanted: int) -> Moves:
    live = [p for p in pods if not p.draining]
    leave = sorted(live, key=_cost)[: max(0, len(live) - wanted)]
    return Moves(tuple(p.uid for p in leave), (), max(0, wanted - len(live)))


def _cost(pod: PodSeen) -> tuple[bool, float, int]:
    if pod.outstanding_tokens is None:
        return False, -pod.created_s, -pod.slot
    return True, pod.outstanding_tokens + pod.active + pod.queued, -pod.slot


def _replica(pod: PodSeen) -> Replica:
    started = pod.outstanding_tokens is not None
    conditions = {}
    if started:
        conditions["Ready"] = _READY
    if pod.draining:
        conditions[names.CONDITION_DRAINING] = _DRAINING
    load = None
    if pod.outstanding_tokens is not None:
        state = "DRAINING" if pod.draining else "SERVING"
        load = ReplicaLoad(state, pod.active, pod.queued, pod.outstanding_tokens)  # type: ignore[arg-type]
    facts = PodFacts(
        namespace="replay",
        name=_RENDERED.name(pod.slot),
        uid=str(pod.uid),
        version=1,
        fleet="fleet",
        revision=_RENDERED.revision,
        slot=pod.slot,
        active=not pod.draining,
        owner_uid="fleet",
        created_at=pod.created_s,
        deleted_at=None,
        phase="Running",
        reason="",
        message="",
        node="node",
        ip="",
        gates=(),
        conditions=conditions,
        container=_RUNNING if started else None,
        requests={},
        token_sha256="",
    )
    return Replica(facts, load)
