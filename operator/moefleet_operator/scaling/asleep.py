"""Sleeping: when a fleet that nobody calls may have no replica at all, and how long one that was woken stays awake.

Who wakes a fleet waits for one cold start, here or, refused with that time, at home. A fleet that slept again before it
has served them would be woken again for ever and never serve anybody.
"""

from __future__ import annotations

from dataclasses import replace

from moefleet_operator.scaling.state import State
from moefleet_operator.scaling.types import Sample


def may_sleep(state: State, sample: Sample, cold_start_s: float, now: float) -> bool:
    """Nobody called for as long as the owner said, everybody who would know was heard, and no wake is younger than
    `cold_start_s` (seconds, the slow end of those measured)."""
    after_s = sample.policy.scale_to_zero_after_s
    if after_s is None or sample.silent_gateways or sample.silent_replicas:
        return False
    return now - state.last_call_s >= after_s and now - state.woke_s >= cold_start_s


def called(state: State) -> bool:
    """Whether anything arrived since the target last went down: of a fleet that sleeps, since it fell asleep."""
    return any(b.arrivals + b.admitted > 0 for b in state.buckets if b.end_s > state.last_down_s)


def woken(state: State, sample: Sample, give_up_s: float, now: float) -> State:
    """The idle clock stands until a wake has brought a ready replica: whoever called is still to be served. A wake that
    has brought none for `give_up_s` seconds is given up, or a fleet that cannot start would never sleep again."""
    waits = sample.supply.target > 0 and sample.supply.ready == 0 and now - state.woke_s < give_up_s
    return replace(state, last_call_s=now) if waits else state
