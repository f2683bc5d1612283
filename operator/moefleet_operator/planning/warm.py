"""Draining replicas that can serve again: warm ones come back before cold ones are made."""

from __future__ import annotations

from collections.abc import Collection

from moefleet_operator.api import conditions as reasons

from .leaving import comes_back
from .observed import Observed, Replica


def resumable(observed: Observed, revision: str, taken: Collection[str], now: float) -> list[Replica]:
    """`taken`: uids of those that come back already. One that must leave its node is none."""
    found = [
        r
        for r in observed.replicas
        if r.draining
        and not r.pod.terminating
        and r.pod.revision == revision
        and r.uid not in taken
        and r.drain is not None
        and (r.drain.reason in (reasons.SCALE_DOWN, reasons.ROLLOUT) or comes_back(r, now))
        and r.load is not None
        and r.load.state in ("SERVING", "DRAINING", "DRAINED")
        and r.may_have_streams
        and r.uid not in observed.unresumable
    ]
    # Those already half-way back first, so that two passes mean the same replica.
    return sorted(
        found, key=lambda r: (0 if r.load is not None and r.load.state == "SERVING" else 1, r.pod.slot)
    )
