"""One fleet through one trace under one policy, in virtual time: `run(source, policy, setup) -> RunResult`.

Between the ticks of the policy the compiled kernel moves requests; replicas become ready, die and are told to drain at whole
seconds. After the last arrival everything goes on, ticks and bills as well, until the last request has ended.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from moefleet_replay.arrivals import Arrivals, ArrivalSource
from moefleet_replay.engine import CompiledEngine, Engine
from moefleet_replay.fleet_setup import Death, FleetSetup
from moefleet_replay.need import SourceForesight, first_need
from moefleet_replay.outcome import result_of
from moefleet_replay.pods import Fleet
from moefleet_replay.policy import ScalingPolicy, Wanted
from moefleet_replay.result import RunResult

__all__ = ["Death", "FleetSetup", "run", "warm_up"]

# After the last arrival, requests may take so long to end.
TAIL_LIMIT_S = 6 * 3600
# The kernel runs at most so long at once: then drained replicas free their rows, and the tail sees its end.
GRAIN_S = 60
TAIL_GRAIN_S = 5
FETCH_S = 600.0


class RunError(ValueError):
    """A request that no replica can take, or a restart that is not possible; the text says which."""


@runtime_checkable
class Restartable(Protocol):
    def restart(self) -> None:
        """As its controller does when it begins anew with what it kept."""
        ...


class _Feed:
    """The source cut into the kernel's intervals, fetched in larger ones."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._source = fleet, fleet.source
        self._held = _none()
        self._place, self._until_s = 0, 0.0

    def take(self, end_s: int) -> Arrivals:
        """What comes before `end_s` and was not taken."""
        parts = [self._cut(end_s)]
        while self._until_s < min(end_s, self._source.duration_s):
            start_s = self._until_s
            self._until_s = min(start_s + FETCH_S, self._source.duration_s)
            self._held, self._place = self._source.between(start_s, self._until_s), 0
            self._fleet.need.add(self._held)
            _check(self._held, self._fleet.setup.calibration.limits.kv_max_tokens)
            parts.append(self._cut(end_s))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def peek(self, end_s: float) -> Arrivals:
        """From the start of the run; before anything is taken."""
        self._held = self._source.between(0.0, min(FETCH_S, self._source.duration_s))
        self._until_s = min(FETCH_S, self._source.duration_s)
        self._fleet.need.add(self._held)
        _check(self._held, self._fleet.setup.calibration.limits.kv_max_tokens)
        return _slice(self._held, 0, int(np.searchsorted(self._held.at_s, end_s)))

    def _cut(self, end_s: int) -> Arrivals:
        cut = self._place + int(np.searchsorted(self._held.at_s[self._place :], float(end_s)))
        part = _slice(self._held, self._place, cut)
        self._place = cut
        return part


def run(
    source: ArrivalSource,
    policy: ScalingPolicy,
    setup: FleetSetup,
    progress: Callable[[float], None] | None = None,
    *,
    foresees: bool = False,
    rebuild: Callable[[], ScalingPolicy] | None = None,
    engine_of: Callable[[FleetSetup, int, int], Engine] = CompiledEngine,
) -> RunResult:
    """The whole trace and the end of its last request. `progress` gets the second that is reached, each simulated hour.

    With `foresees` the source is walked twice from its start. A policy that has `resumes_draining` set gets draining replicas
    back before new ones are made. At `setup.restarts` a policy with `restart()` is told so, any other is made anew by `rebuild`.
    The first tick comes after one interval: before, nobody has seen anything. RunError: a request that no replica can take, or
    a restart of a policy that cannot be made anew."""
    compile_s = warm_up(setup)
    begun = time.perf_counter()
    foresight = SourceForesight(source, setup.calibration, setup.objective.tpot_s) if foresees else None
    fleet = Fleet(source, policy, setup, engine_of)
    feed = _Feed(fleet)
    _start(fleet, feed.peek(1.0))
    interval = max(1, round(policy.interval_s))
    next_tick, now, end = interval, 0, fleet.duration_s
    restarts = deque(sorted(setup.restarts))
    deaths = deque(sorted(setup.deaths, key=lambda d: d.at_s))
    while now < end or (fleet.engine.in_flight() > 0 and now < end + TAIL_LIMIT_S):
        while deaths and deaths[0].at_s <= now:
            fleet.die(now, deaths.popleft().replicas)
        fleet.start_ready(now)
        fleet.end_drained(now)
        if restarts and restarts[0] <= now:
            restarts.popleft()
            policy = fleet.policy = _restarted(policy, rebuild)
        if now >= next_tick:
            wanted = policy.decide(fleet.observation(now, foresight))
            fleet.scale(wanted.replicas, wanted.reason, now)
            for name, replicas in wanted.parts.items():
                fleet.kept_s[name] = fleet.kept_s.get(name, 0.0) + replicas * interval
            next_tick = now + interval
        until = min(
            now + (GRAIN_S if now < end else TAIL_GRAIN_S),
            next_tick,
            end if now < end else next_tick,
            *(r.ready_s for r in fleet.pending),
            *(d.at_s for d in list(deaths)[:1]),
            *list(restarts)[:1],
        )
        until = max(until, now + 1)
        fleet.advance(now, until, feed.take(until) if now < end else _none())
        if progress is not None and until // 3600 > now // 3600:
            progress(float(until))
        now = until
    fleet.end_drained(now)
    for replica in (*fleet.pending, *fleet.ready, *fleet.draining):
        fleet.billed_s += now - replica.created_s
    return result_of(fleet, now, time.perf_counter() - begun, compile_s)


