"""From the replicas that there are to those that should be: what to drain, what to resume, how many to create.

Everything is worked out anew from what is observed. Replicas that never served anybody cost nothing and go at once;
for the others the rules are: the number of ready replicas never falls below the target by our own doing, except that a
rollout in place may take `maxUnavailable` away, and strategy Auto never takes the last ready one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .failing import failing
from .observed import Observed, Replica
from .steps import Target
from .victims import victims
from .wording import count, count_are, share_are, there_are

# A second unschedulable replica is taken back after so long: the scheduler looks again when a pod ends or a node comes.
# And where nodes are made for pods, nobody is told before.
UNSCHEDULABLE_GRACE_S = 30.0
# Failed pods are kept so long: they hold no GPU, and they are the memory of the backoff below.
FAILED_KEEP_S = 600.0
FAILED_KEEP_MAX = 5
# The first replacement is immediate; then 10 s, 20 s, ... with every pod that failed within FAILED_KEEP_S.
REPLACE_BACKOFF_S = 10.0
REPLACE_BACKOFF_MAX_S = 160.0


@dataclass(frozen=True, slots=True)
class Leaving:
    replica: Replica
    reason: str
    message: str


@dataclass(slots=True)
class Shape:
    drain: list[Leaving] = field(default_factory=list)
    resume: list[Replica] = field(default_factory=list)
    create: int = 0
    create_reason: str = reasons.SCALING_UP
    create_message: str = ""
    # RolloutHeld and CapacityLimited.
    held: Problem | None = None
    limited: Problem | None = None
    wake_at: float | None = None

    def wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def shape(observed: Observed, target: Target, now: float) -> Shape:
    out = Shape()
    revision = observed.revision
    live = [r for r in observed.replicas if r.live]
    old = [r for r in live if revision is not None and r.pod.revision != revision]
    wanted = target.replicas
    if wanted == 0:
        out.drain = [Leaving(r, reasons.SCALE_DOWN, f"no replica is wanted: {target.message}") for r in live]
        return out
    surge = 1 if old and observed.fleet.strategy != "InPlace" else 0
    extra = len(live) - wanted - surge
    if extra > 0:
        for replica in victims(live, revision)[:extra]:
            why = _too_few_or_many(wanted, len(live), target)
            out.drain.append(Leaving(replica, reasons.SCALE_DOWN, why))
        return out
    _take_back_unschedulable(observed, live, now, out)
    _replace_closed(observed, live, out)
    if old:
        _rollout(observed, live, old, wanted, out)
    # What leaves in this very plan still lives: its place is taken when it is seen to have gone.
    missing = wanted - len(live)
    if missing > 0:
        _fill(observed, missing, target, now, out)
    _tell_stuck(observed, live, wanted, now, out)
    return out


def falls_short(observed: Observed, target: Target) -> bool:
    """Whether replicas are missing, or of an older revision."""
    live = [r for r in observed.replicas if r.live]
    return len(live) < target.replicas or any(r.pod.revision != observed.revision for r in live)


def wants_room(observed: Observed, target: Target) -> bool:
    """Whether the plan will ask how many more replicas fit: counting all nodes is worth it only then."""
    return falls_short(observed, target) or any(r.unschedulable_since is not None for r in observed.replicas)


def _rollout(observed: Observed, live: list[Replica], old: list[Replica], wanted: int, out: Shape) -> None:
    fleet, fits = observed.fleet, observed.capacity.fits
    idle = [r for r in old if not r.ready and (not r.may_have_streams or failing(r) is not None)]
    gone = {leaving.replica.uid for leaving in out.drain}
    for replica in idle:
        if replica.uid not in gone:
            out.drain.append(Leaving(replica, reasons.ROLLOUT, f"revision {observed.revision} replaces it"))
    serving = [r for r in old if r not in idle]
    if not serving or idle:
        return
    ready = sum(1 for r in live if r.ready)
    victim = victims(serving, observed.revision)[0]
    ready_after = ready - (1 if victim.ready else 0)
    leave = Leaving(
        victim,
        reasons.ROLLOUT,
        f"revision {observed.revision} replaces {victim.pod.revision}: {share_are(len(serving), len(live), 'replica')} "
        f"old, {ready_after} of {wanted} wanted will be ready meanwhile",
    )
    if ready_after >= wanted:
        out.drain.append(leave)
        return
    coming = [r for r in live if r not in old and not r.ready]
    stuck = [r for r in coming if r.unschedulable_since is not None]
    if coming and (fleet.strategy == "Surge" or len(stuck) < len(coming)):
        # The new one is not ready yet: nothing goes before it is.
        broken = next((p for p in map(failing, coming) if p is not None), None)
        if broken is not None:
            out.held = Problem(reasons.NEW_REVISION_FAILS, f"the old replicas stay: {broken.message}")
        elif stuck:
            out.held = Problem(
                reasons.NO_ROOM_FOR_SURGE,
                f"{stuck[0].name} waits for room and strategy Surge ends no old replica first",
            )
        return
    if len(live) < wanted:
        return
    # One beside the wanted ones: after a change back and forth it may be there already.
    if not stuck and len(live) <= wanted and _may_surge(observed, ready):
        out.create, out.create_reason = 1, reasons.ROLLOUT_IN_PROGRESS
        out.create_message = (
            f"revision {observed.revision}: a new replica beside {count(len(serving), 'old one')}"
        )
        return
    floor = 0 if fleet.strategy == "InPlace" else 1
    # One that is not ready is missed by nobody.
    if not victim.ready or ready_after >= max(wanted - fleet.max_unavailable, floor):
        out.drain.append(leave)
    elif not any(r.draining or r.pod.terminating for r in observed.replicas):
        out.held = Problem(
            reasons.LAST_READY_REPLICA if ready <= 1 else reasons.NO_ROOM_FOR_SURGE,
            f"{share_are(ready, wanted, 'replica')} ready and {_room(fits)}: taking one away would leave "
            f"{ready_after or 'none'}; free GPUs, or allow it with rollout.strategy InPlace",
        )


def _may_surge(observed: Observed, ready: int) -> bool:
    fleet, fits = observed.fleet, observed.capacity.fits
    match fleet.strategy:
        case "Surge":
            return True
        case "InPlace":
            return False
        case "Auto":
            if observed.node_autoscaler:
                return True
            # Unknown room: a pod that may stay pending is the only way on when just one replica is ready.
            return ready <= 1 if fits is None else fits >= 1


def _fill(observed: Observed, missing: int, target: Target, now: float, out: Shape) -> None:
    if observed.revision is None:
        return
    live = [r for r in observed.replicas if r.live]
    for replica in _resumable(observed)[:missing]:
        out.resume.append(replica)
    missing -= len(out.resume)
    if missing <= 0:
        return
    allowed = _allowed(observed, live, missing, out)
    retry_at = _replace_after(observed, now)
    if retry_at > now:
        out.wake(retry_at)
        allowed = 0
    lost = any(not r.live and r.pod.finished for r in observed.replicas)
    out.create = allowed
    out.create_reason = reasons.REPLACING_REPLICA if lost else reasons.SCALING_UP
    out.create_message = _too_few_or_many(target.replicas, len(live), target)


def _too_few_or_many(wanted: int, live: int, target: Target) -> str:
    return f"{count_are(wanted, 'replica')} wanted and {there_are(live)}: {target.message}"


def _room(fits: int | None) -> str:
    if fits is None:
        return "nobody knows whether there is room for more"
    return f"there is room for {fits} more" if fits else "there is no room for more"


def _allowed(observed: Observed, live: list[Replica], missing: int, out: Shape) -> int:
    """How many of the missing may be made now: replicas that cannot be scheduled are bounded."""
    fits = observed.capacity.fits
    waiting = [r for r in live if not r.pod.node]
    stuck = next((r for r in waiting if r.unschedulable_since is not None), None)
    if observed.node_autoscaler:
        return missing
    if stuck is not None:
        out.limited = _no_room(observed, stuck)
        return 0
    if fits is None:
        # As many as have found a node, so the count of pods that may turn out to be too many stays small.
        return min(missing, max(0, max(1, len(live) - len(waiting)) - len(waiting)))
    if fits < missing:
        out.limited = _no_room(observed, None)
    # One more than fits waits in the queue of the scheduler: the first free place is taken without us.
    return min(missing, fits + (0 if waiting else 1))


def _tell_stuck(observed: Observed, live: list[Replica], wanted: int, now: float, out: Shape) -> None:
    """All that are wanted are there, and the scheduler has no node for one of them."""
    stuck = sorted((since, r.pod.slot, r) for r in live if (since := r.unschedulable_since) is not None)
    if out.limited is not None or not stuck or sum(1 for r in live if r.pod.node) >= wanted:
        return
    if any(r.draining or r.pod.terminating for r in observed.replicas):
        # It waits for the place of one of ours, which is on its way out.
        return
    since, _, replica = stuck[0]
    if not observed.node_autoscaler:
        out.limited = _no_room(observed, replica)
    elif now < since + UNSCHEDULABLE_GRACE_S:
        out.wake(since + UNSCHEDULABLE_GRACE_S)
    else:
        # Nodes that there are say nothing about those that may come.
        out.limited = Problem(reasons.UNSCHEDULABLE, _waits_for_node(replica))


def _waits_for_node(replica: Replica) -> str:
    return f"{replica.name} waits for a node: {replica.pod.conditions['PodScheduled'].message}".rstrip(": ")


def _no_room(observed: Observed, stuck: Replica | None) -> Problem:
    room = observed.capacity
    said = _waits_for_node(stuck) if stuck is not None else ""
    if room.fits is None:
        return Problem(reasons.UNSCHEDULABLE, said or "no node has room for another replica")
    if room.nodes_large_enough == 0:
        return Problem(
            reasons.NO_NODE_FITS,
            f"{_none_large_enough(room.nodes_matching)}; lower replica.gpus or add nodes. {said}".rstrip(
                ". "
            ),
        )
    return Problem(
        reasons.UNSCHEDULABLE if room.fits else reasons.GPUS_EXHAUSTED,
        f"{count_are(room.nodes_large_enough, 'node')} large enough for a replica, and {_room(room.fits)}. {said}".rstrip(
            ". "
        ),
    )


def _none_large_enough(matching: int) -> str:
    match matching:
        case 0:
            return "no node matches the replica's selectors and tolerations"
        case 1:
            return "the only node that matches is too small for one replica"
        case _:
            return f"none of the {matching} nodes that match is large enough for one replica"


def _resumable(observed: Observed) -> list[Replica]:
    """Draining replicas that can serve again: warm ones before cold ones. One that must leave its node is none."""
    found = [
        r
        for r in observed.replicas
        if r.draining
        and not r.pod.terminating
        and r.pod.revision == observed.revision
        and r.drain is not None
        and r.drain.reason in (reasons.SCALE_DOWN, reasons.ROLLOUT)
        and r.load is not None
        and r.load.state in ("SERVING", "DRAINING", "DRAINED")
        and r.may_have_streams
        and r.uid not in observed.unresumable
    ]
    # Those already half-way back first, so that two passes mean the same replica.
    return sorted(
        found, key=lambda r: (0 if r.load is not None and r.load.state == "SERVING" else 1, r.pod.slot)
    )


def _replace_after(observed: Observed, now: float) -> float:
    times = sorted(t for t in map(failed_at, observed.replicas) if t is not None and t > now - FAILED_KEEP_S)
    if len(times) < 2:
        return 0.0
    return times[-1] + min(REPLACE_BACKOFF_S * 2.0 ** (len(times) - 2), REPLACE_BACKOFF_MAX_S)


def failed_at(replica: Replica) -> float | None:
    if not replica.pod.finished:
        return None
    ended = [c.at for name, c in replica.pod.conditions.items() if name in ("Ready", "ContainersReady")]
    return max([replica.pod.created_at, *ended])


def _take_back_unschedulable(observed: Observed, live: list[Replica], now: float, out: Shape) -> None:
    if observed.node_autoscaler:
        return
    stuck = sorted((since, r.pod.slot, r) for r in live if (since := r.unschedulable_since) is not None)
    for since, _, replica in stuck[1:]:
        if now >= since + UNSCHEDULABLE_GRACE_S:
            out.drain.append(
                Leaving(
                    replica, reasons.UNSCHEDULABLE, f"{len(stuck)} replicas wait for a node, only 1 should"
                )
            )
        else:
            out.wake(since + UNSCHEDULABLE_GRACE_S)


def _replace_closed(observed: Observed, live: list[Replica], out: Shape) -> None:
    """A replica that nobody asked to drain, refuses work and does not take Resume will never serve again."""
    for replica in live:
        if closed(replica) and replica.uid in observed.unresumable and not replica.ready:
            out.drain.append(
                Leaving(
                    replica,
                    reasons.EVICTION,
                    "it refuses requests and did not take Resume: another takes its place",
                )
            )


def closed(replica: Replica) -> bool:
    return replica.live and replica.load is not None and replica.load.state in ("DRAINING", "DRAINED")
