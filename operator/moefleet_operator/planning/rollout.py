"""From one revision to the next, one step at a time: a pure function of the replicas that there are and of the history.

A new revision begins with one replica, the canary; it goes on when the canary has passed (planning/canary.py), and a
refused one makes way for the last good revision. The rules on the road: the number of ready replicas never falls below
the target by our own doing, except that a rollout in place may take `maxUnavailable` away; strategy Auto never takes the
last ready one; replicas that serve nobody cost nothing and go at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .changes import Leaving, Shape, Stand
from .failing import failing
from .history import entry_of, verdict_of
from .observed import Observed, Replica
from .victims import victims
from .warm import resumable
from .wording import count, share_are, there_are


@dataclass(frozen=True, slots=True)
class Course:
    """Where to: `aim` is what the replicas should become, `rest` what those beyond the canary are made of meanwhile."""

    # plain: `aim` for all. canary: one replica of `aim`, the others stay. undone: `aim` is the last good one again.
    stage: Literal["plain", "canary", "undone"]
    aim: RenderedPod | None
    rest: RenderedPod | None

    @property
    def revisions(self) -> tuple[str, ...]:
        """The most wanted first."""
        return tuple(dict.fromkeys(r.revision for r in (self.aim, self.rest) if r is not None))


def course(observed: Observed, *, passed: bool = False) -> Course:
    """`passed`: the canary has just proved itself, which may not be written down yet."""
    rendered, good = observed.rendered, observed.good
    if isinstance(rendered, Problem):
        # What cannot be made is no reason to let what can be made die out.
        return Course("undone" if good is not None else "plain", good, good)
    if observed.history is None or passed:
        return Course("plain", rendered, rendered)
    match verdict_of(observed.history, rendered.revision):
        case "good":
            return Course("plain", rendered, rendered)
        case "refused" if good is not None:
            return Course("undone", good, good)
        case _:
            if any(_deserves_care(r, rendered.revision) for r in observed.replicas):
                return Course("canary", rendered, good or rendered)
            return Course("plain", rendered, rendered)


def _deserves_care(replica: Replica, revision: str) -> bool:
    """It serves and is of another revision. Where nobody does, there is nothing to lose and a fix should be quick."""
    serves = replica.ready or (replica.live and replica.may_have_streams and failing(replica) is None)
    return serves and replica.pod.revision != revision


def advance(
    observed: Observed, way: Course, live: list[Replica], wanted: int, out: Shape, *, now: float
) -> None:
    """The next step from old replicas to `way.aim`; nothing when none is old."""
    aim = way.aim
    if aim is None:
        return
    old = [r for r in live if r.pod.revision != aim.revision]
    if not old:
        return
    fleet, fits = observed.fleet, observed.capacity.fits
    kept = {way.rest.revision} if way.stage == "canary" and way.rest is not None else set()
    idle = [r for r in old if r.pod.revision not in kept and _serves_nobody(r)]
    gone = {leaving.replica.uid for leaving in out.drain}
    for replica in idle:
        if replica.uid not in gone:
            out.drain.append(Leaving(replica, reasons.ROLLOUT, _why(observed, way, replica)))
    serving = [r for r in old if r not in idle]
    coming = [r for r in live if r not in old]
    if not serving or idle:
        return
    if way.stage == "canary" and any(r.ready for r in coming):
        # It is being compared; whoever serves goes on serving.
        return
    ready = sum(1 for r in live if r.ready)
    victim = victims(serving, tuple(kept))[0]
    ready_after = ready - (1 if victim.ready else 0)
    leave = Leaving(
        victim,
        reasons.ROLLOUT,
        f"{_why(observed, way, victim)}: {share_are(len(serving), len(live), 'replica')} "
        f"old, {ready_after} of {wanted} wanted will be ready meanwhile",
    )
    waiting = [r for r in coming if not r.ready]
    if ready_after >= wanted and not (way.stage == "canary" and waiting):
        _stand(out, "Surge", f"{ready} are ready and {wanted} wanted, so {victim.name} goes")
        out.drain.append(leave)
        return
    stuck = [r for r in waiting if r.unschedulable_since is not None]
    going = sum(1 for r in observed.replicas if _leaves(r))
    if way.stage == "canary" and stuck and going >= len(stuck):
        _stand(out, "Wait", f"{stuck[0].name} waits for the place of a replica that is on its way out")
        return
    floor = max(wanted - fleet.max_unavailable, 0 if fleet.strategy == "InPlace" else 1)
    # One that does not serve is missed by nobody; one that was just taken back does, and is ready in a moment.
    spare = ready_after >= floor or not victim.serving
    if waiting and (fleet.strategy == "Surge" or len(stuck) < len(waiting)):
        # In place, `maxUnavailable` may be on their way at a time; a new one beside the old ones is waited for.
        in_place = way.stage != "canary" and len(live) <= wanted and not _may_surge(observed, ready)
        if not (in_place and spare and victim.ready) or any(failing(r) is not None for r in waiting):
            _wait_for(waiting, stuck, out)
            return
    if len(live) < wanted:
        _stand(
            out, "Wait", f"{there_are(len(live))} of {count(wanted, 'wanted replica')}, and one more comes"
        )
        return
    # One beside the wanted ones: after a change back and forth it may be there already, or still drain.
    warm = resumable(observed, aim.revision, {r.uid for r in out.resume}, now)
    if warm and len(live) <= wanted and fleet.strategy != "InPlace":
        said = f"{warm[0].name} is of revision {aim.revision} and still drains, so it comes back"
        _stand(out, "Surge", said)
        out.resume.append(warm[0])
        out.resume_message = said
        return
    if not stuck and len(live) <= wanted and _may_surge(observed, ready):
        said = f"revision {aim.revision}: a new replica beside {count(len(serving), 'old one')}"
        _stand(out, "Surge", f"{said}, because {_why_surge(observed)}")
        out.make(aim, 1, said, reasons.ROLLOUT_IN_PROGRESS)
        return
    if fleet.strategy == "Auto" and not waiting and not fits and going:
        _stand(out, "Wait", "a replica is on its way out, and its place is room for a new one")
        return
    if spare:
        _stand(out, "InPlace", f"{victim.name} goes first, because {_why_in_place(observed)}")
        out.drain.append(leave)
    elif not going:
        out.held = Problem(
            reasons.LAST_READY_REPLICA if ready <= 1 else reasons.NO_ROOM_FOR_SURGE,
            f"{share_are(ready, wanted, 'replica')} ready and {room(fits)}: taking one away would leave "
            f"{ready_after or 'none'}; free GPUs, or allow it with rollout.strategy InPlace",
        )
        _stand(out, "Wait", out.held.message)
    else:
        _stand(out, "Wait", "a replica is on its way out, and its place is needed")


def refusal(observed: Observed, way: Course) -> Problem | None:
    """Why the wanted revision is not rolled out; it heals with the next change of the spec."""
    revision = observed.revision
    if way.stage != "undone" or revision is None or way.aim is None:
        return None
    entry = entry_of(observed.history or (), revision)
    if entry is None:
        return None
    return Problem(
        entry.reason or reasons.NEW_REVISION_FAILS,
        f"revision {revision} is refused, {way.aim.revision} goes on: {entry.message or 'its canary failed'}; "
        "change the spec, or take it back with `moefleet undo`",
    )


def _serves_nobody(replica: Replica) -> bool:
    return not replica.ready and (not replica.may_have_streams or failing(replica) is not None)


def _leaves(replica: Replica) -> bool:
    return replica.draining or replica.pod.terminating


def _why(observed: Observed, way: Course, replica: Replica) -> str:
    assert way.aim is not None
    if way.stage == "undone" and replica.pod.revision == observed.revision:
        return f"revision {replica.pod.revision} is refused and {way.aim.revision} takes its place"
    return f"revision {way.aim.revision} replaces {replica.pod.revision}"


def _wait_for(waiting: list[Replica], stuck: list[Replica], out: Shape) -> None:
    """The new one is not ready yet: nothing goes before it is."""
    broken = next((p for p in map(failing, waiting) if p is not None), None)
    if broken is not None:
        out.held = Problem(reasons.NEW_REVISION_FAILS, f"the old replicas stay: {broken.message}")
    elif stuck:
        out.held = Problem(
            reasons.NO_ROOM_FOR_SURGE,
            f"{stuck[0].name} waits for room and strategy Surge ends no old replica first",
        )
    _stand(
        out,
        "Wait",
        out.held.message
        if out.held
        else f"{waiting[0].name} is not ready yet, and nothing goes before it is",
    )


def _stand(out: Shape, step: Literal["Surge", "InPlace", "Wait"], message: str) -> None:
    out.stand = Stand(step, message)


def _may_surge(observed: Observed, ready: int) -> bool:
    fleet, fits = observed.fleet, observed.capacity.fits
    match fleet.strategy:
        case "Surge":
            return True
        case "InPlace":
            return False
        case "Auto":
            if observed.node_autoscaler and not observed.capacity.quota:
                return True
            # Unknown room: a pod that may stay pending is the only way on when just one replica is ready.
            return ready <= 1 if fits is None else fits >= 1


def _why_surge(observed: Observed) -> str:
    if observed.fleet.strategy == "Surge":
        return "rollout.strategy is Surge"
    if observed.capacity.fits is None and not observed.node_autoscaler:
        return "only one replica is ready, and nobody knows how much room there is"
    return "nodes are made for pods" if observed.node_autoscaler else room(observed.capacity.fits)


def _why_in_place(observed: Observed) -> str:
    if observed.fleet.strategy == "InPlace":
        return "rollout.strategy is InPlace"
    quota = observed.capacity.quota
    said = f"ResourceQuota {quota} leaves none" if quota else room(observed.capacity.fits)
    return f"{said}, and maxUnavailable is {observed.fleet.max_unavailable}"


def room(fits: int | None) -> str:
    if fits is None:
        return "nobody knows whether there is room for more"
    return f"there is room for {fits} more" if fits else "there is no room for more"
