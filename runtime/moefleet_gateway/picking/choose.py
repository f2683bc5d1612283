"""The order in which replicas are tried: least outstanding work first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moefleet_gateway.picking.facts import Load, Target

# First try and Envoy's 3 retries. Each try has a replica that is meant: the replica refuses when its uid is not
# in the list, so a shorter list would waste the last retry on a stranger's refusal.
ORDER_MAX = 4
# An output token costs a step share, a prompt token only its prefill: the announcement's node does 100 k input
# or 50 k output tokens/s, so one output token weighs as two prompt tokens.
DECODE_WEIGHT = 2.0
# A replica that has this many requests waiting of its own gets no more: they wait here instead, where the first
# replica with room takes them, also one that starts meanwhile.
QUEUE_AHEAD = 32
# Sent since the newest LoadSample and not seen to end: what may be on its way before the replica's own queue can
# show it. 256 is 0.1 s of one picker at 2,500 picks/s, twice the lag of the access log.
BURST = 256


@dataclass(slots=True)
class Candidate:
    """One registered replica with what is known of its work; `sent_*` is what this gateway sent since `load`, and
    `ended_requests` are those that `load` knows and that have ended since."""

    uid: str
    address: str
    load: Load | None
    sent_requests: int = 0
    sent_work: float = 0.0
    ended_requests: int = 0

    def work(self) -> float:
        load = self.load
        if load is None:
            return self.sent_work
        left = load.prefill_tokens + DECODE_WEIGHT * load.decode_tokens
        if self.ended_requests:
            # Whoever asks again right after an answer would find its own last request there, and be sent away from its prefix.
            count = load.active + load.queued
            left *= max(0, count - self.ended_requests) / count if count else 1.0
        return left + self.sent_work

    def has_room(self, queued_limit: int) -> bool:
        if self.load is None:
            return True
        ahead = min(QUEUE_AHEAD, queued_limit)
        burst = min(BURST, max(8, queued_limit))
        return self.load.queued < ahead and self.sent_requests < burst


def work_of(prompt_tokens: float, output_tokens: float) -> float:
    return prompt_tokens + DECODE_WEIGHT * output_tokens


def order(
    candidates: Iterable[Candidate],
    turn: int,
    queued_limit: int,
    credit: Mapping[str, float] | None = None,
) -> tuple[Target, ...]:
    """Up to ORDER_MAX targets, best first; empty when none has room.

    `turn` breaks ties, so that requests that come one by one to idle replicas go round. `credit` takes tokens off
    a replica's work: the place for prefix affinity, which knows what a replica need not compute again.
    """
    ring = list(candidates)
    count = len(ring)
    if count == 0:
        return ()
    first = turn % count
    ring = ring[first:] + ring[:first]
    with_room = [c for c in ring if c.has_room(queued_limit)]
    if not with_room:
        return ()
    if credit:
        with_room.sort(key=lambda c: c.work() - credit.get(c.uid, 0.0))
    else:
        with_room.sort(key=Candidate.work)
    if len(with_room) < ORDER_MAX and len(with_room) < count:
        with_room += sorted((c for c in ring if not c.has_room(queued_limit)), key=Candidate.work)
    return tuple(Target(c.uid, c.address) for c in with_room[:ORDER_MAX])
