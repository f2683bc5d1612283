"""When a status is worth a write: changes of state at once, counts every second, numbers and texts every 30 s, else never."""

from __future__ import annotations

from typing import Any

from .children import difference
from .observed import Json

# Many replicas become ready within a second; nobody reads counts faster than that.
COUNTS_EVERY_S = 1.0
# Rapidly changing numbers belong into metrics; status is for people.
NUMBERS_EVERY_S = 30.0

# Parts that come and go as a whole: present in the live status and not wanted any more is a change, too.
_OPTIONAL = ("throughput", "objective", "economics", "coldStart", "scaling", "revision")


def write_at(wanted: Json, live: Json, last_write: float, now: float) -> float | None:
    """When to write it (`now`: at once); None: it is there already. Times are of one clock, whichever."""
    if difference(wanted, live) is None and not any(key in live and key not in wanted for key in _OPTIONAL):
        return None
    if _state(wanted) != _state(live):
        return now
    if any(wanted.get(key) != live.get(key) for key in ("replicas", "readyReplicas")):
        return max(now, last_write + COUNTS_EVERY_S)
    return max(now, last_write + NUMBERS_EVERY_S)


def retargets(wanted: Json, live: Json) -> bool:
    """The target must be in the status before, or together with, what is done for it: a new leader holds what it reads there."""
    return any(wanted.get(key) != live.get(key) for key in ("desiredReplicas", "observedGeneration"))


def _state(status: Json) -> Any:
    conditions = {
        c.get("type"): (c.get("status"), c.get("reason"), c.get("observedGeneration"))
        for c in status.get("conditions") or ()
    }
    decision = (status.get("scaling") or {}).get("lastDecision") or {}
    return (
        status.get("observedGeneration"),
        status.get("desiredReplicas"),
        status.get("revision"),
        status.get("selector"),
        decision.get("to"),
        conditions,
    )
