"""Gateways' samples become totals, queues and an hour of history; silence is unknown, absence is zero."""

import pytest
from moefleet.gateway.v1 import gateway_pb2 as pb
from moefleet_operator.core.events import Key
from moefleet_operator.scaling import DemandTotals, Queue, remember
from moefleet_operator.scaling.windows import Windows
from moefleet_operator.telemetry.demand import DEMAND_STALE_S, HISTORY_S, DemandBook

CHAT = Key("team", "chat")
NOW = 1_700_000_000.0
# This gateway's clock is wrong by an hour.
SKEW_S = 3600.0


def fleet(arrivals, *, name="chat", uid="fleet-1", queue=0, **counts):
    return pb.FleetDemand(
        namespace="team",
        fleet=name,
        fleet_uid=uid,
        arrivals=arrivals,
        prompt_tokens=arrivals * 100,
        predicted_output_tokens=arrivals * 10,
        queue_requests=queue,
        queue_oldest_s=float(queue),
        **counts,
    )


def said(seq, *fleets, gateway="g1", incarnation="a", at=NOW):
    return pb.DemandSample(
        gateway_uid=gateway, incarnation=incarnation, seq=seq, time_s=at + SKEW_S, fleets=fleets
    )


def book(*gateways):
    made = DemandBook()
    made.expect(gateways)
    return made


def test_before_anybody_says_which_gateways_there_are_the_demand_is_unknown():
    made = DemandBook()
    assert not made.known()
    made.expect(["g1"])
    assert (made.known(), made.silent(NOW)) == (False, 1)


def test_no_gateway_at_all_is_a_known_zero():
    made = book()
    assert (made.known(), made.silent(NOW), made.totals(CHAT)) == (True, 0, DemandTotals())


def test_two_gateways_add_up_and_a_fleet_that_none_mentions_has_zero():
    made = book("g1", "g2")
    made.put("g1", said(1, fleet(10, queue=2)), NOW)
    made.put("g2", said(1, fleet(5, queue=3, shed=1, retries=2), gateway="g2"), NOW)
    assert made.totals(CHAT) == DemandTotals(15, 1500, 0, 150, 1, 2)
    assert made.queue(CHAT) == Queue(5, 0, 3.0)
    assert made.totals(Key("team", "other")) == DemandTotals()
    assert (made.known(), made.silent(NOW)) == (True, 0)


def test_a_gateway_is_silent_after_three_missed_samples_and_its_counts_stay():
    made = book("g1", "g2")
    for gateway in ("g1", "g2"):
        made.put(gateway, said(1, fleet(10), gateway=gateway), NOW)
    made.put("g1", said(2, fleet(11)), NOW + DEMAND_STALE_S + 1)
    assert made.silent(NOW + DEMAND_STALE_S) == 0
    assert made.silent(NOW + DEMAND_STALE_S + 1) == 1
    assert made.totals(CHAT).arrivals == 21


def test_a_gateway_that_is_gone_is_not_silent_and_queues_nothing_but_its_arrivals_stay():
    made = book("g1", "g2")
    made.put("g1", said(1, fleet(10, queue=4)), NOW)
    made.put("g2", said(1, fleet(10), gateway="g2"), NOW)
    made.expect(["g2"])
    assert made.silent(NOW) == 0
    assert made.queue(CHAT) == Queue()
    assert made.totals(CHAT).arrivals == 20


def test_a_restarted_picker_begins_at_zero_and_the_total_goes_on():
    made = book("g1")
    totals = []
    for seq, incarnation, arrivals in ((1, "a", 10), (2, "a", 30), (1, "b", 4), (7, "c", 2)):
        made.put("g1", said(seq, fleet(arrivals), incarnation=incarnation), NOW)
        totals.append(made.totals(CHAT).arrivals)
    # "c" was first heard at its seventh sample, but it began after "b", which we followed.
    assert totals == [10, 30, 34, 36]


def test_a_picker_that_is_first_heard_late_counts_from_there():
    made = book("g1")
    made.put("g1", said(900, fleet(1_000_000)), NOW)
    made.put("g1", said(901, fleet(1_000_007), fleet(3, name="new")), NOW)
    assert made.totals(CHAT).arrivals == 7
    # A fleet that appears in a picker that we follow has just begun.
    assert made.totals(Key("team", "new")).arrivals == 3


