"""A watch is dead when a LIST has known for 15 s what the watch has not delivered. A quiet watch is not."""

from __future__ import annotations

from moefleet_operator.core.events import Key
from moefleet_operator.handlers.audit import DEAD_AFTER_S, WatchAudit, version_of

A, B = Key("ns", "a"), Key("ns", "b")


def test_a_quiet_watch_that_agrees_lives() -> None:
    audit = WatchAudit()
    audit.delivered("Pod", A, 10)
    for now in (0.0, 60.0, 120.0):
        audit.listed("Pod", [(A, 10)], as_of=99, now=now)
    assert audit.dead(1000.0) is None
    assert audit.behind_s("Pod", 1000.0) == 0.0


def test_a_change_that_does_not_come_kills_it() -> None:
    audit = WatchAudit()
    audit.delivered("Pod", A, 10)
    audit.listed("Pod", [(A, 12)], as_of=12, now=100.0)
    assert audit.dead(100.0 + DEAD_AFTER_S) is None
    dead = audit.dead(100.0 + DEAD_AFTER_S + 1)
    assert dead == "the watch of Pod is dead: a LIST has known ns/a as it is now for 16 s, more than 15 s"
    assert audit.behind_s("Pod", 110.0) == 10.0


def test_a_change_that_comes_late_heals_it() -> None:
    audit = WatchAudit()
    audit.listed("Pod", [(A, 12)], as_of=12, now=100.0)
    audit.delivered("Pod", A, 12)
    assert audit.dead(200.0) is None


def test_an_older_change_does_not_heal_it() -> None:
    audit = WatchAudit()
    audit.listed("Pod", [(A, 12)], as_of=12, now=100.0)
    audit.delivered("Pod", A, 11)
    assert audit.dead(200.0) is not None


def test_a_deletion_that_does_not_come_is_no_proof() -> None:
    """kopf says of no object that it is gone when it lists anew after an outage or a 410; the LIST told the core."""
    audit = WatchAudit()
    audit.delivered("Pod", A, 10)
    audit.delivered("Pod", B, 11)
    # A was deleted at 15, while the watch was cut off; kopf lists anew and delivers what is there.
    audit.delivered("Pod", B, 11)
    audit.listed("Pod", [(B, 11)], as_of=20, now=100.0)
    assert audit.dead(117.0) is None
    for version in range(21, 40):
        audit.delivered("Pod", B, version)
    audit.listed("Pod", [(B, 39)], as_of=50, now=160.0)
    assert audit.dead(600.0) is None
    assert audit.behind_s("Pod", 600.0) == 0.0


def test_a_watch_that_brings_newer_things_owes_nothing_older() -> None:
    """What a LIST knew was deleted before kopf listed anew, so it never comes; the watch lives all the same."""
    audit = WatchAudit()
    audit.listed("Pod", [(A, 12)], as_of=12, now=100.0)
    audit.delivered("Pod", B, 13)
    assert audit.dead(600.0) is None


def test_of_several_namespaces_each_has_a_watch_of_its_own() -> None:
    other = Key("other", "b")
    audit = WatchAudit(by_namespace=True)
    audit.listed("Pod", [(A, 12)], as_of=12, now=100.0)
    audit.delivered("Pod", other, 13)
    assert audit.dead(600.0) is not None
    audit.delivered("Pod", B, 13)
    assert audit.dead(600.0) is None


def test_one_that_dies_after_a_lost_deletion_is_found_by_the_next_change() -> None:
    audit = WatchAudit()
    audit.delivered("Pod", A, 10)
    audit.listed("Pod", [], as_of=20, now=100.0)
    audit.listed("Pod", [(B, 30)], as_of=31, now=160.0)
    assert audit.dead(176.0) is not None


def test_what_the_watch_knows_and_an_older_list_does_not_is_no_disagreement() -> None:
    audit = WatchAudit()
    audit.delivered("Pod", B, 30)
    audit.listed("Pod", [], as_of=20, now=0.0)
    assert audit.dead(600.0) is None


def test_the_time_runs_from_the_first_list_that_knew() -> None:
    audit = WatchAudit()
    audit.listed("Pod", [(A, 12)], as_of=12, now=0.0)
    audit.listed("Pod", [(A, 14)], as_of=14, now=10.0)
    assert audit.behind_s("Pod", 12.0) == 12.0


def test_another_version_owed_later_of_another_object_has_its_own_time() -> None:
    audit = WatchAudit()
    audit.delivered("Node", A, 5)
    audit.listed("Node", [(A, 5), (B, 6)], as_of=6, now=0.0)
    audit.delivered("Node", B, 6)
    audit.listed("Node", [(A, 9), (B, 6)], as_of=9, now=60.0)
    assert audit.behind_s("Node", 61.0) == 1.0


def test_versions_of_odd_servers_count_as_old() -> None:
    assert version_of({"metadata": {"resourceVersion": "17"}}) == 17
    assert version_of({"metadata": {"resourceVersion": "v17"}}) == 0
    assert version_of({}) == 0


def test_a_watch_is_silent_while_there_is_something_and_it_has_brought_nothing() -> None:
    audit = WatchAudit()
    assert not audit.silent("Pod"), "nothing is known yet"
    audit.counted("Pod", 2)
    audit.delivered("Node", Key("", "n1"), 3)
    assert audit.silent("Pod")
    audit.counted("Pod", 0)
    assert not audit.silent("Pod"), "there is nothing to bring"
    audit.counted("Pod", 1)
    audit.delivered("Pod", A, 5)
    assert not audit.silent("Pod")
