"""`plan(observed, now)`: everything to be done about one fleet now, in any order, each step with its reason.

Applied to what it describes, a plan leads to a state whose plan has nothing more to do at the same time. A restart
between any two steps is harmless: the next plan is made from what is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.away import away_from
from moefleet_operator.rendering.pdb import render_pdb
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem
from moefleet_operator.rendering.service import render_service

from . import drain
from .canary import opinion
from .changes import Shape, Stand
from .children import child, foreign
from .facts import PodFacts
from .history import keep, verdict_of
from .leaving import avoid
from .observed import Observed, Replica
from .registration import registration
from .revisions import Opinion, Verdict
from .rollout import course
from .shape import FAILED_KEEP_MAX, FAILED_KEEP_S, closed, failed_at, shape
from .status import Work, status
from .steps import AdoptReplica, AnyStep, CallResume, CreateReplica, DeleteReplica, Plan
from .target import target


def plan(observed: Observed, now: float) -> Plan:
    if observed.fleet.deleting:
        return Plan(waits=("the fleet is being deleted: nothing is created, its pods end by themselves",))
    wanted = target(observed)
    found = _judge(observed, now)
    made = shape(observed, wanted, now, passed=found.verdict == "good")
    if found.wake_at is not None:
        made.wake(found.wake_at)
    if found.message and not found.verdict and course(observed).stage == "canary":
        made.stand = Stand("Canary", found.message)
        if found.reason:
            said = f"{found.message}; no earlier revision is kept that could be made again"
            made.held, made.stand = Problem(found.reason, said), Stand("Wait", said)
    builder = _Builder(observed, now, made)
    builder.take_away()
    builder.bring_back()
    builder.keep_roads()
    builder.clean_failed()
    builder.adopt_or_create()
    builder.keep_children(wanted.replicas)
    builder.keep_history(found)
    return Plan(
        steps=tuple(builder.steps),
        target=wanted,
        status=status(observed, Work(wanted, made, tuple(builder.waits), bool(builder.steps)), now),
        wake_at=builder.wake_at,
        wants_room=made.limited is not None or made.held is not None,
        waits=tuple(builder.waits),
    )


def _judge(observed: Observed, now: float) -> Opinion:
    """The verdict on the wanted revision: the one that is written down, or a new one."""
    if observed.history is None or observed.revision is None:
        return Opinion("")
    known: Verdict = verdict_of(observed.history, observed.revision)
    if known == "refused":
        entry = next(r for r in observed.history if r.revision == observed.revision)
        return Opinion(known, entry.reason, entry.message)
    found = Opinion(known) if known else opinion(observed, now)
    # Nothing to go back to: the old replicas stay, as far as they are there, and the status says what fails.
    return replace(found, verdict="") if found.verdict == "refused" and observed.good is None else found


class _Builder:
    def __init__(self, observed: Observed, now: float, made: Shape) -> None:
        self.observed = observed
        self.now = now
        self.made = made
        self.steps: list[AnyStep] = []
        self.waits: list[str] = []
        self.wake_at = made.wake_at

    def take_away(self) -> None:
        for leaving in self.made.drain:
            self.steps.append(drain.begin(leaving.replica, leaving.reason, leaving.message))

    def bring_back(self) -> None:
        for replica in self.made.resume:
            step = drain.resume(
                replica,
                self.made.resume_message
                or "wanted again: a warm replica comes back before a cold one is made",
            )
            if step is not None:
                self.steps.append(step)

    def keep_roads(self) -> None:
        """Draining replicas go on, live ones get their label and their gate."""
        leaving = {entry.replica.uid for entry in self.made.drain}
        back = {replica.uid for replica in self.made.resume}
        for replica in self.observed.replicas:
            if not replica.pod.labelled and not replica.pod.terminating:
                self.steps.append(relabelled(replica))
            if (
                replica.uid in leaving
                or replica.uid in back
                or replica.pod.terminating
                or replica.pod.finished
            ):
                continue
            if replica.draining:
                self._go(drain.road(self.observed, replica, self.now))
                continue
            if (step := drain.label(replica)) is not None:
                self.steps.append(step)
            if (call := self._reopen(replica)) is not None:
                self.steps.append(call)
            self._go(registration(self.observed, replica, self.now))

    def clean_failed(self) -> None:
        """Failed pods are evidence for people and the memory of the backoff; only the newest are kept, and not for long."""
        failed = sorted(
            (
                (at, r)
                for r in self.observed.replicas
                if not r.pod.terminating and (at := failed_at(r)) is not None
            ),
            key=lambda pair: (pair[0], pair[1].name),
        )
        keep = {r.uid for _, r in failed[-FAILED_KEEP_MAX:]}
        for at, replica in failed:
            if replica.uid in keep and self.now < at + FAILED_KEEP_S:
                self._wake(at + FAILED_KEEP_S)
                continue
            self.steps.append(
                DeleteReplica(
                    name=replica.name,
                    uid=replica.uid,
                    reason=reasons.REPLACING_REPLICA,
                    message=(
                        f"it failed {self.now - at:.0f} s ago; of failed pods the newest {FAILED_KEEP_MAX} "
                        f"are kept for {FAILED_KEEP_S:.0f} s"
                    ),
                    grace_s=None,
                )
            )

    def adopt_or_create(self) -> None:
        for making in self.made.create:
            rendered, count = making.rendered, making.count
            for pod in adoptable(self.observed.orphans, rendered)[:count]:
                count -= 1
                owners = rendered.body["metadata"]["ownerReferences"]
                self.steps.append(
                    AdoptReplica(
                        name=pod.name,
                        uid=pod.uid,
                        reason=making.reason,
                        message=f"nobody owns it and it is of revision {rendered.revision}: {making.message}",
                        body={"metadata": {"uid": pod.uid, "ownerReferences": owners}},
                    )
                )
            for slot in free_slots(self.observed.taken, rendered, count):
                self.steps.append(
                    CreateReplica(
                        name=rendered.name(slot),
                        reason=making.reason,
                        message=making.message,
                        slot=slot,
                        body=away_from(rendered.at(slot), avoid(self.observed)),
                    )
                )

    def keep_children(self, desired: int) -> None:
        resource = self.observed.resource
        if resource is None:
            return
        # As their labels are seen to be, not as they shall be: the budget counts again after the label has changed, not before.
        left_out = [r.uid for r in self.observed.replicas if not r.pod.active and not r.pod.terminating]
        for wanted, live in (
            (render_service(resource), self.observed.service),
            (render_pdb(resource, desired, left_out), self.observed.pdb),
        ):
            if foreign(wanted["kind"], live, self.observed.fleet.uid) is not None:
                # The status says it; server-side apply would take it over.
                continue
            if (step := child(wanted, live)) is not None:
                self.steps.append(step)

    def keep_history(self, found: Opinion) -> None:
        observed = self.observed
        if (
            observed.history is None
            or observed.resource is None
            or not isinstance(observed.rendered, RenderedPod)
        ):
            return
        good = {observed.good.revision} if observed.good is not None else set()
        self.steps += keep(
            observed.history,
            observed.resource,
            observed.spec,
            observed.rendered.revision,
            found,
            in_use=frozenset(good | {r.pod.revision for r in observed.replicas}),
        )

    def _reopen(self, replica: Replica) -> CallResume | None:
        """It refuses work although nobody wants it to: a Resume that was lost between two leaders."""
        address = drain.address_of(replica)
        if not closed(replica) or replica.uid in self.observed.unresumable or address is None:
            return None
        return CallResume(
            name=replica.name,
            uid=replica.uid,
            reason=reasons.SCALING_UP,
            message="it refuses requests, but its condition says that it serves",
            address=address,
        )

    def _go(self, leg: drain.Leg) -> None:
        self.steps.extend(leg.steps)
        if leg.waits:
            self.waits.append(leg.waits)
        if leg.wake_at is not None:
            self._wake(leg.wake_at)

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def relabelled(replica: Replica) -> AdoptReplica:
    """Without its labels no gateway, Service or budget knows a pod that still holds its GPUs."""
    pod = replica.pod
    labels = names.replica_labels(pod.fleet, pod.revision, pod.slot)
    del labels[names.LABEL_ACTIVE]
    return AdoptReplica(
        name=pod.name,
        uid=pod.uid,
        reason=reasons.LABELS_RESTORED,
        message="somebody changed the labels that say whose replica it is",
        body={"metadata": {"uid": pod.uid, "labels": labels}},
    )


def free_slots(taken: frozenset[str], rendered: RenderedPod, count: int) -> list[int]:
    """The lowest slots whose name nobody has. A terminating pod has its name until it is gone."""
    slots: list[int] = []
    slot = 0
    while len(slots) < count and slot <= names.SLOT_MAX:
        if rendered.name(slot) not in taken:
            slots.append(slot)
        slot += 1
    return slots


def adoptable(orphans: Iterable[PodFacts], rendered: RenderedPod) -> list[PodFacts]:
    """Orphans that are what we would create. One with another control token would answer neither us nor the gateways."""
    return [
        pod
        for pod in orphans
        if pod.revision == rendered.revision
        and not pod.terminating
        and not pod.finished
        and not pod.is_true(names.CONDITION_DRAINING)
        and pod.token_sha256 == rendered.token_sha256
    ]
