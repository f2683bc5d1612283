"""Whose time it is: the API server's, by the dates of its answers, and not a moment more of correction than they ask for."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.kube.clock import AGREES_S, ANSWERS_BEFORE_BELIEVED, ServerClock

NOON = 1_800_000_000.0


class Machine:
    """Its monotonic clock, and its wall clock, which may be set; and the API server's true time."""

    def __init__(self, ahead_s: float) -> None:
        self.monotonic_s, self.ahead_s = 500.0, ahead_s
        self.clock = ServerClock(lambda: self.monotonic_s, lambda: self.truth() + self.ahead_s)

    def truth(self) -> float:
        return NOON + self.monotonic_s

    def hears(self, server_ahead_s: float = 0.0, way_s: float = 0.01) -> None:
        sent = self.monotonic_s
        self.monotonic_s += way_s / 2
        date = formatdate(int(self.truth() + server_ahead_s), usegmt=True)
        self.monotonic_s += way_s / 2
        self.clock.heard(date, sent, self.monotonic_s)
        self.monotonic_s += 2.0


@pytest.mark.parametrize("ahead_s", [0.0, 0.9, -0.9, 2.0, -1.9])
def test_a_clock_that_is_kept_is_left_alone(ahead_s: float) -> None:
    machine = Machine(ahead_s)
    for _ in range(10):
        machine.hears()
    assert machine.clock.wall() == machine.truth() + ahead_s
    assert machine.clock.ahead_s() == pytest.approx(0.0)


@pytest.mark.parametrize("ahead_s", [900.0, -900.0, 5.0, -86_400.0])
def test_a_wrong_clock_is_put_right_by_the_third_answer(ahead_s: float) -> None:
    machine = Machine(ahead_s)
    for _ in range(ANSWERS_BEFORE_BELIEVED - 1):
        machine.hears()
        assert machine.clock.wall() == machine.truth() + ahead_s
    machine.hears()
    assert abs(machine.clock.wall() - machine.truth()) < AGREES_S
    assert machine.clock.ahead_s() == pytest.approx(ahead_s, abs=AGREES_S)


def test_a_clock_that_somebody_sets_while_we_run_moves_nothing() -> None:
    machine = Machine(0.0)
    machine.hears()
    machine.ahead_s = 900.0
    assert machine.clock.wall() == machine.truth()
    machine.hears()
    assert machine.clock.wall() == machine.truth()
    assert machine.clock.ahead_s() == pytest.approx(900.0)


def test_one_wrong_api_server_of_two_is_not_followed() -> None:
    machine = Machine(0.0)
    for _ in range(20):
        machine.hears(server_ahead_s=60.0)
        machine.hears()
    assert machine.clock.wall() == machine.truth()


def test_a_slow_answer_says_less_and_moves_nothing() -> None:
    machine = Machine(0.0)
    for _ in range(10):
        machine.hears(way_s=30.0)
    assert machine.clock.wall() == machine.truth()


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 32 Foo 2026 00:00:00 GMT"])
def test_an_answer_without_a_date_says_nothing(date: str | None) -> None:
    machine = Machine(900.0)
    for _ in range(10):
        machine.clock.heard(date, 0.0, 1.0)
    assert machine.clock.wall() == machine.truth() + 900.0


@given(ahead_s=st.floats(-1e6, 1e6), ways=st.lists(st.floats(0.001, 3.0), min_size=6, max_size=30))
def test_whatever_the_clock_was_it_ends_near_the_truth(ahead_s: float, ways: list[float]) -> None:
    machine = Machine(ahead_s)
    for way_s in ways:
        machine.hears(way_s=way_s)
    assert abs(machine.clock.wall() - machine.truth()) <= 1.0 + AGREES_S + max(ways)
