"""Which replica goes first: the one whose going costs least."""

from __future__ import annotations

from collections.abc import Iterable

from .failing import failing
from .observed import Replica


def victims(replicas: Iterable[Replica], revision: str | None) -> list[Replica]:
    """Never started, then failing, then of an old revision, then with the fewest outstanding tokens (unknown: last)."""

    def cost(replica: Replica) -> tuple[int, int, int, int, int, float, int, str]:
        started = replica.ready or replica.may_have_streams
        # Of those that never started, the one that is furthest from starting, then the youngest.
        progress = 0 if replica.unschedulable_since is not None else 1 if not replica.pod.node else 2
        old = revision is not None and replica.pod.revision != revision
        return (
            1 if started else 0,
            0 if failing(replica) is not None else 1,
            0 if not replica.ready else 1,
            0 if old else 1,
            progress if not started else 0,
            outstanding(replica) if started else -replica.pod.created_at,
            -replica.pod.slot,
            replica.name,
        )

    return sorted(replicas, key=cost)


def outstanding(replica: Replica) -> float:
    load = replica.load
    return float("inf") if load is None else float(load.outstanding_tokens + load.active + load.queued)
