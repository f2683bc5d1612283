"""When a status is worth a write: target and Ready at once, other changes every 2 s, numbers and texts every 30 s."""

from __future__ import annotations

from typing import Any

from .children import difference
from .observed import Json

# Many replicas start within a second, and each may turn a reason; nobody reads faster than that.
CHANGES_EVERY_S = 2.0
# Rapidly changing numbers belong into metrics; status is for people.
NUMBERS_EVERY_S = 30.0

# Parts that come and go as a whole: present in the live status and not wanted any more is a change, too.
_OPTIONAL = ("throughput", "objective", "economics", "coldStart", "scaling", "revision", "rollout")


def write_at(wanted: Json, live: Json, last_write: float, now: float) -> float | None:
    """When to write it (`now`: at once); None: it is there already. Times are of one clock, whichever."""
    if difference(wanted, live) is None and not any(key in live and key not in wanted for key in _OPTIONAL):
        return None
    if retargets(wanted, live) or _ready(wanted) != _ready(live):
        return now
    if _state(wanted) != _state(live) or any(
        wanted.get(key) != live.get(key) for key in ("replicas", "readyReplicas")
    ):
        return max(now, last_write + CHANGES_EVERY_S)
    return max(now, last_write + NUMBERS_EVERY_S)


def retargets(wanted: Json, live: Json) -> bool:
    """The target must be in the status before, or together with, what is done for it: a new leader holds what it reads there."""
    return any(wanted.get(key) != live.get(key) for key in ("desiredReplicas", "observedGeneration"))


def _ready(status: Json) -> bool:
    """People and tools wait for this one."""
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())


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
        (status.get("rollout") or {}).get("step"),
        decision.get("to"),
        conditions,
    )
