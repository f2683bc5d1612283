"""The drain road of one replica: condition -> label -> withdrawn by the gateways -> Drain -> nothing runs -> delete.

The pod condition is the truth and its transition time the clock, so a new leader goes on where the old one stopped.
Gateways withdraw before the replica refuses, so on the usual road no request is refused at all; what still arrives
meets the replica's own refusal and is tried on another replica.
"""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons

from .observed import Observed, Replica
from .reported import GatewayView
from .steps import AnyStep, CallDrain, CallResume, DeleteReplica, Mark, MarkActive, MarkConditions
from .wording import count

# A gateway that has not withdrawn a replica by then is cut off or gone; the replica's own refusal covers the rest.
WITHDRAW_WAIT_S = 5.0
# Streams still running after drainTimeout are older than limits.streamDuration: time to end, not to go on.
GRACE_AFTER_DEADLINE_S = 30
# Clocks of nodes, API servers and operators may differ by so much without anything being wrong.
CLOCK_SLACK_S = 30.0
# What a replica says of its oldest stream is this old at most. Not more than the grace below: a clock that is wrong by less
# than this is not noticed, and what it takes from a stream the grace has to give back.
LOAD_AGE_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Leg:
    """The next piece of the road, and what it waits for."""

    steps: tuple[AnyStep, ...] = ()
    waits: str = ""
    wake_at: float | None = None


def begin(replica: Replica, reason: str, message: str) -> AnyStep:
    """Take a replica out of service. One that has served nobody goes at once, with its own grace to be safe."""
    if not replica.ready and not replica.may_have_streams:
        return DeleteReplica(
            name=replica.name,
            uid=replica.uid,
            reason=reason,
            message=f"{message}; it never served",
            grace_s=None,
        )
    marks = [Mark(type=names.CONDITION_DRAINING, status="True", reason=reason, message=message)]
    if names.GATE_REGISTERED in replica.pod.gates:
        marks.append(
            Mark(
                type=names.GATE_REGISTERED,
                status="False",
                reason=reasons.DRAINING,
                message="the replica drains",
            )
        )
    return MarkConditions(
        name=replica.name, uid=replica.uid, reason=reason, message=message, marks=tuple(marks)
    )


def road(observed: Observed, replica: Replica, now: float) -> Leg:
    """The next leg for a replica whose condition Draining is True."""
    drain = replica.drain
    assert drain is not None, f"{replica.name} does not drain"
    deadline = drain.at + observed.fleet.drain_timeout_s
    if not replica.may_have_streams:
        return _delete(replica, drain.reason, "its process does not run, so nothing can be cut", None)
    if drain.at > now + CLOCK_SLACK_S:
        # The clock was set back: by it the drain would last until the old time has come again.
        return Leg((begin(replica, drain.reason, drain.message),))
    seen = replica.drain_seen
    if seen is not None and (seen.whole or _was_never_told(replica)):
        # Time that goes by cannot be set.
        deadline = max(deadline, now + observed.fleet.drain_timeout_s - seen.seconds)
    deadline = max(deadline, _streams_end(observed, replica, drain.at, now))
    if now >= deadline:
        left = _left(observed, replica)
        return _delete(
            replica,
            drain.reason,
            f"drainTimeout of {observed.fleet.drain_timeout_s:g} s is over with {left}",
            GRACE_AFTER_DEADLINE_S,
        )
    if replica.pod.active:
        # After the deadline: a label that nobody lets us change must not keep the replica for ever.
        return Leg((_active(replica, drain.reason, False),), wake_at=deadline)
    slow = [g.name for g in observed.gateways if g.ready and not withdrawn_by(g.view, replica.uid)]
    if slow and now < drain.at + WITHDRAW_WAIT_S:
        return Leg(
            waits=f"{replica.name}: still chosen by {count(len(slow), 'gateway')}",
            wake_at=drain.at + WITHDRAW_WAIT_S,
        )
    load = replica.load
    if load is None or load.state not in ("DRAINING", "DRAINED"):
        address = address_of(replica)
        waits = f"{replica.name}: waits for the replica to confirm the drain"
        if address is None:
            return Leg(waits=waits, wake_at=deadline)
        call = CallDrain(
            name=replica.name,
            uid=replica.uid,
            reason=drain.reason,
            message=f"withdrawn by the gateways, {_left(observed, replica)}",
            address=address,
            drain_reason=drain.reason,
        )
        return Leg((call,), waits=waits, wake_at=deadline)
    if load.active or load.queued or in_flight(observed, replica.uid):
        return Leg(waits=f"{replica.name}: {_left(observed, replica)}", wake_at=deadline)
    return _delete(replica, drain.reason, "drained: nothing runs in it and nothing is in flight to it", None)