def warm_up(setup: FleetSetup) -> float:
    """Compiles the kernel, or loads what another run compiled; seconds."""
    begun = time.perf_counter()
    fleet = Fleet(_Nothing(), _Hold(), setup, CompiledEngine)
    fleet.create(0, at_once=True)
    fleet.start_ready(0)
    fleet.advance(0, 1, _none())
    fleet.die(1, 1)
    return time.perf_counter() - begun


def _restarted(policy: ScalingPolicy, rebuild: Callable[[], ScalingPolicy] | None) -> ScalingPolicy:
    if isinstance(policy, Restartable):
        policy.restart()
        return policy
    if rebuild is None:
        raise RunError(f"restarts: {type(policy).__name__} has no restart(), and run() was given no rebuild")
    return rebuild()


def _start(fleet: Fleet, first_second: Arrivals) -> None:
    setup = fleet.setup
    need = first_need(setup.calibration, setup.objective.tpot_s, first_second)
    count = setup.initial_replicas or math.ceil(min(need, setup.max_replicas))
    count = min(max(count, setup.min_replicas), setup.max_replicas)
    for _ in range(count):
        fleet.create(0, at_once=True)
    fleet.target = fleet.peak = count
    fleet.start_ready(0)


def _check(arrivals: Arrivals, kv_max_tokens: int) -> None:
    total = arrivals.input_tokens.astype(np.int64) + arrivals.output_tokens
    bad = (total > kv_max_tokens) | (arrivals.input_tokens < 1) | (arrivals.output_tokens < 1)
    if bad.any():
        which = int(np.argmax(bad))
        raise RunError(
            f"request at {arrivals.at_s[which]:.3f} s: wanted at least 1 token in and out and at most {kv_max_tokens} together"
            f" (the calibration's kvMaxTokens), found {arrivals.input_tokens[which]} in and {arrivals.output_tokens[which]} out"
        )


def _none() -> Arrivals:
    return Arrivals(np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))


def _slice(a: Arrivals, start: int, end: int) -> Arrivals:
    part = slice(start, end)
    return Arrivals(a.at_s[part], a.input_tokens[part], a.output_tokens[part], a.cached_tokens[part])


def _joined(parts: list[Arrivals]) -> Arrivals:
    return Arrivals(
        np.concatenate([p.at_s for p in parts]),
        np.concatenate([p.input_tokens for p in parts]),
        np.concatenate([p.output_tokens for p in parts]),
        np.concatenate([p.cached_tokens for p in parts]),
    )


class _Nothing:
    name, duration_s = "nothing", 1.0

    def between(self, start_s: float, end_s: float) -> Arrivals:
        return _none()


class _Hold:
    interval_s = 1.0

    def decide(self, observation: object) -> Wanted:
        raise AssertionError("nobody asks while the kernel is compiled")
