"""The gateway's state and every decision about a request. Nothing here waits: the caller keeps the tickets.

arrive -> Pick | Ticket | Refusal        pump -> answers of tickets        finish <- the access log
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from moefleet_perf.prefixes import MARK_BYTES, MARK_TOKENS

from moefleet_gateway.picking.choose import Candidate, order, work_of
from moefleet_gateway.picking.demand import Demand, QueueNow
from moefleet_gateway.picking.endpoints import Endpoints, State
from moefleet_gateway.picking.facts import Fleet, Load, Replica, Target
from moefleet_gateway.picking.lengths import Lengths, Mean
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.prefixes import HIT_SHARE_MIN, PrefixIndex
from moefleet_gateway.picking.refusals import Refusal, held_too_long, no_replica, queue_full, waking
from moefleet_gateway.picking.waking import Wake, come_again_s, too_long

# A request sent this shortly before a LoadSample came may not have been in it.
SAMPLE_SKEW_S = 0.05
# A flight whose end never came (Envoy died, its log was lost) is dropped after the longest possible stream.
LOST_AFTER_S = 120.0
# Older picks must show in Envoy's own count; if it has none for the replica, their end was lost.
SETTLED_S = 5.0
# trtllm request ids remembered for Abort: 20,000 at 100 bytes is 2 MiB.
ABORT_IDS_MAX = 20_000
RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What matters of one request. Exactly one of `ids` and `text_bytes` is set for `generate`."""

    request_id: str
    kind: Literal["generate", "info"] = "generate"
    ids: int | None = None
    text_bytes: int | None = None
    max_tokens: int | None = None
    retried: bool = False  # came with grpc-previous-rpc-attempts
    engine_request_id: str = ""  # the id inside a trtllm request, for Abort
    # moefleet_perf.prefixes of the ids or of the text, over the request's cache salt.
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pick:
    fleet: Fleet
    targets: tuple[Target, ...]
    held_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ticket:
    number: int
    fleet: str


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended, from Envoy's access log. Tokens are None when no usage came (cut, cancelled, info)."""

    request_id: str
    fleet: str
    ok: bool
    failed: bool
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    ttft_s: float = 0.0
    stream_s: float = 0.0


@dataclass(slots=True)
class Flight:
    fleet: str
    uid: str
    ask: Ask
    work: float
    prompt_tokens: int
    picked_s: float
    hit: int = 0  # prompt tokens that the replica should have had, before trust
    counted: bool = True  # in its candidate's sent_* sums


@dataclass(slots=True)
class Waiting:
    ask: Ask
    prompt_tokens: int
    output_tokens: int
    since_s: float


@dataclass(slots=True)
class Lane:
    """One fleet: its queue, its counters, its estimates. Lives as long as the fleet or something of it runs."""

    fleet: Fleet
    demand: Demand = field(default_factory=Demand)
    lengths: Lengths = field(default_factory=Lengths)
    # Cached tokens that came over those that known prefixes promised; see picking.prefixes.
    trust: Mean = field(default_factory=lambda: Mean(1.0))
    waiting: OrderedDict[int, Waiting] = field(default_factory=OrderedDict)
    in_flight: int = 0
    gone: bool = False
    wake: Wake = field(default_factory=Wake)

    def queue_now(self, now: float) -> QueueNow:
        if not self.waiting:
            return QueueNow()
        oldest = next(iter(self.waiting.values()))
        return QueueNow(
            len(self.waiting),
            sum(w.prompt_tokens for w in self.waiting.values()),
            max(0.0, now - oldest.since_s),
        )


