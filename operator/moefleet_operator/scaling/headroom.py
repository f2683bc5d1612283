"""How much more than the forecast is kept: learnt from what came within one cold start, and from what the objective still allows.

Two memories, both small and both pure:

- `Surprises`: a histogram of r = ln(D(t) / F(t - L)), work that arrived against the forecast one lead (cold start + tick) before,
  weighted by requests and with a half-life. Headroom is the quantile of it that leaves out the allowed share of misses. Beyond
  90 % the tail is taken as exponential (peaks over threshold): four hours hold some hundred independent leads, so the plain
  99 % quantile would be the second largest of them.
- `Budget`: misses that the objective allowed less those that happened, in days of traffic. Unspent budget raises the
  share that headroom leaves out, misses take that back. It is an integrator, so that fleets end up at what their owner asked for
  whatever the law's model of misses gets wrong; it is bounded, so that a quiet week pays for no bad day, nor a bad day for a week.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from moefleet_operator.scaling.types import Attained

# Residuals kept: a twentieth is a tenth of a replica in a fleet of two. Outside they count at the ends.
BIN = 0.05
LOWEST = -0.6
BINS = 48
# Most of a day counts: four hours hold too few independent leads, and what is loud or calm for hours is left to the budget below.
HALF_LIFE_S = 16 * 3600.0
# One residual in 15 s: neighbours are alike anyway, and the ring of forecasts has to span a cold start.
STEP_S = 15.0
# Forecasts that wait to be compared, at most; a longer lead makes them sparser.
MAX_FORECASTS = 48
# The prior counts as much as an hour, so that one surge is not half of what is known; it says: normal, with so much spread. Recorded production curves had 0.1 to 0.2.
PRIOR_S = 3600.0
PRIOR_SPREAD = 0.12
# Where the tail begins.
TAIL_SHARE = 0.1
# An objective of 100 % is one that nobody can plan for; one in two thousand is.
MIN_SHARE = 0.0005
# A tail is never taken for shorter than this: two bins of 0.05 cannot tell it from none.
MIN_TAIL = 0.02
# Twice the forecast: beyond it is no headroom, that is a second fleet.
MAX_HEADROOM = math.log(2.0)
# Requests of one sample count at most so many times the mean: one burst is one event.
MAX_WEIGHT = 4.0

# What may be missed is planned to this share: no planning hits a surge that nobody saw, and the rest pays for those.
AIM = 0.6
# The balance is full after a bit more than so long without a miss. Faster swings, and what is saved in calm hours is lost twice in
# the next surge.
BUDGET_SPAN_S = 24 * 3600.0
# Bounds, in spans. No overdraft is remembered: what was missed is missed. The plain quantile misses a tenth of what the objective
# allows (work above capacity is no miss yet, replicas are whole), so a fleet that pays back at that price buys hours of replicas
# that nobody needs: 1.75 times the work were kept for ten hours after one bad one.
MAX_BALANCE = 1.0
MIN_BALANCE = 0.0
# A full balance lets e^3 times the share be left out.
GAIN = 3.0
# Leaving out more than a quarter is no headroom any more: whole numbers, the margin and the hold are all that is left.
MAX_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Surprises:
    at_s: float = 0.0
    # Weights by bin, as of `at_s`; empty: nothing was seen, and the prior holds.
    weights: tuple[float, ...] = ()
    # (time, forecast in replicas), oldest first.
    forecasts: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    at_s: float = 0.0
    # Spans of traffic whose allowance is unspent.
    balance: float = 0.0
    # Requests and seconds, fading over a span: their ratio is the mean rate that a span is measured by.
    requests: float = 0.0
    seconds: float = 0.0


def observed(
    memory: Surprises, work: float, forecast: float, *, lead_s: float, weight: float, now: float
) -> Surprises:
    """With this tick's forecast remembered, and its work compared with the forecast of one lead ago.

    `work` and `forecast` in replicas; `weight`: requests per second now over their mean."""
    if memory.forecasts and now - memory.forecasts[-1][0] < max(STEP_S, lead_s / (MAX_FORECASTS - 2)):
        return memory
    kept = [f for f in memory.forecasts if f[0] > now - 2 * lead_s - STEP_S][-(MAX_FORECASTS - 1) :]
    then = [f for f in kept if f[0] <= now - lead_s]
    weights = memory.weights
    if then:
        kept = kept[len(then) - 1 :]
        # A gap in the ticks is no lead.
        due = now - then[-1][0] <= 1.5 * lead_s + STEP_S
        if due and then[-1][1] > 0 and work > 0:
            at = min(max(int((math.log(work / then[-1][1]) - LOWEST) / BIN), 0), BINS - 1)
            # The prior is where a memory begins, and fades with it.
            fade = 0.5 ** (max(now - memory.at_s, 0.0) / HALF_LIFE_S) if weights else 1.0
            faded = [w * fade for w in weights or _PRIOR]
            faded[at] += min(max(weight, 0.0), MAX_WEIGHT)
            return Surprises(now, tuple(faded), (*kept, (now, forecast)))
    return replace(memory, forecasts=(*kept, (now, forecast)))


def due(memory: Surprises, lead_s: float, now: float) -> float | None:
    """The forecast (replicas) of one lead ago, whose time is now; None: nobody made one then."""
    then = [f for f in memory.forecasts if f[0] <= now - lead_s]
    return then[-1][1] if then and now - then[-1][0] <= 1.5 * lead_s + STEP_S else None


def headroom(memory: Surprises, share: float) -> float:
    """ln of the factor that all but `share` of what came stayed below; never negative."""
    weights = memory.weights or _PRIOR
    if share >= TAIL_SHARE:
        found = _left_out(weights, share)
    else:
        threshold = _left_out(weights, TAIL_SHARE)
        # The median of what is beyond, not the mean: one surge in four hours is paid from the budget, it says nothing of others.
        # Nor is a second hump a tail: normal noise has 0.4 of its threshold there, Laplace's 0.6.
        longest = max(threshold, PRIOR_SPREAD)
        beyond = (_left_out(weights, TAIL_SHARE / 2) - threshold) / math.log(2.0)
        spread = min(max(beyond, MIN_TAIL), longest)
        found = threshold + spread * math.log(TAIL_SHARE / share)
    return min(max(found, 0.0), MAX_HEADROOM)


def _left_out(weights: tuple[float, ...], share: float) -> float:
    """The residual above which `share` of the weight lies, even inside its bin."""
    left = share * sum(weights)
    n = BINS
    while n > 1 and weights[n - 1] < left:
        n -= 1
        left -= weights[n]
    inside = min(left / weights[n - 1], 1.0) if weights[n - 1] > 0 else 0.0
    return LOWEST + (n - inside) * BIN


def settled(
    budget: Budget, before: Attained | None, after: Attained | None, objective: float, now: float
) -> Budget:
    """With the requests that ended since `before` paid for. Unknown: the balance stays."""
    span_s = now - budget.at_s if budget.at_s else 0.0
    if after is None or before is None or span_s <= 0:
        return replace(budget, at_s=now)
    ended = max(after.requests - before.requests, 0.0)
    missed = min(max(ended - max(after.within - before.within, 0.0), 0.0), ended)
    fade = 0.5 ** (span_s / BUDGET_SPAN_S)
    requests, seconds = budget.requests * fade + ended, budget.seconds * fade + span_s
    # A young fleet's span is measured by an hour at least: its first minute is no mean.
    allowed = (1.0 - objective) * AIM * requests / max(seconds, 1.0) * BUDGET_SPAN_S
    balance = budget.balance
    if allowed > 0:
        balance += ((1.0 - objective) * AIM * ended - missed) / allowed
    return Budget(now, min(max(balance, MIN_BALANCE), MAX_BALANCE), requests, seconds)


def allowed_share(budget: Budget, objective: float) -> float:
    """Of the requests, those that headroom may leave out."""
    # A state of an older release may come with a balance below.
    balance = min(max(budget.balance, MIN_BALANCE), MAX_BALANCE)
    return min(max((1.0 - objective) * math.exp(GAIN * balance), MIN_SHARE), MAX_SHARE)


def _prior() -> tuple[float, ...]:
    edges = [LOWEST + i * BIN for i in range(BINS + 1)]
    below = [0.5 * math.erfc(-edge / (PRIOR_SPREAD * math.sqrt(2.0))) for edge in edges]
    return tuple((b - a) * PRIOR_S / STEP_S for a, b in pairwise(below))


_PRIOR = _prior()