def test_a_fleet_made_again_under_its_name_does_not_lower_the_total():
    made = book("g1")
    made.put("g1", said(1, fleet(50)), NOW)
    made.put("g1", said(2, fleet(2, uid="fleet-2")), NOW)
    assert made.totals(CHAT).arrivals == 52


def test_samples_that_come_twice_or_from_a_stranger_count_once():
    made = book("g1")
    for seq in (1, 2, 2, 1):
        made.put("g1", said(seq, fleet(10 * seq)), NOW)
    made.put("g1", said(3, fleet(999), gateway="g9"), NOW)
    made.put("g9", said(3, fleet(999), gateway="g9"), NOW)
    assert made.totals(CHAT).arrivals == 20
    assert made.resume_from("g1") == ("a", 2)
    assert made.resume_from("g9") == ("", 0)


def test_a_fleet_that_a_gateway_stops_mentioning_has_no_queue_there():
    made = book("g1")
    made.put("g1", said(1, fleet(10, queue=5)), NOW)
    made.put("g1", said(2), NOW)
    assert (made.queue(CHAT), made.totals(CHAT).arrivals) == (Queue(), 10)


def replay(made, gateway, rate, seconds):
    """All kept samples at once, as after a restart of the operator: only the last is of now."""
    count = int(seconds / 5)
    for i in range(count + 1):
        sample = said(i + 1, fleet(int(rate * 5 * i)), gateway=gateway, at=NOW - 5 * (count - i))
        made.put(gateway, sample, NOW)


@pytest.mark.parametrize("seconds", [300, 1800, 7200])
def test_a_replay_is_history_at_our_time_although_it_comes_at_once_and_the_clocks_differ(seconds):
    made = book("g1", "g2")
    replay(made, "g1", 2.0, seconds)
    replay(made, "g2", 1.0, seconds / 2)
    points = made.history(CHAT, NOW)
    assert points[-1].at_s == pytest.approx(NOW, abs=5)
    assert points[0].at_s >= NOW - HISTORY_S
    assert points[-1].at_s - points[0].at_s == pytest.approx(min(seconds, HISTORY_S), abs=60)
    arrivals = [p.demand.arrivals for p in points]
    assert arrivals == sorted(arrivals)
    state = remember(points, NOW)
    minute = Windows(state.buckets, NOW)
    assert minute.total("arrivals", 60) / minute.total("span_s", 60) == pytest.approx(3.0, rel=0.1)


def test_history_is_thinned():
    made = book("g1")
    replay(made, "g1", 1.0, 3600)
    # Ten minutes of 5 s and fifty of at most 60 s.
    assert len(made._fleets[CHAT].series["g1"][0].times_s) <= 121 + 2 * 50


def test_latencies_add_up_over_gateways_with_the_same_bounds_and_begin_again_with_others():
    made = book("g1", "g2")

    def sample(gateway, seq, counts, bounds):
        made.put(
            gateway,
            pb.DemandSample(
                gateway_uid=gateway,
                incarnation="a",
                seq=seq,
                ttft_bounds_s=bounds,
                fleets=[fleet(1, ttft_counts=counts)],
            ),
            NOW,
        )

    sample("g1", 1, [1, 2, 3], [0.1, 1.0])
    sample("g2", 1, [10, 0, 0], [0.1, 1.0])
    ttft, tpot = made.latencies(CHAT)
    assert (ttft.bounds_s, ttft.counts, tpot) == ((0.1, 1.0), (11.0, 2.0, 3.0), None)
    sample("g1", 2, [5, 5], [0.5])
    assert made.latencies(CHAT)[0].bounds_s == (0.5,)
    # Counts that do not fit their bounds are not counted.
    sample("g2", 2, [1, 2], [0.1, 1.0])
    assert made.latencies(CHAT)[0].bounds_s == (0.5,)


def test_a_fleet_that_is_forgotten_begins_anew():
    made = book("g1")
    made.put("g1", said(1, fleet(50)), NOW)
    made.forget(CHAT)
    assert made.totals(CHAT) == DemandTotals()
    assert made.history(CHAT, NOW) == []
