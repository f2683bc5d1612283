"""From the replicas that there are to those that should be: what to drain, what to resume, how many to create of what.

Everything is worked out anew from what is observed. Replicas that never served anybody cost nothing and go at once.
How one revision follows another is in planning/rollout.py.
"""

from __future__ import annotations

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .changes import Leaving, Shape, Stand
from .drain import CLOCK_SLACK_S
from .leaving import Departure, departure, disrupted, needs_room
from .nodes import trouble
from .observed import Observed, Replica
from .rollout import Course, advance, course, refusal, room
from .steps import Target
from .victims import victims
from .warm import resumable
from .wording import count_are, there_are

# A second unschedulable replica is taken back after so long: the scheduler looks again when a pod ends or a node comes.
# And where nodes are made for pods, nobody is told before.
UNSCHEDULABLE_GRACE_S = 30.0
# Failed pods are kept so long: they hold no GPU, and they are the memory of the backoff below.
FAILED_KEEP_S = 600.0
FAILED_KEEP_MAX = 5
# The first replacement is immediate; then 10 s, 20 s, ... with every pod that failed within FAILED_KEEP_S.
REPLACE_BACKOFF_S = 10.0
REPLACE_BACKOFF_MAX_S = 160.0


def shape(observed: Observed, target: Target, now: float, *, passed: bool = False) -> Shape:
    """`passed`: the new revision's canary has just proved itself."""
    out = Shape()
    way = course(observed, passed=passed)
    live = [r for r in observed.replicas if r.live]
    old = [r for r in live if way.aim is not None and r.pod.revision != way.aim.revision]
    wanted = target.replicas
    out.disrupted = disrupted(observed, now)
    if wanted == 0:
        out.drain = [Leaving(r, reasons.SCALE_DOWN, f"no replica is wanted: {target.message}") for r in live]
        out.held = refusal(observed, way)
        return out
    leaves = departure(observed, wanted, bool(old), now)
    surge = 1 if leaves.pending or (old and observed.fleet.strategy != "InPlace") else 0
    extra = len(live) - wanted - surge
    if extra > 0:
        for replica in victims(live, way.revisions)[:extra]:
            why = _too_few_or_many(wanted, len(live), target)
            out.drain.append(Leaving(replica, reasons.SCALE_DOWN, why))
        out.held = refusal(observed, way)
        return out
    _take_back_unschedulable(observed, way, live, now, out)
    _replace_closed(observed, live, out)
    _let_leave(observed, leaves, way, now, out)
    advance(observed, way, live, wanted, out, now=now)
    _fill(observed, way, target, now, out)
    _tell_stuck(observed, live, wanted, now, out)
    if (refused := refusal(observed, way)) is not None:
        out.held = refused
        out.stand = Stand("Undone", refused.message)
    return out


def falls_short(observed: Observed, target: Target) -> bool:
    """Whether replicas are missing, or of an older revision."""
    live = [r for r in observed.replicas if r.live]
    aim = course(observed).aim
    return len(live) < target.replicas or any(aim is None or r.pod.revision != aim.revision for r in live)


def wants_room(observed: Observed, target: Target) -> bool:
    """Whether the plan will ask how many more replicas fit: counting all nodes is worth it only then."""
    stuck = any(r.unschedulable_since is not None for r in observed.replicas)
    return falls_short(observed, target) or stuck or needs_room(observed)


def _let_leave(observed: Observed, leaves: Departure, way: Course, now: float, out: Shape) -> None:
    gone = {leaving.replica.uid for leaving in out.drain}
    out.drain += [Leaving(r, reasons.EVICTION, why) for r, why in leaves.go if r.uid not in gone]
    # While a canary is compared, what leaves is replaced by what has proved itself.
    if leaves.make and way.rest is not None:
        drain = resumable(observed, way.rest.revision, (), now)
        # Not from one node that somebody empties to another.
        warm = [r for r in drain if trouble(r.pod, r.node, now) is None][:1]
        out.resume += warm
        out.resume_message = leaves.make
        out.make(way.rest, 1 - len(warm), leaves.make, reasons.REPLACING_REPLICA)
    if leaves.wake_at is not None:
        out.wake(leaves.wake_at)


