"""When the core may plan: it holds the Lease, has settled, and has listed what there is since it leads. And how it stops."""

from __future__ import annotations

import math

from .effects import Effect, Exit, ReadLease, Relist, WriteLease
from .events import ESSENTIAL, KINDS, Key, Kind, Ok, Outcome
from .lease import LeaseMachine, Read
from .settings import CoreSettings

# A new leader waits so long before its first plan: what the old one has just done is on its way through the watch.
SETTLE_S = 2.0
# Shorter than the renewal deadline, so that a request that hangs leaves time for another one.
LEASE_REQUEST_S = 5.0
# A watch can be cut without its noticing, so what a standby knows may be as old as its last LIST. A new leader lists before
# its first plan; for so long it waits for what was asked, and so long before it asks again after a refusal.
RELIST_MAX_S = 30.0
RELIST_RETRY_S = 2.0
# Why one that has listed lists again.
IN_DOUBT = "a pod may have been made, its answer was lost, and no watch has shown it"
# At the end: effects under way may finish; then the Lease is given back, or left to expire.
STOP_WAIT_S = 5.0


class Leadership:
    def __init__(self, settings: CoreSettings) -> None:
        self._lease = LeaseMachine(
            settings.identity, settings.namespace, settings.lease_name, settings.lease_owner
        )
        self._lease_key = Key(settings.namespace, settings.lease_name)
        self._self_key = Key(settings.namespace, settings.identity)
        self._synced: set[Kind] = set()
        # Kinds that cannot be watched here.
        self.unavailable: set[Kind] = set()
        self._effect: int | None = None
        self._led = False
        self._led_since = 0.0
        self._settle_until = 0.0
        # Kinds without which nothing is planned, and that were not listed since we lead.
        self._unlisted: set[Kind] = set()
        self._relist: int | None = None
        self._relist_at = 0.0
        # When the process was told to end; None: it was not.
        self.stopping_since: float | None = None

    @property
    def act_until(self) -> float:
        return self._lease.act_until

    def leading(self, now: float) -> bool:
        return self._lease.leading(now)

    def may_plan(self, now: float) -> bool:
        return (
            self.stopping_since is None
            and self._lease.leading(now)
            and now >= self._settle_until
            and len(self._synced) == len(KINDS)
            and not self._unlisted
        )

    def listed(self, kind: Kind, began: float) -> None:
        """A LIST; it counts when its reading began after the old leader could do nothing any more."""
        if began >= self._led_since:
            self._unlisted.discard(kind)

    def synced(self, kind: Kind, available: bool) -> None:
        self._synced.add(kind)
        if not available:
            self.unavailable.add(kind)

    def begins(self, now: float) -> bool:
        """True once each time that we have become the leader."""
        leads = self._lease.leading(now)
        began = leads and not self._led
        self._led = leads
        if began:
            self._led_since = self._relist_at = now
            self._settle_until = now + SETTLE_S
            self._unlisted = set(ESSENTIAL) - self.unavailable
        return began

    def relist(self, now: float, *, in_doubt: bool) -> Effect | None:
        """A LIST, where the first plan of a new leader waits for one, or because a pod is in doubt; the caller says under which id it is
        under way. Not while one is, and not again at once."""
        if not (self._unlisted or in_doubt) or self._may_list_at(now) > now:
            return None
        led_s = now - self._led_since
        return Relist(
            id=0,
            object=self._self_key,
            reason="Relist",
            message=f"led since {led_s:.1f} s ago, and knows only what was told before"
            if self._unlisted
            else IN_DOUBT,
            not_after=now + RELIST_MAX_S,
        )

    def relisting(self, effect_id: int) -> None:
        self._relist = effect_id

    def _may_list_at(self, now: float) -> float:
        """Infinite: not as things are."""
        if self._relist is not None or self.stopping_since is not None or not self._lease.leading(now):
            return math.inf
        return self._relist_at

    def request(self, now: float, wall: float) -> Effect | None:
        """What to ask of the Lease now; the caller says under which id it is under way."""
        act = self._lease.step(now, wall)
        if act is None:
            return None
        if isinstance(act, Read):
            return ReadLease(
                id=0,
                object=self._lease_key,
                reason="ReadLease",
                message=f"held by {self._lease.holder or 'nobody that we know of'}",
                not_after=now + LEASE_REQUEST_S,
            )
        return WriteLease(
            id=0,
            object=self._lease_key,
            reason=f"{act.intent.capitalize()}Lease",
            message=f"{self._self_key.name}: {act.intent}",
            not_after=now + LEASE_REQUEST_S,
            intent=act.intent,
            body=act.body,
        )

    def under_way(self, effect_id: int) -> None:
        self._effect = effect_id

    def answered(self, effect_id: int, outcome: Outcome, now: float) -> bool:
        """Whether this answer was for the Lease, or for the LIST of a new leader."""
        if effect_id == self._relist:
            self._relist = None
            # What was listed is told by events of its own, and these may still be on their way.
            waits = RELIST_MAX_S if isinstance(outcome, Ok) and self._unlisted else RELIST_RETRY_S
            self._relist_at = now + waits
            return True
        if effect_id != self._effect:
            return False
        self._effect = None
        self._lease.done(outcome, now)
        return True

    # --- the end --------------------------------------------------------------------------------------------

    def stop(self, now: float) -> None:
        if self.stopping_since is None:
            self.stopping_since = now

    def let_go(self, busy: bool, now: float) -> None:
        """Give the Lease back as soon as nothing is under way that may still change something."""
        if self.stopping_since is not None and not busy:
            self._lease.release(now)

    def exit(self, busy: bool, now: float) -> Exit | None:
        """The end of the process, when its time has come."""
        if self.stopping_since is None:
            return None
        waited_s = now - self.stopping_since
        gave_up = busy and waited_s >= STOP_WAIT_S
        if not (self._lease.released or gave_up or waited_s >= 2 * STOP_WAIT_S):
            return None
        # Effects that are still under way may yet arrive: then the Lease is not given back but expires.
        said = (
            "nothing is under way, the Lease is free"
            if self._lease.released
            else "the Lease was left to expire"
        )
        return Exit(
            id=0,
            object=self._self_key,
            reason="Stopped",
            message=said,
            not_after=now + LEASE_REQUEST_S,
            code=0,
        )

    def wake_at(self, now: float) -> float:
        """When there is something to do without any event; infinite: never."""
        at = math.inf if self._lease.busy else self._lease.next_at
        if self._lease.leading(now):
            at = min(at, self._lease.act_until)
            if self._settle_until > now:
                at = min(at, self._settle_until)
            if self._unlisted:
                at = min(at, self._may_list_at(now))
        if self.stopping_since is not None:
            # Only what is to come: the first wait being over is no reason to look again at once, and again.
            waits = (self.stopping_since + STOP_WAIT_S, self.stopping_since + 2 * STOP_WAIT_S)
            at = min([at, *(end for end in waits if end > now)])
        return at
