"""Replicas that must leave where they stand: replaced first where there is room, drained when enough others are ready.

Never below what is wanted by our own doing: a ready replica goes only when as many as are wanted stay ready without it. What
does not serve anyway (its node is lost and it is not heard) is missed by nobody and is given up at once, by the same drain:
if its node comes back it finishes its streams and goes, so nothing is there twice, and one that is still missing is taken
back. One replica at a time, so that a whole rack that is cordoned empties as its replacements become ready.
"""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .failing import IMAGE_REASONS, failing
from .nodes import Trouble, judged_at, suspect, trouble
from .observed import Observed, Replica
from .wording import count, count_are

# A container that ended so often on one node gets a try on another: by the kubelet's backoff (10 s, 20 s, 40 s, 80 s) that is
# one move in two and a half minutes and its own running time, however often it comes to the same.
MOVE_RESTARTS = 4
# An image that one node cannot pull for so long while others have it.
MOVE_IMAGE_AFTER_S = 300.0
# Nodes that new pods are kept away from at most: the newest failures.
AVOID_MAX = 5

# What Kubernetes says about a pod that it ends (condition DisruptionTarget) -> what we call it.
DISRUPTIONS = {
    "PreemptionByScheduler": reasons.PREEMPTED,
    "EvictionByEvictionAPI": reasons.POD_EVICTED,
    "TerminationByKubelet": reasons.POD_EVICTED,
    "DeletionByTaintManager": reasons.NODE_LOST,
    "DeletionByPodGC": reasons.NODE_LOST,
}


@dataclass(frozen=True, slots=True)
class Departure:
    """What is to be done about replicas that must leave."""

    go: tuple[tuple[Replica, str], ...] = ()
    # One more beside the wanted ones, and why.
    make: str = ""
    # Somebody must leave: the one beside the wanted ones is not one too many.
    pending: bool = False
    wake_at: float | None = None


def departure(observed: Observed, wanted: int, rolling: bool, now: float) -> Departure:
    """`rolling`: replicas of an older revision are being replaced; that rollout has the one place beside the wanted ones."""
    live = [r for r in observed.replicas if r.live]
    found = [(r, t) for r in live if (t := trouble(r.pod, r.node, now)) is not None]
    wake_at = min((at for r in live if (at := judged_at(r.node, now)) is not None), default=None)
    gone = [(r, t.message) for r, t in found if unheard(r, t) and not observed.nodes_unheard]
    if gone:
        return Departure(go=tuple(gone), wake_at=wake_at)
    if rolling:
        return Departure(wake_at=wake_at)
    staying = [(r, t) for r, t in found if not unheard(r, t)]
    if not staying:
        moved = _moved(observed, live, now)
        return Departure(go=(moved,) if moved is not None else (), wake_at=wake_at)
    ready = sum(1 for r in live if r.ready)
    room = observed.node_autoscaler or (observed.capacity.fits or 0) >= 1
    for replica, why in sorted(staying, key=lambda pair: _cost(pair[0])):
        others = ready - replica.ready
        if _serves(replica) and others >= wanted:
            said = f"{why.message}; {count_are(others, 'other')} ready and {wanted} wanted"
            return Departure(go=((replica, said),), pending=True, wake_at=wake_at)
        if not _serves(replica) and replica.pod.node and room and len(live) <= wanted:
            return Departure(go=((replica, why.message),), pending=True, wake_at=wake_at)
    first, why = staying[0]
    sound = [r for r in live if all(r is not t for t, _ in found)]
    if any(not r.ready for r in sound) or len(live) > wanted:
        # One that will take its place is on its way.
        return Departure(pending=True, wake_at=wake_at)
    # What cannot be counted is tried: the scheduler has the last word. Where the node goes in any case, one that waits for
    # room is better than none that waits.
    if room or observed.capacity.fits is None or why.urgent:
        made = f"takes the place of {first.name} before it leaves: {why.message}"
        return Departure(make=made, pending=True, wake_at=wake_at)
    return Departure(pending=True, wake_at=wake_at)


def unheard(replica: Replica, why: Trouble) -> bool:
    """Its node does not answer, and neither does it: its kubelet alone may be cut off while it serves on."""
    return why.lost and replica.load is None and not replica.ready


