"""What the core remembers between two passes. All of it may be lost at any moment: it only saves work and waiting."""

from __future__ import annotations

from moefleet_operator.api import MoEFleet
from moefleet_operator.planning.canary import watched
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Capacity, DrainSeen, Observed
from moefleet_operator.planning.revisions import Watch
from moefleet_operator.planning.steps import AnyStep, CallResume, CreateReplica
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .events import Key
from .ports import Jitter
from .queue import Backoff
from .translate import group_of, signature_of

# A name that somebody else's pod has is tried again after so long.
COLLISION_S = 600.0
# Backoffs of objects that nobody has tried to change for so long: they are gone.
FORGET_S = 600.0
# A create whose answer was lost may have made its pod: nothing of another name is made in its place, whatever the spec says
# meanwhile, until a watch shows it or a LIST shows that there is none. The watch comes first, if it lives, so the LIST is only asked for
# after so long; and so long the request itself may take to arrive. The same name may be tried at once, for that is never done twice.
DOUBT_S = 5.0
# Whoever waits for that LIST looks again so often.
DOUBT_LOOK_S = 1.0
# After a new failure of what had succeeded without effect: long enough to see the watch catch up.
NO_EFFECT_STATUS_S = 1.0

# Groups that are no object's: new pods, and the fleet's own status.
CREATE = "create"
STATUS = "status"

# A fleet and a group of steps that fail for the same reason.
At = tuple[Key, str]


