"""The readiness gate `moefleet.io/gateway-registered`: a replica is Ready only when the gateways send requests to it."""

from __future__ import annotations

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons

from .drain import CLOCK_SLACK_S, Leg
from .observed import Observed, Replica
from .steps import Mark, MarkConditions
from .wording import count

# After that, one gateway that knows the replica is enough: a gateway that hangs must not hold up every scale-up.
REGISTER_WAIT_S = 10.0


def registration(observed: Observed, replica: Replica, now: float) -> Leg:
    """The gate of a live replica. It is set once and cleared only by a drain."""
    pod = replica.pod
    since = pod.since("ContainersReady")
    if names.GATE_REGISTERED not in pod.gates or pod.is_true(names.GATE_REGISTERED) or since is None:
        return Leg()
    drained = pod.conditions.get(names.CONDITION_DRAINING)
    if drained is not None:
        # Taken back into service: the gateways begin anew.
        since = max(since, drained.at)
    if since > now + CLOCK_SLACK_S:
        # The node's clock is ahead: how long it has waited is not known, and a gateway that hangs must not decide for how long.
        since = now - REGISTER_WAIT_S
    if not observed.gateway_expected:
        return _set(replica, reasons.NO_GATEWAY, "this installation has no gateway to wait for")
    waited_for = [g for g in observed.gateways if g.ready]
    if not waited_for:
        return Leg(waits=f"{replica.name}: no gateway pod is ready")
    known = [
        g
        for g in waited_for
        if g.view is not None and replica.uid in g.view.endpoints and g.view.endpoints[replica.uid].registered
    ]
    said = f"registered by {len(known)} of {count(len(waited_for), 'ready gateway')}"
    if len(known) == len(waited_for) or (known and now >= since + REGISTER_WAIT_S):
        return _set(replica, reasons.REGISTERED, said)
    return Leg(
        waits=f"{replica.name}: {said}",
        wake_at=since + REGISTER_WAIT_S if now < since + REGISTER_WAIT_S else None,
    )


def _set(replica: Replica, reason: str, message: str) -> Leg:
    mark = Mark(type=names.GATE_REGISTERED, status="True", reason=reason, message=message)
    return Leg(
        (MarkConditions(name=replica.name, uid=replica.uid, reason=reason, message=message, marks=(mark,)),)
    )