def disrupted(observed: Observed, now: float) -> Problem | None:
    """What takes replicas away, for the condition Disrupted."""
    said: list[tuple[str, str]] = []
    for replica in observed.replicas:
        if replica.pod.finished:
            problem = failing(replica)
            if problem is not None and problem.reason == reasons.POD_EVICTED:
                said.append((problem.reason, problem.message))
        elif replica.pod.terminating:
            said += _ended_by(replica)
        elif (why := trouble(replica.pod, replica.node, now)) is not None:
            said.append((why.reason, f"{replica.name} {_does(replica)}: {why.message}"))
    if not said:
        return None
    more = f"; and {count(len(said) - 1, 'more replica')}" if len(said) > 1 else ""
    if observed.nodes_unheard:
        more += "; so many nodes at once do not answer that nothing is replaced for it"
    return Problem(said[0][0], said[0][1] + more)


def avoid(observed: Observed) -> tuple[str, ...]:
    """Nodes on which replicas of this fleet failed and still show it, newest first: a new pod rather goes elsewhere."""
    failed = [
        r
        for r in observed.replicas
        if r.pod.node and not r.ready and (failing(r) is not None or _crashed_often(r))
    ]
    newest = sorted(failed, key=lambda r: (-r.pod.created_at, r.name))
    return tuple(dict.fromkeys(r.pod.node for r in newest))[:AVOID_MAX]


def needs_room(observed: Observed) -> bool:
    """Whether what is to be done about a replica depends on the room that there is elsewhere."""
    return any(r.live and (suspect(r.pod, r.node) or _crashed_often(r)) for r in observed.replicas)


def comes_back(replica: Replica, now: float) -> bool:
    """It drained for the sake of its node, and there is nothing against the node any more."""
    drain = replica.drain
    return (
        drain is not None
        and drain.reason == reasons.EVICTION
        and replica.node is not None
        and trouble(replica.pod, replica.node, now) is None
    )


def _moved(observed: Observed, live: list[Replica], now: float) -> tuple[Replica, str] | None:
    """One that ends again and again where it is, while the same revision serves elsewhere."""
    fits = observed.capacity.fits or 0
    if not observed.node_autoscaler and fits < 1:
        return None
    sound = {r.pod.revision for r in live if r.ready}
    stuck = [r for r in live if not r.ready and r.pod.revision in sound and _stuck_here(r, now)]
    if len(stuck) != 1:
        # Several at once is no node's fault.
        return None
    problem = failing(stuck[0])
    assert problem is not None
    return stuck[0], f"another node may do better than {stuck[0].pod.node}: {problem.message}"


def _stuck_here(replica: Replica, now: float) -> bool:
    container = replica.pod.container
    if container is None or container.state == "running" or failing(replica) is None:
        return False
    waited_long = now >= replica.pod.created_at + MOVE_IMAGE_AFTER_S
    return container.restarts >= MOVE_RESTARTS or (container.reason in IMAGE_REASONS and waited_long)


def _crashed_often(replica: Replica) -> bool:
    container = replica.pod.container
    if container is None or container.ready:
        return False
    return container.restarts >= MOVE_RESTARTS or container.reason in IMAGE_REASONS


def _ended_by(replica: Replica) -> list[tuple[str, str]]:
    pod = replica.pod
    told = pod.conditions.get(names.CONDITION_DISRUPTION)
    if told is not None and told.status == "True" and told.reason in DISRUPTIONS:
        return [(DISRUPTIONS[told.reason], f"{replica.name} ends: {told.message or told.reason}")]
    served = pod.container is not None and pod.container.started
    if served and not pod.is_true(names.CONDITION_DRAINING):
        # Ours either never served or drained before.
        return [(reasons.POD_DELETED, f"{replica.name} ends: somebody deleted its pod")]
    return []


def _serves(replica: Replica) -> bool:
    """Ready, or called not ready only because its node does not answer: gateways go on choosing it by what it says itself."""
    said = replica.load is not None and replica.load.state == "SERVING"
    return replica.ready or (said and replica.pod.is_true("ContainersReady"))


def _does(replica: Replica) -> str:
    return "drains" if replica.draining else "serves on" if _serves(replica) else "does not serve"


def _cost(replica: Replica) -> tuple[bool, float, int]:
    load = replica.load
    left = float("inf") if load is None else float(load.outstanding_tokens + load.active + load.queued)
    return _serves(replica), left, -replica.pod.slot