def _fill(observed: Observed, way: Course, target: Target, now: float, out: Shape) -> None:
    live = [r for r in observed.replicas if r.live]
    # What leaves in this very plan still lives: its place is taken when it is seen to have gone.
    missing = target.replicas - len(live)
    if missing <= 0 or way.aim is None or way.rest is None:
        return
    message = _too_few_or_many(target.replicas, len(live), target)
    out.resume_message = message
    # The place of the canary is the canary's: what made room for it must not come back into it.
    canaries = 0
    if way.stage == "canary" and not any(r.pod.revision == way.aim.revision for r in live):
        canaries = 1
    counted = [(way.aim, canaries), (way.rest, _beside_canaries(observed, way, live, missing - canaries))]
    short: list[tuple[RenderedPod, int]] = []
    for rendered, number in counted:
        found = resumable(observed, rendered.revision, {r.uid for r in out.resume}, now)[:number]
        out.resume += found
        short.append((rendered, number - len(found)))
    missing = sum(number for _, number in short)
    if missing <= 0:
        return
    allowed = _allowed(observed, live, missing, out)
    retry_at = _replace_after(observed, now)
    if retry_at > now:
        out.wake(retry_at)
        allowed = 0
    lost = any(not r.live and r.pod.finished for r in observed.replicas)
    for rendered, number in short:
        made = min(number, allowed)
        allowed -= made
        out.make(rendered, made, message, reasons.REPLACING_REPLICA if lost else reasons.SCALING_UP)


def _beside_canaries(observed: Observed, way: Course, live: list[Replica], number: int) -> int:
    """How many of the old revision may come: one that drains to make room for a canary without a node would drain again."""
    if way.stage != "canary" or way.aim is None:
        return number
    revision = way.aim.revision
    stuck = sum(1 for r in live if r.pod.revision == revision and r.unschedulable_since is not None)
    leaving = sum(
        1
        for r in observed.replicas
        if r.pod.terminating or (r.drain is not None and r.drain.reason == reasons.ROLLOUT)
    )
    return min(number, max(0, leaving - stuck)) if stuck and leaving else number


def _too_few_or_many(wanted: int, live: int, target: Target) -> str:
    return f"{count_are(wanted, 'replica')} wanted and {there_are(live)}: {target.message}"


def _allowed(observed: Observed, live: list[Replica], missing: int, out: Shape) -> int:
    """How many of the missing may be made now: replicas that cannot be scheduled are bounded."""
    fits = observed.capacity.fits
    waiting = [r for r in live if not r.pod.node]
    stuck = next((r for r in waiting if r.unschedulable_since is not None), None)
    if observed.capacity.quota:
        # The API server refuses what the quota does not hold: no use in one more that waits.
        if (fits or 0) < missing:
            out.limited = _no_room(observed, None)
        return min(missing, fits or 0)
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
    found = observed.capacity
    said = _waits_for_node(stuck) if stuck is not None else ""
    if found.quota:
        return Problem(
            reasons.QUOTA_EXCEEDED,
            f"by ResourceQuota {found.quota} of the namespace {room(found.fits)}. {said}".rstrip(". "),
        )
    if found.fits is None:
        return Problem(reasons.UNSCHEDULABLE, said or "no node has room for another replica")
    if found.nodes_large_enough == 0:
        return Problem(
            reasons.NO_NODE_FITS,
            f"{_none_large_enough(found.nodes_matching)}; lower replica.gpus or add nodes. {said}".rstrip(
                ". "
            ),
        )
    return Problem(
        reasons.UNSCHEDULABLE if found.fits else reasons.GPUS_EXHAUSTED,
        f"{count_are(found.nodes_large_enough, 'node')} large enough for a replica, and {room(found.fits)}. {said}".rstrip(
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


def _replace_after(observed: Observed, now: float) -> float:
    # What is said to have failed in the future says that a clock is wrong: it must not hold up replacements until then.
    times = sorted(
        t
        for t in map(failed_at, observed.replicas)
        if t is not None and now - FAILED_KEEP_S < t <= now + CLOCK_SLACK_S
    )
    if len(times) < 2:
        return 0.0
    return times[-1] + min(REPLACE_BACKOFF_S * 2.0 ** (len(times) - 2), REPLACE_BACKOFF_MAX_S)


def failed_at(replica: Replica) -> float | None:
    if not replica.pod.finished:
        return None
    ended = [c.at for name, c in replica.pod.conditions.items() if name in ("Ready", "ContainersReady")]
    return max([replica.pod.created_at, *ended])


def _take_back_unschedulable(
    observed: Observed, way: Course, live: list[Replica], now: float, out: Shape
) -> None:
    """One may wait, of the newest revision: an older one in its stead would have the rollout make it anew, again and again."""
    if observed.node_autoscaler:
        return
    aim = way.aim.revision if way.aim is not None else None
    stuck = sorted(
        (r.pod.revision != aim, since, r.pod.slot, r)
        for r in live
        if (since := r.unschedulable_since) is not None
    )
    for _, since, _, replica in stuck[1:]:
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
