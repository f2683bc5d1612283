"""Time for the I/O side: given, so that tests own it. Nothing else in kube and handlers reads a clock.

All times that the core compares with were written by the API server, or by kubelets that agree with it. A node whose clock is a
quarter of an hour ahead would refuse a good revision at once and end every drain, so the wall clock is the API server's: its
answers carry a date, and they come at least every 2 s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import structlog

# Clocks that are kept by NTP differ by less; and dates are whole seconds.
AGREES_S: Final = 2.0
# So many answers in a row have to say it: one of several API servers may be wrong itself.
ANSWERS_BEFORE_BELIEVED: Final = 3

log = structlog.get_logger("moefleet_operator")


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds: what the core's `not_after` and `WakeAt` are in."""
        ...

    def wall(self) -> float:
        """Unix seconds."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class DatedClock(Clock, Protocol):
    """A clock that learns from answers."""

    def heard(self, date: str | None, sent: float, got: float) -> None:
        """The `Date` of an answer to what was sent and came at these monotonic seconds."""
        ...

    def ahead_s(self) -> float:
        """This machine's clock against the one that is used, in seconds."""
        ...


class ServerClock:
    """Wall time as the API server has it. Between its answers it goes on as the monotonic clock does, so that somebody who sets
    this machine's clock moves nothing."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic, self._system_wall = monotonic, wall
        self._wall_at_0 = wall() - monotonic()
        # Answers in a row that found us behind (positive) or ahead (negative).
        self._told_behind = 0

    def now(self) -> float:
        return self._monotonic()

    def wall(self) -> float:
        return self._monotonic() + self._wall_at_0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def heard(self, date: str | None, sent: float, got: float) -> None:
        """A second has many moments, and so has the way: ours is wrong when it lies outside all that the date may mean."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError):
            # None, or a proxy's own idea of a date.
            return
        lowest, highest = told - got - AGREES_S, told + 1.0 - sent + AGREES_S
        if lowest <= self._wall_at_0 <= highest:
            self._told_behind = 0
            return
        way = 1 if self._wall_at_0 < lowest else -1
        self._told_behind = self._told_behind + way if self._told_behind * way >= 0 else way
        if abs(self._told_behind) >= ANSWERS_BEFORE_BELIEVED:
            self._told_behind = 0
            self._wall_at_0 = (lowest + highest) / 2
            log.warning(
                "ClockDiffers",
                message=f"the clock of this machine is {self.ahead_s():+.0f} s from the API server's, which is used",
            )

    def ahead_s(self) -> float:
        return self._system_wall() - self.wall()
