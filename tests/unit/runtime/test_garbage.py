"""Once a process serves, Python looks for garbage seldom, and not in what stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from moefleet_runtime.garbage import THRESHOLDS, settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Loaded:
    def __init__(self) -> None:
        self.me = self


def test_what_stays_is_looked_at_no_more_and_what_the_start_left_is_gone() -> None:
    stays, left = Loaded(), weakref.ref(Loaded())
    assert left() is not None
    settle()
    assert left() is None
    assert gc.get_threshold() == THRESHOLDS
    assert gc.get_freeze_count() > 1000
    assert all(each is not stays for each in gc.get_objects())


def test_cycles_that_serving_makes_are_found_before_they_are_many() -> None:
    settle()
    alive: list[weakref.ref[Loaded]] = []
    for _ in range(2 * THRESHOLDS[0]):
        alive.append(weakref.ref(Loaded()))
    assert sum(ref() is not None for ref in alive) < THRESHOLDS[0]
