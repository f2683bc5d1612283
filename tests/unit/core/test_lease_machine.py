"""Leadership without I/O: who may act, until when, and how it is given back."""

from __future__ import annotations

from typing import Any

from moefleet_operator.core.effects import Effect, ReadLease, WriteLease
from moefleet_operator.core.events import Conflict, Json, NotFound, Ok, Outcome, Transient
from moefleet_operator.core.leadership import STOP_WAIT_S, Leadership
from moefleet_operator.core.lease import (
    LEASE_DURATION_S,
    RENEW_DEADLINE_S,
    RETRY_PERIOD_S,
    Act,
    LeaseMachine,
    Read,
    Write,
)
from moefleet_operator.core.settings import CoreSettings


class Server:
    """One Lease with optimistic locking."""

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self.version = 0

    def answer(self, act: Act) -> Outcome:
        if isinstance(act, Read):
            return NotFound() if self.record is None else Ok(self.record)
        found = self.record["metadata"]["resourceVersion"] if self.record else None
        if act.body["metadata"].get("resourceVersion") != found:
            return Conflict("resourceVersion differs")
        self.version += 1
        self.record = {
            "metadata": {**act.body["metadata"], "resourceVersion": str(self.version)},
            "spec": act.body["spec"],
        }
        return Ok(self.record)


def machine(name: str = "a") -> LeaseMachine:
    return LeaseMachine(name, "system", "lease")


def step(lease: LeaseMachine, server: Server, now: float) -> Act | None:
    act = lease.step(now, 1_800_000_000.0 + now)
    if act is not None:
        lease.done(server.answer(act), now)
    return act


def lead(lease: LeaseMachine, server: Server, now: float = 0.0) -> None:
    step(lease, server, now)
    step(lease, server, now)
    assert lease.leading(now)


def spec(server: Server) -> Json:
    assert server.record is not None
    found: Json = server.record["spec"]
    return found


def test_the_first_one_takes_a_lease_that_does_not_exist() -> None:
    lease, server = machine(), Server()
    lead(lease, server)
    assert spec(server)["holderIdentity"] == "a"
    assert spec(server)["leaseDurationSeconds"] == 15


def test_a_leader_renews_every_two_seconds() -> None:
    lease, server = machine(), Server()
    lead(lease, server)
    assert step(lease, server, RETRY_PERIOD_S - 0.1) is None
    act = step(lease, server, RETRY_PERIOD_S)
    assert isinstance(act, Write)
    assert act.intent == "renew"
    assert lease.act_until == RETRY_PERIOD_S + RENEW_DEADLINE_S


def test_the_right_to_act_ends_ten_seconds_after_the_last_renewal_was_sent() -> None:
    lease, server = machine(), Server()
    lead(lease, server, 100.0)
    act = lease.step(102.0, 0.0)
    assert act is not None
    lease.done(server.answer(act), 105.0)
    assert lease.act_until == 112.0, "counted from sending, not from the answer"
    assert lease.leading(111.9)
    assert not lease.leading(112.0)


def test_a_follower_waits_for_a_change_by_its_own_clock() -> None:
    leader, follower, server = machine("a"), machine("b"), Server()
    lead(leader, server)
    # Another clock altogether.
    step(follower, server, 5000.0)
    for seconds in range(2, int(LEASE_DURATION_S) + 1, 2):
        assert isinstance(step(follower, server, 5000.0 + seconds), Read)
    assert not follower.leading(5000.0 + LEASE_DURATION_S)
    act = step(follower, server, 5000.0 + LEASE_DURATION_S + 1.0)
    assert isinstance(act, Write)
    assert act.intent == "acquire"
    assert spec(server)["holderIdentity"] == "b"
    assert spec(server)["leaseTransitions"] == 1


def test_a_renewed_lease_is_never_taken() -> None:
    leader, follower, server = machine("a"), machine("b"), Server()
    lead(leader, server)
    for tick in range(1, 60):
        step(leader, server, tick * RETRY_PERIOD_S)
        step(follower, server, tick * RETRY_PERIOD_S + 0.5)
    assert leader.leading(119.0)
    assert not follower.leading(119.0)


def test_of_two_that_want_it_one_gets_it() -> None:
    one, two, server = machine("a"), machine("b"), Server()
    step(one, server, 0.0)
    step(two, server, 0.0)
    step(one, server, 0.1)
    step(two, server, 0.1)
    assert (one.leading(1.0), two.leading(1.0)) == (True, False)


