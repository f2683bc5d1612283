"""Admission, release and counting, in time that the tests set."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from moefleet_gateway.picking.core import (
    LOST_AFTER_S,
    SETTLED_S,
    Ask,
    Core,
    End,
    Pick,
    Ticket,
    registered_uids,
)
from moefleet_gateway.picking.endpoints import State
from moefleet_gateway.picking.facts import Fleet, Limits, Load, Replica
from moefleet_gateway.picking.refusals import Refusal

FLEET = Fleet("ns", "f", "fu", "2026-01-01T00:00:00Z", "m", limits=Limits(queued_requests=2, hold_s=60.0))


def replica(uid: str, fleet: str = "ns/f", fleet_uid: str = "fu") -> Replica:
    return Replica(uid, uid, fleet, fleet_uid, f"{uid}:1", f"{uid}:2", ready=True, draining=False)


def load(uid: str, **more: int) -> Load:
    return Load(uid, True, "Serving", 0.0, **more)


def core(*uids: str, fleet: Fleet = FLEET, hold_max_s: float = 600.0) -> Core:
    core = Core(hold_max_s)
    core.set_fleets([fleet], 0.0)
    for uid in uids:
        add(core, uid)
    return core


def add(core: Core, uid: str, now: float = 0.0) -> None:
    core.set_replica(replica(uid), now)
    core.set_load(uid, load(uid), now)
    core.endpoints.acknowledge(core.endpoints.version)


def ask(request_id: str, **more: object) -> Ask:
    return Ask(request_id, **{"ids": 100, "max_tokens": 10, **more})


def end(request_id: str, **more: object) -> End:
    facts = {"ok": True, "failed": False, "prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 10}
    return End(request_id, "ns/f", **{**facts, **more})


def test_requests_spread_by_what_was_sent_before_any_sample_shows_it() -> None:
    c = core("a", "b", "c")
    first = [c.arrive(FLEET, ask(f"r{n}"), 1.0).targets[0].uid for n in range(6)]
    assert sorted(first) == ["a", "a", "b", "b", "c", "c"]


def test_a_sample_takes_over_what_was_sent_before_it() -> None:
    c = core("a")
    c.arrive(FLEET, ask("r1"), 1.0)
    candidate = c.endpoints.choosable("ns/f")[0]
    assert (candidate.sent_requests, candidate.work()) == (1, 120.0)
    c.set_load("a", load("a", prefill_tokens=90, decode_tokens=10), 1.01)  # too soon after: may not have it
    assert candidate.work() == 110 + 120
    c.set_load("a", load("a", prefill_tokens=90, decode_tokens=10), 2.0)
    assert (candidate.sent_requests, candidate.work()) == (0, 110.0)
    c.finish(end("r1"), 3.0)
    assert (candidate.sent_requests, candidate.work()) == (0, 110.0)


def test_an_end_takes_back_what_no_sample_has() -> None:
    c = core("a")
    c.arrive(FLEET, ask("r1"), 1.0)
    c.finish(end("r1"), 1.1)
    candidate = c.endpoints.choosable("ns/f")[0]
    assert (candidate.sent_requests, candidate.work()) == (0, 0.0)
    c.finish(end("r1"), 1.2)  # told twice
    assert c.lanes["ns/f"].in_flight == 0
    assert candidate.sent_requests == 0


def test_held_in_order_and_released_when_a_replica_registers() -> None:
    c = core()
    tickets = [c.arrive(FLEET, ask(f"r{n}"), float(n)) for n in range(2)]
    assert [type(t) for t in tickets] == [Ticket, Ticket]
    assert c.pump(5.0) == []
    add(c, "a", 5.0)
    answers = c.pump(5.0)
    assert [number for number, _ in answers] == [t.number for t in tickets]
    assert [a.held_s for _, a in answers] == [5.0, 4.0]
    demand = c.lanes["ns/f"].demand
    assert (demand.arrivals, demand.held, demand.shed) == (2, 2, 0)


def test_who_comes_while_others_wait_does_not_overtake() -> None:
    c = core()
    first = c.arrive(FLEET, ask("r1"), 0.0)
    add(c, "a", 1.0)
    second = c.arrive(FLEET, ask("r2"), 1.0)
    assert isinstance(second, Ticket)
    assert [n for n, _ in c.pump(1.0)] == [first.number, second.number]


def test_overflow_is_resource_exhausted() -> None:
    c = core()
    c.arrive(FLEET, ask("r1"), 0.0)
    c.arrive(FLEET, ask("r2"), 0.0)
    refusal = c.arrive(FLEET, ask("r3"), 8.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason, refusal.retry_after_s) == (
        "RESOURCE_EXHAUSTED",
        "QUEUE_FULL",
        4.0,
    )
    demand = c.lanes["ns/f"].demand
    assert (demand.arrivals, demand.held, demand.shed) == (3, 2, 1)  # shed ones arrived too: they are demand


@pytest.mark.parametrize(
    ("uids", "status", "reason"),
    [((), "UNAVAILABLE", "NO_REPLICA"), (("a",), "RESOURCE_EXHAUSTED", "HOLD_EXPIRED")],
)
def test_the_end_of_a_wait(uids: tuple[str, ...], status: str, reason: str) -> None:
    c = core(*uids)
    for uid in uids:
        c.set_load(uid, load(uid, queued=1000), 0.0)
    ticket = c.arrive(FLEET, ask("r1"), 0.0)
    assert isinstance(ticket, Ticket)
    assert c.next_expiry_s() == 60.0
    assert c.pump(59.9) == []
    [(number, refusal)] = c.pump(60.0)
    assert number == ticket.number
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (status, reason)
    assert c.next_expiry_s() is None


def test_no_wait_is_longer_than_the_gateway_allows() -> None:
    c = core(hold_max_s=5.0)
    c.arrive(FLEET, ask("r1"), 0.0)
    assert c.next_expiry_s() == 5.0


def test_abandoned_waits_free_their_place() -> None:
    c = core()
    ticket = c.arrive(FLEET, ask("r1"), 0.0)
    assert isinstance(ticket, Ticket)
    c.abandon(ticket)
    add(c, "a", 1.0)
    assert c.pump(1.0) == []
    assert c.lanes["ns/f"].queue_now(1.0).requests == 0


def test_a_fleet_that_goes_away_answers_those_who_wait() -> None:
    c = core()
    c.arrive(FLEET, ask("r1"), 0.0)
    c.set_fleets([], 1.0)
    [(_, refusal)] = c.pump(1.0)
    assert isinstance(refusal, Refusal)
    assert refusal.status == "UNAVAILABLE"
    c.sweep(1.0)
    assert c.lanes == {}


def test_information_calls_are_neither_demand_nor_held() -> None:
    c = core()
    refusal = c.arrive(FLEET, Ask("r1", kind="info"), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.status == "UNAVAILABLE"
    add(c, "a")
    c.set_load("a", load("a", queued=1000), 0.0)
    assert isinstance(c.arrive(FLEET, Ask("r2", kind="info"), 0.0), Pick)
    assert c.lanes["ns/f"].demand.arrivals == 0
    assert c.flights == {}


def test_client_retries_are_not_arrivals() -> None:
    c = core("a")
    c.arrive(FLEET, ask("r1", retried=True), 0.0)
    demand = c.lanes["ns/f"].demand
    assert (demand.arrivals, demand.retries, demand.prompt_tokens) == (0, 1, 0)


def test_abort_follows_the_request() -> None:
    c = core("a", "b")
    pick = c.arrive(FLEET, ask("r1", engine_request_id="e1"), 0.0)
    answer, known = c.abort(FLEET, "e1")
    assert known
    assert answer.targets == pick.targets[:1]
    answer, known = c.abort(FLEET, "stranger")
    assert not known
    assert isinstance(answer, Pick)


def test_pods_of_another_fleet_of_the_same_name_are_not_chosen() -> None:
    c = core("a")
    c.set_fleets([replace(FLEET, uid="fu2")], 1.0)
    assert registered_uids(c) == set()
    c.set_replica(replica("b", fleet_uid="fu2"), 1.0)
    c.set_load("b", load("b"), 1.0)
    c.endpoints.acknowledge(c.endpoints.version)
    assert registered_uids(c) == {"b"}


def test_a_flight_whose_end_was_lost_is_dropped() -> None:
    c = core("a")
    c.arrive(FLEET, ask("r1"), 0.0)
    c.envoy_counted({}, SETTLED_S - 1)  # too young to be missing
    assert len(c.flights) == 1
    c.envoy_counted({("ns/f", "a:1"): 1}, SETTLED_S + 1)
    assert len(c.flights) == 1
    c.envoy_counted({}, SETTLED_S + 1)
    assert (c.flights, c.lost, c.lanes["ns/f"].in_flight) == ({}, 1, 0)
    c.arrive(FLEET, ask("r2"), 0.0)
    c.sweep(FLEET.limits.stream_duration_s + LOST_AFTER_S + 1)
    assert (c.flights, c.lost) == ({}, 2)


def test_the_end_of_a_request_that_an_earlier_picker_sent_still_counts_its_usage() -> None:
    c = core("a")
    c.finish(end("unknown"), 0.0)
    demand = c.lanes["ns/f"].demand
    assert (demand.served_requests, demand.served_output_tokens, c.lanes["ns/f"].in_flight) == (1, 10, 0)


def test_cut_requests_have_no_usage_and_count_as_failed() -> None:
    c = core("a")
    c.arrive(FLEET, ask("r1"), 0.0)
    c.finish(end("r1", ok=False, failed=True, prompt_tokens=None, output_tokens=None), 1.0)
    demand = c.lanes["ns/f"].demand
    assert (demand.failed, demand.served_requests, sum(demand.ttft_counts)) == (1, 0, 0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounds and sums hold."""

    def __init__(self) -> None:
        super().__init__()
        self.core = core()
        self.now = 0.0
        self.requests = 0
        self.flying: list[str] = []
        self.held: dict[int, str] = {}
        self.answered = 0

    def picked(self, answer: Pick, request_id: str) -> None:
        assert answer.targets[0].uid in registered_uids(self.core)
        self.flying.append(request_id)

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for number, answer in self.core.pump(self.now):
            request_id = self.held.pop(number)
            self.answered += 1
            if isinstance(answer, Pick):
                self.picked(answer, request_id)

    @rule(tokens=st.integers(1, 5000))
    def arrive(self, tokens: int) -> None:
        self.requests += 1
        answer = self.core.arrive(FLEET, ask(f"r{self.requests}", ids=tokens), self.now)
        if isinstance(answer, Ticket):
            self.held[answer.number] = f"r{self.requests}"
            return
        self.answered += 1
        if isinstance(answer, Pick):
            self.picked(answer, f"r{self.requests}")

    @rule(uid=st.sampled_from("abc"), serving=st.booleans(), queued=st.sampled_from([0, 100]))
    def sample(self, uid: str, serving: bool, queued: int) -> None:
        self.core.set_replica(replica(uid), self.now)
        self.core.set_load(uid, replace(load(uid, queued=queued), serving=serving), self.now)

    @rule(uid=st.sampled_from("abc"))
    def lose(self, uid: str) -> None:
        self.core.drop_replica(uid, self.now)

    @rule()
    def acknowledge(self) -> None:
        self.core.endpoints.acknowledge(self.core.endpoints.version)

    @rule()
    def envoy_restarts(self) -> None:
        self.core.endpoints.envoy_lost()

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.flying:
            self.core.finish(end(self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))), self.now)

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        if self.held:
            number = data.draw(st.sampled_from(sorted(self.held)))
            del self.held[number]
            self.answered += 1
            self.core.abandon(Ticket(number, "ns/f"))

    @rule()
    def sweep(self) -> None:
        self.core.endpoints.counted({}, self.now)
        self.core.sweep(self.now)
        known = set(self.core.flights)
        self.flying = [r for r in self.flying if r in known]

    @invariant()
    def sums_hold(self) -> None:
        lane = self.core.lanes["ns/f"]
        assert lane.demand.arrivals == self.requests
        assert len(lane.waiting) == len(self.held) <= FLEET.limits.queued_requests
        assert self.answered + len(self.held) == self.requests
        assert lane.in_flight == len(self.flying) == len(self.core.flights)
        for entry in self.core.endpoints.by_uid.values():
            assert entry.candidate.sent_requests >= 0
            assert entry.candidate.sent_work >= -1e-6
            if entry.state is State.REGISTERED:
                assert entry.offered_version <= self.core.endpoints.acknowledged


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
