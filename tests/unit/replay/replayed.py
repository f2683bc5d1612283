"""Traffic and a policy for tests of the fleet: arrays as a source, a list as a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.observation import Observation
from moefleet_replay.policy import Wanted


@dataclass(frozen=True)
class Listed:
    """Requests as (at_s, input, output, cached), in order."""

    requests: Sequence[tuple[float, int, int, int]]
    duration_s: float
    name: str = "listed"

    def between(self, start_s: float, end_s: float) -> Arrivals:
        part = [r for r in self.requests if start_s <= r[0] < end_s]
        at_s, *tokens = zip(*part, strict=True) if part else ((), (), (), ())
        return Arrivals(np.array(at_s, float), *(np.array(t, np.int32) for t in tokens))


def poisson(
    rate: float, duration_s: float, seed: int, *, prompt: int = 400, answer: int = 60, cached: float = 0.0
) -> Listed:
    """A constant rate, lengths lognormal about the given medians."""
    chance = np.random.default_rng(seed)
    at_s = np.sort(chance.uniform(0, duration_s, chance.poisson(rate * duration_s)))
    inputs = np.clip(chance.lognormal(np.log(prompt), 1.0, len(at_s)), 1, 5000).astype(int)
    outputs = np.clip(chance.lognormal(np.log(answer), 1.0, len(at_s)), 1, 1500).astype(int)
    hits = (inputs * cached).astype(int)
    return Listed(
        list(zip(at_s.tolist(), inputs.tolist(), outputs.tolist(), hits.tolist(), strict=True)), duration_s
    )


@dataclass
class Scripted:
    """Wants what the list says at each tick, and the last of it for ever after."""

    wants: Sequence[int]
    interval_s: float = 5.0
    resumes_draining: bool = False
    seen: list[Observation] = field(default_factory=list)

    def decide(self, observation: Observation) -> Wanted:
        wanted = self.wants[min(len(self.seen), len(self.wants) - 1)]
        self.seen.append(observation)
        return Wanted(wanted, "as the script says")
