"""Whether and when an answer that broke off goes on. Pure: the caller has the clock, the chance and the connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc
from moefleet.client.errors import Failure
from moefleet.client.types import ResumePolicy

# A replica or the way to it is gone: another call may do better, whether or not tokens had come.
_GONE: Final = frozenset({grpc.StatusCode.UNAVAILABLE})
# The same, but only in the middle of an answer; before its first message these say something about the request.
# INTERNAL: a proxy's reset, or a step that failed. UNKNOWN: a connection that vanished. CANCELLED: not by us.
# RESOURCE_EXHAUSTED: the next replica is full for a moment, which is no reason to give up half an answer.
_GONE_IN_THE_MIDDLE: Final = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# Reasons of a replica whose engine failed with the request in it.
ENGINE_FAILED: Final = frozenset({"ENGINE_DIED", "STEP_FAILED"})
# A stream that ends well without its last message broke off too: some proxies end it so.
INCOMPLETE: Final = Failure(grpc.StatusCode.INTERNAL, "the stream ended without its last message")


@dataclass(frozen=True, slots=True)
class Course:
    """How the calls for one answer have gone."""

    # Something of the answer has come, in whichever call.
    begun: bool = False
    # Calls that brought something and broke.
    breaks: int = 0
    # Calls in a row that brought nothing, the one that just failed included.
    fruitless: int = 0
    # Calls that an engine's failure ended.
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    wait_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    # Empty: the status says it all.
    why: str = ""
    # The request may be what is wrong: nobody should try it again.
    suspect: bool = False


def plan(
    policy: ResumePolicy, course: Course, failure: Failure, *, left_s: float | None, chance: float
) -> Again | GiveUp:
    """`left_s`: of the call's time, None for no limit. `chance`: in [0, 1), spreads those who wait."""
    if policy.most == 0:
        return GiveUp()
    if failure.code not in _GONE and not (course.begun and failure.code in _GONE_IN_THE_MIDDLE):
        return GiveUp()
    if course.deaths >= policy.deaths and failure.reason in ENGINE_FAILED:
        # Or one request would take down a fleet, replica by replica.
        return GiveUp(f"{course.deaths} calls ended with an engine's failure", suspect=True)
    if course.breaks > policy.most:
        return GiveUp(f"it broke off {course.breaks} times, and may go on {policy.most} times")
    if course.fruitless >= policy.attempts:
        return GiveUp(f"{course.fruitless} calls in a row brought nothing")
    wait_s = 0.0
    if course.fruitless:
        longest_s = min(policy.first_wait_s * 2.0 ** (course.fruitless - 1), policy.longest_wait_s)
        wait_s = longest_s * (0.5 + 0.5 * chance)
    wait_s = max(wait_s, failure.retry_after_s or 0.0)
    if left_s is not None and wait_s >= left_s:
        return GiveUp(f"{left_s:.3g} s are left of the call's time, the next attempt is in {wait_s:.3g} s")
    return Again(wait_s)
