"""How long a replica takes to start, as a distribution: the k-th start of a run takes the same time under every policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Of the standard normal distribution.
Z95 = 1.6448536269514722
# A start that fails again and again ends some time: what is billed by then is the lesson.
MAX_ATTEMPTS = 20
_STREAM = 0x5747


class ColdStartError(ValueError):
    """The text names what was wanted."""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Lognormal from its median and 95 % quantile, both in seconds. A start that fails begins again from scratch, on the same pod."""

    median_s: float = 240.0
    p95_s: float = 420.0
    failing_share: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median_s) and 0 < self.median_s <= self.p95_s < math.inf):
            raise ColdStartError(
                f"cold start: wanted 0 < median <= p95 in seconds, found median {self.median_s:g}, p95 {self.p95_s:g}"
            )
        if not 0 <= self.failing_share < 1:
            raise ColdStartError(
                f"cold start: wanted a failing share from 0 to below 1, found {self.failing_share:g}"
            )

    def draw_s(self, seed: int, number: int) -> float:
        """Seconds from creation to ready of start `number` of the run with this seed."""
        chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAM, seed, number])))
        sigma = math.log(self.p95_s / self.median_s) / Z95
        total = 0.0
        for _ in range(MAX_ATTEMPTS):
            total += self.median_s * math.exp(sigma * chance.standard_normal())
            if chance.random() >= self.failing_share:
                break
        return total


def parse_cold_start(text: str) -> ColdStart:
    """`lognormal:240,420` (median and 95 % quantile, seconds) or `fixed:240`; `,failing=0.2` may follow."""
    kind, _, rest = text.partition(":")
    parts = [p.strip() for p in rest.split(",") if p.strip()]
    failing = 0.1
    if parts and parts[-1].startswith("failing="):
        failing = _number(parts.pop().removeprefix("failing="), text)
    numbers = [_number(p, text) for p in parts]
    if kind == "lognormal" and len(numbers) == 2:
        return ColdStart(numbers[0], numbers[1], failing)
    if kind == "fixed" and len(numbers) == 1:
        return ColdStart(numbers[0], numbers[0], failing)
    raise ColdStartError(f"cold start {text!r}: wanted lognormal:MEDIAN,P95 or fixed:SECONDS")


def _number(part: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise ColdStartError(f"cold start {text!r}: {part!r} is no number of seconds") from None
