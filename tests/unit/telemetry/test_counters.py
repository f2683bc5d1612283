"""Totals never fall, whatever processes do, and nothing is counted twice."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.telemetry.counters import Ledger


def put(ledger, source, incarnation, count, from_start=False):
    ledger.put(source, incarnation, (float(count),), from_start=from_start)
    return ledger.totals()[0]


def test_what_was_counted_before_we_listened_is_not_ours_unless_it_is_the_beginning():
    assert put(Ledger(1), "gateway", "a", 500) == 0
    assert put(Ledger(1), "gateway", "a", 500, from_start=True) == 500


def test_a_restart_adds_on_top():
    ledger = Ledger(1)
    assert [put(ledger, "g", i, n) for i, n in (("a", 100), ("a", 150), ("b", 3), ("b", 10))] == [
        0,
        50,
        53,
        60,
    ]


def test_a_count_that_falls_without_a_new_name_is_a_restart_too():
    ledger = Ledger(1)
    assert [put(ledger, "g", "a", n) for n in (100, 150, 20, 30)] == [0, 50, 70, 80]


def test_two_sources_add_up_and_one_that_goes_leaves_its_share():
    ledger = Ledger(1)
    put(ledger, "g", "a", 0)
    put(ledger, "h", "a", 0)
    put(ledger, "g", "a", 10)
    assert put(ledger, "h", "a", 5) == 15
    ledger.drop("g")
    assert ledger.totals() == (15.0,)
    # The same pod again after we were not told of it: a new baseline.
    assert put(ledger, "g", "a", 40) == 15
    assert put(ledger, "g", "a", 41) == 16


def test_what_is_new_is_returned():
    ledger = Ledger(2)
    assert ledger.put("g", "a", (7.0, 1.0), from_start=True) == (7.0, 1.0)
    assert ledger.put("g", "a", (9.0, 1.0), from_start=False) == (2.0, 0.0)
    assert ledger.put("g", "b", (1.0, 0.0), from_start=False) == (1.0, 0.0)


@dataclass
class Process:
    incarnation: int = 0
    count: int = 0
    reported: int = 0
    heard: bool = False


EVENTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["work", "work", "report", "restart", "gone"]), st.integers(0, 9)), max_size=60)  # fmt: skip


@given(EVENTS)
def test_the_total_is_all_that_was_reported_and_never_falls(events):
    ledger, processes, expected, before = Ledger(1), {}, 0, 0.0
    for source, event, n in events:
        process = processes.setdefault(source, Process())
        match event:
            case "work":
                process.count += n
            case "report":
                if not process.heard:
                    process.heard = True
                else:
                    expected += process.count - process.reported
                process.reported = process.count
                ledger.put(source, str(process.incarnation), (float(process.count),), from_start=False)
            case "restart":
                process.incarnation += 1
                process.count = process.reported = 0
            case "gone":
                ledger.drop(source)
                processes[source] = Process(process.incarnation + 1)
        total = ledger.totals()[0]
        assert total >= before
        assert total == expected
        before = total