def resume(replica: Replica, message: str) -> AnyStep | None:
    """Back into service: first the process accepts again, then the condition lets the gateways choose it."""
    load = replica.load
    if load is None:
        return None
    if load.state != "SERVING":
        address = address_of(replica)
        if address is None:
            return None
        return CallResume(
            name=replica.name, uid=replica.uid, reason=reasons.SCALING_UP, message=message, address=address
        )
    mark = Mark(type=names.CONDITION_DRAINING, status="False", reason=reasons.RESUMED, message=message)
    return MarkConditions(
        name=replica.name, uid=replica.uid, reason=reasons.SCALING_UP, message=message, marks=(mark,)
    )


def label(replica: Replica) -> AnyStep | None:
    """A live replica whose label still says that it drains: the label follows the condition."""
    return None if replica.pod.active else _active(replica, reasons.SCALING_UP, True)


def withdrawn_by(view: GatewayView | None, uid: str) -> bool:
    """Unknown is not withdrawn."""
    if view is None:
        return False
    endpoint = view.endpoints.get(uid)
    return endpoint is None or not endpoint.registered


def in_flight(observed: Observed, uid: str) -> int:
    """Streams to this replica through all gateways that we hear, those that end included."""
    return sum(
        g.view.endpoints[uid].in_flight
        for g in observed.gateways
        if g.view is not None and uid in g.view.endpoints
    )


def address_of(replica: Replica) -> str | None:
    ip = replica.pod.ip
    if not ip:
        return None
    return f"[{ip}]:{names.PORT_CONTROL}" if ":" in ip else f"{ip}:{names.PORT_CONTROL}"


def _was_never_told(replica: Replica) -> bool:
    """Whoever marked it ended before he told it, a moment later: if the mark is old, then by a clock that was wrong. One that
    refuses to drain says the same, so it is believed for one drainTimeout."""
    return replica.load is not None and replica.load.state == "SERVING"


def _streams_end(observed: Observed, replica: Replica, began_at: float, now: float) -> float:
    """When the oldest stream will have had drainTimeout, by the replica's own clock, where that contradicts ours: a replica
    that drains takes nothing new, so its streams are at least as old as the drain, or our clock was set forward."""
    load = replica.load
    if load is None or load.state != "DRAINING" or not load.active or load.oldest_active_s <= 0:
        return 0.0
    if load.oldest_active_s + LOAD_AGE_MAX_S >= now - began_at:
        return 0.0
    return now + observed.fleet.drain_timeout_s - load.oldest_active_s


def _left(observed: Observed, replica: Replica) -> str:
    load = replica.load
    flying = in_flight(observed, replica.uid)
    if load is None:
        return f"an unknown number of requests left ({flying} in flight at the gateways)"
    return f"{count(load.active + load.queued, 'request')} left ({flying} in flight at the gateways)"


def _active(replica: Replica, reason: str, active: bool) -> MarkActive:
    return MarkActive(
        name=replica.name,
        uid=replica.uid,
        reason=reason,
        message=f"label {names.LABEL_ACTIVE}={'true' if active else 'false'} follows the condition",
        active=active,
    )


def _delete(replica: Replica, reason: str, message: str, grace_s: int | None) -> Leg:
    return Leg(
        (DeleteReplica(name=replica.name, uid=replica.uid, reason=reason, message=message, grace_s=grace_s),)
    )