class Core:
    def __init__(self, hold_max_s: float, turn: int = 0) -> None:
        self.hold_max_s = hold_max_s
        self.models = ModelTable()
        self.endpoints = Endpoints()
        self.prefixes = PrefixIndex()
        self.lanes: dict[str, Lane] = {}
        self.flights: dict[str, Flight] = {}
        self.lost = 0  # flights whose end never came
        self._replicas: dict[str, Replica] = {}
        self._loads: dict[str, Load] = {}
        self._sent: dict[str, deque[Flight]] = {}
        self._inherited: dict[tuple[str, str], int] = {}
        self._with_queue: set[str] = set()
        self._newly_called: set[str] = set()
        self._abort: OrderedDict[tuple[str, str], Target] = OrderedDict()
        self._turn = turn
        self._next_ticket = 0

    # --- the world ---

    def set_fleets(self, fleets: Iterable[Fleet], now: float) -> None:
        """All fleets as they are now."""
        before = set(self.models.by_key)
        uids = {key: fleet.uid for key, fleet in self.models.by_key.items()}
        self.models = ModelTable(fleets)
        for key, fleet in self.models.by_key.items():
            lane = self.lanes.get(key)
            if lane is None or lane.fleet.uid != fleet.uid:
                waiting = lane.waiting if lane is not None else OrderedDict()
                self.lanes[key] = Lane(fleet, waiting=waiting)
            else:
                lane.fleet, lane.gone = fleet, False
            if fleet.ready_replicas:
                self.lanes[key].wake.over()
        for key in before - set(self.models.by_key):
            self.lanes[key].gone = True
        if before != set(self.models.by_key):
            self.endpoints.bump()
        # A fleet that was deleted and created again has other pods: those of the old one no longer count.
        fresh = {key for key, fleet in self.models.by_key.items() if uids.get(key) != fleet.uid}
        for uid, replica in list(self._replicas.items()):
            if replica.fleet in fresh:
                self._observe(uid, now)

    def set_replica(self, replica: Replica, now: float) -> str | None:
        self._replicas[replica.uid] = replica
        return self._observe(replica.uid, now)

    def drop_replica(self, uid: str, now: float) -> str | None:
        """The source shows the pod no more."""
        self._replicas.pop(uid, None)
        self._loads.pop(uid, None)
        self.prefixes.forget(uid)
        return self.endpoints.withdraw(uid, "Deleted", now)

    def set_load(self, uid: str, load: Load | None, now: float) -> str | None:
        """A new sample, or None when the stream broke."""
        if load is None:
            self._loads.pop(uid, None)
            # It may come back as another process, with nothing in its cache.
            self.prefixes.forget(uid)
        else:
            self._loads[uid] = load
        entry = self.endpoints.by_uid.get(uid)
        if entry is not None and load is not None:
            entry.candidate.load = load
            entry.candidate.ended_requests = 0
            sent = self._sent.get(uid)
            while sent and (not sent[0].counted or sent[0].picked_s <= now - SAMPLE_SKEW_S):
                self._uncount(sent.popleft(), entry.candidate)
        return self._observe(uid, now)

    def inherit(self, active: Mapping[tuple[str, str], int]) -> None:
        """What Envoy has running that an earlier process of this picker sent there."""
        self._inherited = {key: count for key, count in active.items() if count > 0}

    def envoy_counted(self, active: Mapping[tuple[str, str], int], began_s: float) -> None:
        self.endpoints.counted(active, began_s)
        for request_id, flight in list(self.flights.items()):
            if flight.picked_s > began_s - SETTLED_S:
                break  # in the order of their picks
            entry = self.endpoints.by_uid.get(flight.uid)
            if entry is not None and entry.envoy_active == 0:
                self.lost += 1
                self._land(request_id)

    def _observe(self, uid: str, now: float) -> str | None:
        replica = self._replicas.get(uid)
        if replica is None:
            return None
        inherited = self._inherited.pop((replica.cluster, replica.address), 0)
        fleet = self.models.by_key.get(replica.fleet)
        if fleet is not None and replica.fleet_uid and replica.fleet_uid != fleet.uid:
            return self.endpoints.withdraw(uid, "OtherFleetUid", now)
        return self.endpoints.observe(replica, self._loads.get(uid), inherited, now)

    # --- requests ---

    def arrive(self, fleet: Fleet, ask: Ask, now: float) -> Pick | Ticket | Refusal:
        lane = self.lanes[fleet.key]
        if ask.kind == "info":
            return self._pick_any(fleet) or no_replica(fleet.key, 0.0, RETRY_AFTER_MIN_S)
        prompt = ask.ids if ask.ids is not None else lane.lengths.prompt_tokens(ask.text_bytes or 0)
        output = lane.lengths.output_tokens(prompt, ask.max_tokens, now)
        if ask.retried:
            lane.demand.retries += 1
        else:
            lane.demand.arrived(prompt, lane.lengths.cached_tokens(prompt), output)
        if not lane.waiting:
            pick = self._pick(lane, Waiting(ask, prompt, output, now), now)
            if pick is not None:
                lane.wake.over()
                return pick
        if not self.endpoints.coming(fleet.key):
            if lane.wake.asked(now):
                self._newly_called.add(fleet.key)
            hold_s = self._hold_s(fleet)
            if fleet.cold_start is not None and too_long(fleet, lane.wake, hold_s, now):
                lane.demand.shed += 1
                again_s = max(RETRY_AFTER_MIN_S, come_again_s(fleet, lane.wake, now) or 0.0)
                return waking(fleet.key, fleet.cold_start.p50_s, hold_s, again_s)
        limit = fleet.limits.queued_requests
        if len(lane.waiting) >= limit:
            lane.demand.shed += 1
            return queue_full(fleet.key, len(lane.waiting), limit, self._retry_after_s(lane, now))
        lane.demand.held += 1
        self._next_ticket += 1
        lane.waiting[self._next_ticket] = Waiting(ask, prompt, output, now)
        self._with_queue.add(fleet.key)
        return Ticket(self._next_ticket, fleet.key)

    def pump(self, now: float) -> list[tuple[int, Pick | Refusal]]:
        """Answers of the tickets that have one now: places that became free, waits that are over."""
        out: list[tuple[int, Pick | Refusal]] = []
        for key in list(self._with_queue):
            lane = self.lanes[key]
            hold_s = self._hold_s(lane.fleet)
            while lane.waiting:
                number, waiting = next(iter(lane.waiting.items()))
                answer: Pick | Refusal | None = self._pick(lane, waiting, now)
                if answer is None and (lane.gone or now >= waiting.since_s + hold_s):
                    lane.demand.shed += 1
                    refuse = held_too_long if self.endpoints.choosable(key) else no_replica
                    answer = refuse(key, hold_s, self._retry_after_s(lane, now))
                if answer is None:
                    break
                if isinstance(answer, Pick):
                    lane.wake.over()
                del lane.waiting[number]
                out.append((number, answer))
            if not lane.waiting:
                self._with_queue.discard(key)
        return out

    def abandon(self, ticket: Ticket) -> None:
        """The client is gone, or its deadline came, while it waited."""
        lane = self.lanes.get(ticket.fleet)
        if lane is not None:
            lane.waiting.pop(ticket.number, None)

    def next_expiry_s(self) -> float | None:
        """When the first wait ends, if nothing happens before."""
        return min(
            (
                next(iter(lane.waiting.values())).since_s + self._hold_s(lane.fleet)
                for lane in (self.lanes[key] for key in self._with_queue)
                if lane.waiting
            ),
            default=None,
        )

    def abort(self, fleet: Fleet, engine_request_id: str) -> tuple[Pick | Refusal, bool]:
        """Where an Abort goes, and whether the id is known here (another gateway may have taken the request)."""
        target = self._abort.get((fleet.key, engine_request_id))
        if target is not None and target.uid in self.endpoints.by_uid:
            return Pick(fleet, (target,)), True
        return self._pick_any(fleet) or no_replica(fleet.key, 0.0, RETRY_AFTER_MIN_S), False

    def finish(self, end: End, now: float) -> None:
        lane = self.lanes.get(end.fleet)
        flight = self._land(end.request_id, now)
        if lane is None or (flight is not None and flight.ask.kind != "generate"):
            return
        if end.failed:
            lane.demand.failed += 1
        if end.output_tokens is None or end.prompt_tokens is None:
            return
        cached = end.cached_tokens or 0
        lane.demand.served(end.prompt_tokens, cached, end.output_tokens)
        if end.ok:
            lane.demand.timed(end.ttft_s, end.stream_s, end.output_tokens)
            if flight is not None:
                lane.lengths.learn(
                    text_bytes=flight.ask.text_bytes,
                    estimated_prompt_tokens=flight.prompt_tokens,
                    max_tokens=flight.ask.max_tokens,
                    prompt_tokens=end.prompt_tokens,
                    cached_tokens=cached,
                    output_tokens=end.output_tokens,
                    lasted_s=now - flight.picked_s,
                )
                if flight.hit > 0:
                    lane.trust.add(min(1.0, cached / flight.hit))

    def sweep(self, now: float) -> list[str]:
        """Forgets what is over: endpoints, lanes, flights without an end. Uids of the endpoints."""
        for request_id, flight in list(self.flights.items()):
            if now <= flight.picked_s + LOST_AFTER_S:
                break  # in the order of their picks
            lane = self.lanes.get(flight.fleet)
            longest = lane.fleet.limits.stream_duration_s if lane is not None else 0.0
            if now > flight.picked_s + longest + LOST_AFTER_S:
                self.lost += 1
                self._land(request_id)
        gone = self.endpoints.sweep(now)
        for key, lane in list(self.lanes.items()):
            if lane.gone and not lane.waiting and lane.in_flight <= 0:
                del self.lanes[key]
        return gone

    def newly_called(self) -> set[str]:
        """Fleets without a replica whose first request has come since this was last asked: the operator should know at once."""
        found, self._newly_called = self._newly_called, set()
        return found

    # --- inside ---

    def _pick(self, lane: Lane, waiting: Waiting, now: float) -> Pick | None:
        key = lane.fleet.key
        self._turn += 1
        ask = waiting.ask
        candidates = self.endpoints.choosable(key)
        hits = self._hits(lane, waiting, candidates, now) if ask.marks else {}
        credit = {uid: hit * lane.trust.value for uid, hit in hits.items()}
        targets = order(candidates, self._turn, lane.fleet.limits.queued_requests, credit)
        if not targets:
            return None
        first = targets[0].uid
        flight = Flight(
            key,
            first,
            ask,
            work_of(waiting.prompt_tokens - credit.get(first, 0.0), waiting.output_tokens),
            waiting.prompt_tokens,
            now,
            hits.get(first, 0),
        )
        if ask.marks:
            self.prefixes.picked(first, ask.marks, now)
        entry = self.endpoints.by_uid[flight.uid]
        entry.candidate.sent_requests += 1
        entry.candidate.sent_work += flight.work
        entry.tracked += 1
        lane.in_flight += 1
        lane.lengths.began(waiting.prompt_tokens, ask.max_tokens, now)
        self._sent.setdefault(flight.uid, deque()).append(flight)
        self.flights[ask.request_id] = flight
        if ask.engine_request_id:
            self._abort[key, ask.engine_request_id] = targets[0]
            if len(self._abort) > ABORT_IDS_MAX:
                self._abort.popitem(last=False)
        return Pick(lane.fleet, targets, now - waiting.since_s)

    def _hits(self, lane: Lane, waiting: Waiting, candidates: list[Candidate], now: float) -> dict[str, int]:
        """Prompt tokens that each replica should have in its cache, before trust. One is always computed."""
        ask = waiting.ask
        tokens = ask.ids is not None
        found = self.prefixes.hits(ask.marks, {c.uid for c in candidates}, tokens=tokens, now=now)
        most, least = waiting.prompt_tokens - 1, HIT_SHARE_MIN * waiting.prompt_tokens
        hits = {}
        for uid, count in found.items():
            hit = MARK_TOKENS[count - 1] if tokens else lane.lengths.prompt_tokens(MARK_BYTES[count - 1])
            if (hit := min(hit, most)) > least:
                hits[uid] = hit
        return hits

    def _pick_any(self, fleet: Fleet) -> Pick | None:
        """For calls that make no work: whoever is registered, full or not."""
        self._turn += 1
        candidates = self.endpoints.choosable(fleet.key)
        if not candidates:
            return None
        first = self._turn % len(candidates)
        ring = (candidates[first:] + candidates[:first])[:4]
        return Pick(fleet, tuple(Target(c.uid, c.address) for c in ring))

    def _land(self, request_id: str, now: float | None = None) -> Flight | None:
        flight = self.flights.pop(request_id, None)
        if flight is None:
            return None
        lane = self.lanes.get(flight.fleet)
        if lane is not None:
            lane.in_flight -= 1
            if flight.ask.kind == "generate":
                lane.lengths.left(flight.prompt_tokens, flight.ask.max_tokens, now)
        entry = self.endpoints.by_uid.get(flight.uid)
        if entry is not None:
            entry.tracked = max(0, entry.tracked - 1)
            if not flight.counted:
                entry.candidate.ended_requests += 1
            self._uncount(flight, entry.candidate)
        sent = self._sent.get(flight.uid)
        flight.counted = False
        while sent and not sent[0].counted:
            sent.popleft()
        if not sent:
            self._sent.pop(flight.uid, None)
        return flight

    @staticmethod
    def _uncount(flight: Flight, candidate: Candidate) -> None:
        if flight.counted:
            flight.counted = False
            candidate.sent_requests -= 1
            candidate.sent_work -= flight.work

    def _hold_s(self, fleet: Fleet) -> float:
        return min(fleet.limits.hold_s, self.hold_max_s)

    def _retry_after_s(self, lane: Lane, now: float) -> float:
        again_s = come_again_s(lane.fleet, lane.wake, now) if lane.wake.since_s is not None else None
        if again_s is not None:
            return max(RETRY_AFTER_MIN_S, again_s)
        return min(RETRY_AFTER_MAX_S, max(RETRY_AFTER_MIN_S, lane.queue_now(now).oldest_s / 2))


def registered_uids(core: Core) -> set[str]:
    return {uid for uid, e in core.endpoints.by_uid.items() if e.state is State.REGISTERED}
