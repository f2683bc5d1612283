"""How much more than the forecast is kept: learnt from what came within one cold start, and from what the objective still allows.

Two memories, both small and both pure:

- `Surprises`: a histogram of the headroom that would just have been enough, r = ln(D(t) / K(t)): the work that arrived, less most of
  what rounding up gives, against what the forecasts until one lead (cold start + tick) before would have kept without any headroom,
  holds included. Against the bare forecast the model saw several times the misses that happened, because replicas are whole and
  held. Weighted by requests and with a half-life. Headroom is the quantile of it that leaves out the allowed
  share of misses. Beyond 90 % the tail is taken as exponential (peaks over threshold): four hours hold some hundred independent
  leads, so the plain 99 % quantile would be the second largest of them.
- `Budget`: misses that the objective allowed less those that happened, in days of traffic. Unspent budget raises the
  share that headroom leaves out, misses take that back. It is an integrator, so that fleets end up at what their owner asked for
  whatever the law's model of misses gets wrong; it is bounded, so that a quiet week pays for no bad day, nor a bad day for a week.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from moefleet_operator.scaling.types import Attained

# A fleet that is a twentieth of a replica over is not given one more.
ROUNDING_SLACK = 0.05
# Of what rounding up gives on top of a need, so much counts as headroom. All of it hides the begin of a ramp until a whole replica is
# missing: story F13 held 82 % of its surge, 88 % with nine tenths and 94 % with none.
ROUNDING_COUNTED = 0.9
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
# Bounds, in spans. A small overdraft only: a third of a day, which leaves out half of the share. A deep one is paid back at the price of
# the rarest surges, the dearest of all: 1.75 times the work were kept for ten hours after one bad one.
MAX_BALANCE = 1.0
MIN_BALANCE = -0.3
# A full balance lets e^2 times the share be left out: what is counted as a miss is nearly what is one, and a balance that moves headroom
# more than the account is wrong by only makes it swing.
GAIN = 2.0
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
    memory: Surprises,
    work: float,
    forecast: float,
    *,
    lead_s: float,
    hold_s: float,
    weight: float,
    now: float,
) -> Surprises:
    """With this tick's forecast remembered, and its work compared with what the forecasts of one lead and one hold ago keep for it.

    `work` and `forecast` in replicas; `weight`: requests per second now over their mean."""
    span_s = lead_s + hold_s
    if memory.forecasts and now - memory.forecasts[-1][0] < max(STEP_S, span_s / (MAX_FORECASTS - 2)):
        return memory
    kept = (*(f for f in memory.forecasts if f[0] > now - 2 * span_s), (now, forecast))[-MAX_FORECASTS:]
    kept = kept[max(sum(at_s <= now - span_s for at_s, _ in kept) - 1, 0) :]
    # A young memory has no hold behind it yet; a gap in the ticks is no lead.
    due = now - lead_s >= kept[0][0] >= now - 1.5 * span_s - STEP_S
    supplied = _supplied(kept, lead_s, hold_s, now)
    if not due or supplied <= 0 or work <= 0:
        return replace(memory, forecasts=kept)
    # From this much on as many replicas as are enough are there, because the law rounds up.
    rounded = min(max(math.ceil(work - ROUNDING_SLACK), 1) - 1.0 + ROUNDING_SLACK, work)
    least = work - ROUNDING_COUNTED * (work - rounded)
    at = min(max(int((math.log(least / supplied) - LOWEST) / BIN), 0), BINS - 1)
    # The prior is where a memory begins, and fades with it.
    fade = 0.5 ** (max(now - memory.at_s, 0.0) / HALF_LIFE_S) if memory.weights else 1.0
    faded = [w * fade for w in memory.weights or _PRIOR]
    faded[at] += min(max(weight, 0.0), MAX_WEIGHT)
    return Surprises(now, tuple(faded), kept)


def _supplied(forecasts: tuple[tuple[float, float], ...], lead_s: float, hold_s: float, now: float) -> float:
    """What the forecasts alone keep now: a replica serves when it was wanted all through the last lead, and is wanted until nothing
    of a hold wants it. Whatever factor and whole numbers come on top change neither which is the highest nor which the least."""
    least = math.inf
    for n, (at_s, _) in enumerate(forecasts):
        if at_s >= now - lead_s:
            most = max(f for before_s, f in forecasts[: n + 1] if before_s >= at_s - hold_s)
            least = min(least, most)
    return least


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
    # A state of an older release may come with a balance beyond.
    balance = min(max(budget.balance, MIN_BALANCE), MAX_BALANCE)
    return min(max((1.0 - objective) * math.exp(GAIN * balance), MIN_SHARE), MAX_SHARE)


def _prior() -> tuple[float, ...]:
    edges = [LOWEST + i * BIN for i in range(BINS + 1)]
    below = [0.5 * math.erfc(-edge / (PRIOR_SPREAD * math.sqrt(2.0))) for edge in edges]
    return tuple((b - a) * PRIOR_S / STEP_S for a, b in pairwise(below))


_PRIOR = _prior()
