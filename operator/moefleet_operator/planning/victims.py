"""Which replica goes first: the one whose going costs least.

Never started, then failing, then not ready, then of the least wanted revision, then on a node that somebody empties; among
equals the cheapest, in tokens:

    cost = outstanding + PREFILL_COST * reusable * hit_share

outstanding: prompt tokens not yet computed and answer tokens not yet made, and one for each request: what a drain waits for.
reusable: tokens of finished prompts in its prefix cache; hit_share: the share of its prompt tokens that were found there so far,
so the product is what will have to be computed again elsewhere. PREFILL_COST: a prompt token costs less than an answer token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .failing import failing
from .nodes import candidate, suspect
from .observed import Replica

# Time of a prompt token over time of an answer token in a full step, as decode shares the step: 8xH800 sustains some 100 k
# prompt or 50 k answer tokens/s.
PREFILL_COST: Final = 0.5


def victims(replicas: Iterable[Replica], wanted: Sequence[str]) -> list[Replica]:
    """`wanted`: revisions, the most wanted first; those that are not in it are wanted least. Unknown load: last of its kind."""

    def rank(replica: Replica) -> tuple[int, int, int, int, int, int, float, int, str]:
        started = replica.ready or replica.may_have_streams
        # Of those that never started, the one that is furthest from starting, then the youngest.
        progress = 0 if replica.unschedulable_since is not None else 1 if not replica.pod.node else 2
        revision = replica.pod.revision
        return (
            1 if started else 0,
            0 if failing(replica) is not None else 1,
            0 if not replica.ready else 1,
            len(wanted) - wanted.index(revision) if revision in wanted else 0,
            # It would have to leave its node anyway, or somebody would like to have that node empty.
            0 if suspect(replica.pod, replica.node) or candidate(replica.node) else 1,
            progress if not started else 0,
            cost_tokens(replica) if started else -replica.pod.created_at,
            -replica.pod.slot,
            replica.name,
        )

    return sorted(replicas, key=rank)


def cost_tokens(replica: Replica) -> float:
    """What its going costs, in answer tokens; infinite when nothing is known of it."""
    load = replica.load
    if load is None:
        return float("inf")
    outstanding = load.outstanding_tokens + load.active + load.queued
    return outstanding + PREFILL_COST * load.reusable_tokens * load.hit_share
