"""Requests for a fleet that sleeps: held when its first replica will come within the hold, else told at once when to come again.

What a cold start takes is in the fleet's status, as the operator measured it. Where nobody has measured any, nobody knows,
and the request waits for limits.hold as every other.
"""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_gateway.picking.facts import Fleet


@dataclass(slots=True)
class Wake:
    """One fleet's way out of sleep, as far as this gateway has seen it."""

    # When the first request came that found no replica; None: there is one, or nobody asked.
    since_s: float | None = None

    def over(self) -> None:
        self.since_s = None

    def asked(self, now: float) -> bool:
        """Whether this is the first request."""
        first = self.since_s is None
        if first:
            self.since_s = now
        return first

    def left_s(self, cold_start_s: float, now: float) -> float:
        """Seconds of a cold start that are still to come; more than the start takes: nobody has called yet."""
        return cold_start_s if self.since_s is None else max(0.0, self.since_s + cold_start_s - now)


def too_long(fleet: Fleet, wake: Wake, hold_s: float, now: float) -> bool:
    """Half of all cold starts would still be under way when the hold ends: waiting would most likely be in vain."""
    start = fleet.cold_start
    return start is not None and fleet.ready_replicas == 0 and wake.left_s(start.p50_s, now) > hold_s


def come_again_s(fleet: Fleet, wake: Wake, now: float) -> float | None:
    """When nine of ten cold starts would be over; None: not known, or it has a replica."""
    start = fleet.cold_start
    if start is None or fleet.ready_replicas != 0:
        return None
    left_s = wake.left_s(start.p90_s, now)
    return left_s or None
