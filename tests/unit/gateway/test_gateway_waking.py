"""A request for a fleet that sleeps: held, or told when to come again, by what its cold start takes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from moefleet_gateway.picking.core import Ask, Core, Pick, Ticket
from moefleet_gateway.picking.facts import ColdStart, Fleet, Limits, Load, Replica
from moefleet_gateway.picking.refusals import Refusal
from moefleet_gateway.watching import objects


def fleet(
    cold: tuple[float, float] | None, hold_s: float = 60.0, ready: int | None = 0, queued: int = 1000
) -> Fleet:
    return Fleet(
        "ns",
        "f",
        "fu",
        "2026-01-01T00:00:00Z",
        "m",
        limits=Limits(queued_requests=queued, hold_s=hold_s),
        ready_replicas=ready,
        cold_start=ColdStart(*cold) if cold else None,
    )


def core(asked: Fleet) -> Core:
    made = Core(600.0)
    made.set_fleets([asked], 0.0)
    return made


def ask(number: int = 0) -> Ask:
    return Ask(f"r{number}", ids=100, max_tokens=10)


def add_replica(to: Core, now: float) -> None:
    to.set_replica(Replica("a", "a", "ns/f", "fu", "a:1", "a:2", ready=True, draining=False), now)
    to.set_load("a", Load("a", True, "SERVING", now), now)
    to.endpoints.acknowledge(to.endpoints.version)


class Row(NamedTuple):
    story: str
    fleet: Fleet
    # Seconds after the first request at which the second comes.
    at_s: float
    # RetryInfo in seconds; None: it is held.
    retry_after_s: float | None


@pytest.mark.parametrize(
    "row",
    [
        Row("a cold start that fits the hold", fleet((40, 50)), 0, None),
        Row("one that does not: at once, with the time of nine in ten", fleet((240, 300)), 0, 300.0),
        Row("the nearer it comes, the shorter", fleet((240, 300)), 100, 200.0),
        Row("in its last minute it is waited for", fleet((240, 300)), 181, None),
        Row("and a late one as well", fleet((240, 300)), 500, None),
        Row("nobody has measured it", fleet(None), 0, None),
        Row("its replicas only do not answer for a moment", fleet((240, 300), ready=2), 0, None),
        Row("nobody has said how many are ready", fleet((240, 300), ready=None), 0, None),
        Row("a hold that was made for it", fleet((240, 300), hold_s=400), 0, None),
        Row("no hold at all", fleet((20, 30), hold_s=0), 0, 30.0),
    ],
    ids=lambda row: row.story,
)
def test_held_or_told_when_to_come_again(row: Row) -> None:
    made = core(row.fleet)
    answer = made.arrive(row.fleet, ask(0), 1000.0)
    if row.at_s:
        answer = made.arrive(row.fleet, ask(1), 1000.0 + row.at_s)
    if row.retry_after_s is None:
        assert isinstance(answer, Ticket)
        return
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.reason) == ("UNAVAILABLE", "WAKING")
    assert answer.retry_after_s == row.retry_after_s
    demand = made.lanes["ns/f"].demand
    assert demand.arrivals == (2 if row.at_s else 1), "who is sent away is demand as well: it wakes the fleet"
    assert demand.shed == demand.arrivals


def test_who_waited_in_vain_is_told_what_is_left_of_the_start() -> None:
    sleeping = fleet((50, 200))
    made = core(sleeping)
    made.arrive(sleeping, ask(), 0.0)
    ((_, answer),) = made.pump(60.0)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.retry_after_s) == ("NO_REPLICA", 140.0)


def test_a_full_queue_says_when_the_start_is_over() -> None:
    sleeping = fleet((50, 200), queued=1)
    made = core(sleeping)
    made.arrive(sleeping, ask(0), 0.0)
    answer = made.arrive(sleeping, ask(1), 20.0)
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.retry_after_s) == ("QUEUE_FULL", 180.0)


def test_the_operator_is_told_at_once_and_once_for_each_wake() -> None:
    sleeping = fleet((40, 50))
    made = core(sleeping)
    made.arrive(sleeping, ask(0), 0.0)
    assert made.newly_called() == {"ns/f"}
    made.arrive(sleeping, ask(1), 0.1)
    assert made.newly_called() == set()
    add_replica(made, 40.0)
    assert [type(answer) for _, answer in made.pump(40.0)] == [Pick, Pick]
    made.drop_replica("a", 500.0)
    made.arrive(sleeping, ask(2), 900.0)
    assert made.newly_called() == {"ns/f"}, "it slept again"


def test_a_wake_that_others_have_used_is_over() -> None:
    sleeping = fleet((240, 300))
    made = core(sleeping)
    made.arrive(sleeping, ask(0), 0.0)
    made.set_fleets([fleet((240, 300), ready=1)], 250.0)
    made.set_fleets([sleeping], 5000.0)
    answer = made.arrive(sleeping, ask(1), 5001.0)
    assert isinstance(answer, Refusal)
    assert answer.retry_after_s == 300.0


def test_an_endpoint_that_envoy_has_yet_to_confirm_is_waited_for() -> None:
    sleeping = fleet((240, 300))
    made = core(sleeping)
    made.set_replica(Replica("a", "a", "ns/f", "fu", "a:1", "a:2", ready=True, draining=False), 0.0)
    made.set_load("a", Load("a", True, "SERVING", 0.0), 0.0)
    assert isinstance(made.arrive(sleeping, ask(), 1.0), Ticket)


@pytest.mark.parametrize(
    ("status", "ready", "cold"),
    [
        ({}, None, None),
        ({"readyReplicas": 0, "coldStart": {"p50": "240s", "p90": "5m"}}, 0, ColdStart(240.0, 300.0)),
        ({"readyReplicas": 2, "coldStart": {"p50": "8s"}}, 2, ColdStart(8.0, 8.0)),
        ({"readyReplicas": "two", "coldStart": {"p50": "soon"}}, None, None),
    ],
)
def test_what_a_status_says(status: object, ready: int | None, cold: ColdStart | None) -> None:
    found = objects.fleet(
        {
            "metadata": {"name": "f", "namespace": "ns"},
            "spec": {"model": {"name": "m"}},
            "status": status,
        }
    )
    assert found is not None
    assert (found.ready_replicas, found.cold_start) == (ready, cold)