class Memory:
    def __init__(self, jitter: Jitter) -> None:
        self.backoff: Backoff[At] = Backoff(jitter)
        self.targets: dict[Key, int] = {}
        self.status_at: dict[Key, float] = {}
        # Fleets that wait for free GPUs.
        self.want_room: set[Key] = set()
        # Replicas that did not take Resume.
        self.unresumable: set[str] = set()
        self.rendered: dict[Key, tuple[str, int, float, RenderedPod | Problem]] = {}
        # The last good revision as a pod: fleet's uid and generation, the revision.
        self.restored: dict[Key, tuple[str, int, str, RenderedPod | None]] = {}
        # Free room as it was last counted: for which pod, and from what.
        self.counted: dict[Key, tuple[RenderedPod, tuple[int, int, int], Capacity]] = {}
        # Comparisons of a new revision with the old one.
        self._watches: dict[Key, Watch] = {}
        # Signature of what last succeeded.
        self._last_done: dict[At, str] = {}
        self._refused: dict[Key, dict[str, Problem]] = {}
        self._generation: dict[Key, int] = {}
        self._collisions: dict[Key, dict[str, float]] = {}
        # Pods that may have been made: name, and how long that stays in doubt.
        self._doubts: dict[Key, dict[str, float]] = {}
        # Replicas whose node has had too few GPUs since when: nobody but us has seen when it began.
        self.short_since: dict[str, float] = {}
        # Replicas that were seen before they drained, and since when any is known to drain.
        self._undrained: set[str] = set()
        self._draining_since: dict[str, float] = {}

    # --- trying again ---------------------------------------------------------------------------------------

    def blocked_until(self, key: Key, step: AnyStep, now: float) -> float:
        """When this step may be done; not after `now`: at once."""
        at, signature = (key, group_of(step)), signature_of(step)
        until = self.backoff.until(at)
        if isinstance(step, CreateReplica):
            others = [u for name, u in self._doubts.get(key, {}).items() if name != step.name]
            return max([until, *(u if u > now else now + DOUBT_LOOK_S for u in others)])
        if until <= now and self._repeats(at, signature):
            return self.backoff.failed(at, now)
        return until

    def status_blocked_until(self, key: Key, signature: str, now: float) -> float:
        until = self.backoff.until((key, STATUS))
        if until <= now and self._repeats((key, STATUS), signature):
            return self.backoff.failed((key, STATUS), now, NO_EFFECT_STATUS_S)
        return until

    def succeeded(self, at: At, signature: str) -> None:
        # The same thing again did not help the last time, so its backoff goes on growing.
        if self._last_done.get(at) != signature:
            self.backoff.succeeded(at)
        self._last_done[at] = signature
        self._refused.get(at[0], {}).pop(at[1], None)

    def _repeats(self, at: At, signature: str) -> bool:
        """It succeeded and is wanted again: doing it at full speed would not help more. Asked once, then forgotten."""
        if self._last_done.get(at) != signature:
            return False
        del self._last_done[at]
        return True

    # --- what was refused -------------------------------------------------------------------------------------

    def refuse(self, at: At, problem: Problem) -> None:
        self._refused.setdefault(at[0], {})[at[1]] = problem

    def refuse_resume(self, step: CallResume) -> None:
        self.unresumable.add(step.uid)

    def refused(self, key: Key, pods: set[str]) -> dict[str, Problem]:
        """What was refused about a pod that is gone is no problem any more."""
        found = self._refused.get(key, {})
        about_pod = {group for group in found if " " in group and not group.startswith("apply ")}
        return {
            group: p
            for group, p in found.items()
            if group not in about_pod or group.rsplit(" ", 1)[1] in pods
        }

    def any_refused(self, key: Key) -> bool:
        return bool(self._refused.get(key))

    def keep_refused(self, key: Key, groups: set[str]) -> bool:
        """Forget what was refused of other groups; whether there was any."""
        found = self._refused.get(key, {})
        kept = {group: problem for group, problem in found.items() if group in groups}
        if len(kept) == len(found):
            return False
        self._refused[key] = kept
        return True

    def saw_generation(self, key: Key, resource: MoEFleet) -> None:
        """Another spec: what was refused before may not be refused now."""
        if self._generation.get(key) != resource.metadata.generation:
            self._generation[key] = resource.metadata.generation
            self._refused.pop(key, None)
            self.backoff.succeeded((key, CREATE))

    def drain_seen(self, pod: PodFacts, now: float) -> DrainSeen | None:
        """None: it does not drain."""
        if not pod.draining:
            self._undrained.add(pod.uid)
            self._draining_since.pop(pod.uid, None)
            return None
        seconds = now - self._draining_since.setdefault(pod.uid, now)
        return DrainSeen(seconds, whole=pod.uid in self._undrained)

    def collide(self, key: Key, name: str, now: float) -> None:
        self._collisions.setdefault(key, {})[name] = now + COLLISION_S

    def collisions(self, key: Key, now: float) -> set[str]:
        return {name for name, until in self._collisions.get(key, {}).items() if until > now}

    def doubt(self, key: Key, name: str, now: float) -> None:
        """Whether this pod was made is not known."""
        self._doubts.setdefault(key, {})[name] = now + DOUBT_S

    def must_look(self, now: float) -> bool:
        """Whether a pod is in doubt that a watch would have shown by now."""
        return any(until <= now for found in self._doubts.values() for until in found.values())

    def answered(self, key: Key, name: str) -> None:
        self._doubts.get(key, {}).pop(name, None)

    def saw_pods(self, key: Key, pods: set[str]) -> None:
        if key in self._doubts:
            self._doubts[key] = {name: u for name, u in self._doubts[key].items() if name not in pods}

    def watch(self, key: Key, observed: Observed, wall: float) -> Watch | None:
        """Where the comparison of a new revision began; from now on, when it begins."""
        found = watched(observed, self._watches.get(key), wall)
        if found is None:
            self._watches.pop(key, None)
        else:
            self._watches[key] = found
        return found

    # --- forgetting -------------------------------------------------------------------------------------------

    def drop(self, key: Key) -> None:
        """The fleet is gone."""
        self.want_room.discard(key)
        self.targets.pop(key, None)
        self.status_at.pop(key, None)
        self.rendered.pop(key, None)
        self.restored.pop(key, None)
        self.counted.pop(key, None)
        self._watches.pop(key, None)
        self._refused.pop(key, None)
        self._generation.pop(key, None)
        self._collisions.pop(key, None)
        self._doubts.pop(key, None)
        self._last_done = {at: done for at, done in self._last_done.items() if at[0] != key}

    def forget(self, pods: set[str], now: float, listed_since: float) -> None:
        """After each LIST of pods: what is about objects that are gone. Its reading began at `listed_since`."""
        self.unresumable &= pods
        self._undrained &= pods
        self._draining_since = {uid: since for uid, since in self._draining_since.items() if uid in pods}
        self.short_since = {uid: since for uid, since in self.short_since.items() if uid in pods}
        self.backoff.forget(now, FORGET_S)
        self._doubts = {
            key: left
            for key, found in self._doubts.items()
            if (left := {name: until for name, until in found.items() if until > listed_since})
        }
        self._last_done = {
            at: done
            for at, done in self._last_done.items()
            if at[1] in (CREATE, STATUS) or at[1].startswith("apply ") or at[1].rsplit(" ", 1)[1] in pods
        }