def test_a_leader_that_cannot_renew_stops_and_finds_the_new_one() -> None:
    old, new, server = machine("a"), machine("b"), Server()
    lead(old, server)
    now = 0.0
    while now < 30.0:
        now += 1.0
        act = old.step(now, now)
        if act is not None:
            old.done(Transient("no connection"), now)
        step(new, server, now)
    assert not old.leading(now)
    assert new.leading(now)
    for _ in range(4):
        now += 2.0
        step(old, server, now)
        step(new, server, now)
    assert not old.leading(now)
    assert old.holder == "b"


def test_a_conflict_on_renewal_is_looked_into_at_once() -> None:
    lease, server = machine(), Server()
    lead(lease, server)
    assert server.record is not None
    # Somebody edits the Lease and leaves us the holder.
    server.version += 1
    metadata = {**server.record["metadata"], "resourceVersion": str(server.version)}
    server.record = {**server.record, "metadata": metadata}
    assert isinstance(step(lease, server, 2.0), Write)
    assert isinstance(step(lease, server, 2.0), Read)
    assert isinstance(step(lease, server, 2.0), Write)
    assert lease.act_until == 12.0


def test_a_lost_answer_is_no_reason_to_write_the_same_version_for_ever() -> None:
    lease, server = machine(), Server()
    lead(lease, server)
    act = lease.step(2.0, 2.0)
    assert act is not None
    server.answer(act)
    lease.done(Transient("the answer was lost"), 3.0)
    assert isinstance(step(lease, server, 5.0), Read)
    act = step(lease, server, 5.0)
    assert isinstance(act, Write)
    assert lease.act_until == 15.0


def test_release_gives_it_to_the_next_one_at_once() -> None:
    lease, other, server = machine("a"), machine("b"), Server()
    lead(lease, server)
    lease.release(3.0)
    assert not lease.leading(3.0), "from that moment nothing is done any more"
    act = step(lease, server, 3.0)
    assert isinstance(act, Write)
    assert act.intent == "release"
    assert lease.released
    assert spec(server)["holderIdentity"] == ""
    lead(other, server, 3.5)


def test_release_waits_for_the_renewal_under_way() -> None:
    lease, server = machine(), Server()
    lead(lease, server)
    renewal = lease.step(2.0, 2.0)
    assert renewal is not None
    lease.release(2.1)
    assert lease.step(2.1, 2.1) is None
    lease.done(server.answer(renewal), 2.3)
    step(lease, server, 2.3)
    assert lease.released
    assert spec(server)["holderIdentity"] == ""


def test_one_that_does_not_lead_has_nothing_to_release() -> None:
    lease = machine()
    lease.release(0.0)
    assert lease.released
    assert lease.step(0.0, 0.0) is None


def test_the_lease_is_a_child_of_the_service_account_from_its_creation_on() -> None:
    server = Server()
    lease = LeaseMachine("a", "system", "lease", ("moefleet-operator", "sa-uid"))
    lead(lease, server)
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "moefleet-operator", "uid": "sa-uid"}
    assert server.record is not None
    assert server.record["metadata"]["ownerReferences"] == [owner]

    # Renewals and others keep what is there: a change of owners may need a right that nobody has.
    lease.release(3.0)
    step(lease, server, 3.0)
    other = LeaseMachine("b", "system", "lease", ("moefleet-operator", "newer-uid"))
    lead(other, server, 4.0)
    assert server.record["metadata"]["ownerReferences"] == [owner]


def test_without_a_service_account_the_lease_has_no_owner() -> None:
    server = Server()
    lead(machine(), server)
    assert server.record is not None
    assert "ownerReferences" not in server.record["metadata"]


def test_who_waits_for_the_answer_to_its_release_does_not_spin() -> None:
    """After the first wait it looked again at once, and again."""
    server = Server()
    leadership = Leadership(CoreSettings(identity="a", namespace="system"))

    def ask(now: float) -> Effect | None:
        asked = leadership.request(now, 1_800_000_000.0 + now)
        leadership.under_way(1)
        return asked

    assert isinstance(ask(0.0), ReadLease)
    leadership.answered(1, NotFound(), 0.0)
    acquire = ask(0.0)
    assert isinstance(acquire, WriteLease)
    leadership.answered(1, server.answer(Write("acquire", acquire.body)), 0.0)
    leadership.stop(1.0)
    leadership.let_go(busy=False, now=1.0)
    assert isinstance(ask(1.0), WriteLease)
    for now in (2.0, 1.0 + STOP_WAIT_S, 2.0 + STOP_WAIT_S):
        assert leadership.exit(busy=False, now=now) is None
        assert now < leadership.wake_at(now) <= 1.0 + 2 * STOP_WAIT_S
    assert leadership.exit(busy=False, now=1.0 + 2 * STOP_WAIT_S) is not None
