"""The keyed queue: once in it, once running, alone in its backoff, back every minute."""

from __future__ import annotations

from moefleet_operator.core.queue import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    RESYNC_JITTER,
    RESYNC_S,
    Backoff,
    WorkQueue,
)


class Middle:
    """A generator that always draws the middle."""

    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


def queue() -> WorkQueue[str]:
    return WorkQueue(Middle())


def test_a_key_added_twice_runs_once() -> None:
    work = queue()
    work.add("a", 0.0)
    work.add("a", 0.0)
    assert work.pop(0.0) == "a"
    assert work.pop(0.0) is None


def test_keys_come_in_the_order_of_their_times() -> None:
    work = queue()
    for key, at in (("late", 2.0), ("soon", 1.0), ("first", 1.0)):
        work.add(key, at)
    assert [work.pop(2.0), work.pop(2.0), work.pop(2.0)] == ["soon", "first", "late"]


def test_what_comes_while_it_runs_runs_it_again_afterwards() -> None:
    work = queue()
    work.add("a", 0.0)
    work.pop(0.0)
    work.add("a", 0.5)
    assert work.pop(1.0) is None, "never twice at the same time"
    work.done("a", 1.0)
    assert work.pop(1.0) == "a"


def test_an_earlier_wish_counts_and_a_later_one_does_not_delay() -> None:
    work = queue()
    work.add("a", 10.0)
    work.add("a", 3.0)
    work.add("a", 7.0)
    assert work.next_at() == 3.0
    assert work.pop(3.0) == "a"
    assert work.pop(10.0) is None


def test_failures_back_off_alone() -> None:
    work = queue()
    work.add("bad", 0.0)
    work.add("good", 0.0)
    work.pop(0.0)
    work.failed("bad", 0.0)
    assert work.pop(0.0) == "good"
    work.add("bad", 0.0)
    assert work.pop(0.01) is None, "an event does not shorten the backoff"
    assert work.pop(BACKOFF_FIRST_S * 1.1) == "bad"


def test_a_key_comes_back_by_itself_within_about_a_minute() -> None:
    work = queue()
    work.add("a", 0.0)
    work.pop(0.0)
    work.done("a", 0.0)
    at = work.next_at()
    assert at is not None
    assert RESYNC_S * (1 - RESYNC_JITTER) <= at <= RESYNC_S * (1 + RESYNC_JITTER)


def test_a_forgotten_key_does_not_come_back() -> None:
    work = queue()
    work.add("a", 0.0)
    work.pop(0.0)
    work.add("a", 0.0)
    work.forget("a")
    assert work.next_at() is None
    assert len(work) == 0


def test_backoff_doubles_from_a_tenth_of_a_second_to_a_minute() -> None:
    backoff: Backoff[str] = Backoff(Middle())
    waits = [backoff.failed("a", 0.0) for _ in range(30)]
    assert waits[0] < waits[1] < waits[5]
    assert BACKOFF_FIRST_S <= waits[0] <= BACKOFF_FIRST_S * 1.1
    assert BACKOFF_MAX_S <= waits[-1] <= BACKOFF_MAX_S * 1.1
    backoff.succeeded("a")
    assert backoff.until("a") == 0.0
    assert backoff.failed("a", 0.0) == waits[0]


def test_the_server_may_ask_for_a_longer_wait() -> None:
    assert Backoff[str](Middle()).failed("a", 5.0, at_least_s=30.0) >= 35.0


def test_backoffs_of_objects_that_are_gone_are_forgotten() -> None:
    backoff: Backoff[str] = Backoff(Middle())
    backoff.failed("a", 0.0)
    backoff.forget(1000.0, 600.0)
    assert len(backoff) == 0
