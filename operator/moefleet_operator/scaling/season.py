"""What the hour of the day says of the next cold start, and whether it has earned to be heard.

A profile of a day in quarters of an hour, of the logarithm of the forecast, so that what counts is how much the next minutes are
above these ones on other days. It is heard only while it has skill: its pinball loss over about the last day, at the quantile that
headroom is about, is more than 5 % below that of the plain forecast. Production traffic of large pools hardly repeats (a day later
its rate correlates at 0.1 to 0.5, and a cold start is short against a day); a batch that begins at nine every morning does.
It only raises: to be lean before demand falls is what the way down does anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

DAY_S = 86400.0
SLOTS = 96
SLOT_S = DAY_S / SLOTS
# A new day counts as much as all before it.
NEW_DAY = 0.5
# Losses fade so that they speak of about a day.
SKILL_HALF_LIFE_S = DAY_S * math.log(2.0)
LEAST_SKILL = 0.05
# Below so many seconds of comparison nothing is known of skill: a day, or the profile has been compared with the day that made it.
LEAST_COMPARED_S = DAY_S / 2
# More than double the forecast is not said by any clock.
MAX_LIFT = math.log(2.0)
# Of pinball loss: as headroom leaves out a hundredth to a tenth.
QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class Season:
    # Slot that is being filled: its number since 1970, sum and count of ln(forecast) in it.
    slot: int = 0
    total: float = 0.0
    count: int = 0
    # ln(forecast) by quarter of the day; None: never seen.
    profile: tuple[float | None, ...] = ()
    # Fading sums over time: losses of the plain and of the seasonal forecast, what the season added (ln), the seconds that they
    # cover, and their time.
    plain: float = 0.0
    seasonal: float = 0.0
    lifted: float = 0.0
    compared_s: float = 0.0
    at_s: float = 0.0


def seen(season: Season, forecast: float, now: float) -> Season:
    """With this tick's forecast (replicas) in the profile. `now` in unix seconds."""
    if forecast <= 0:
        return season
    slot = int(now // SLOT_S)
    if slot == season.slot:
        return replace(season, total=season.total + math.log(forecast), count=season.count + 1)
    profile = list(season.profile or (None,) * SLOTS)
    if season.count:
        place, mean = season.slot % SLOTS, season.total / season.count
        before = profile[place]
        profile[place] = mean if before is None else before + NEW_DAY * (mean - before)
    return replace(season, slot=slot, total=math.log(forecast), count=1, profile=tuple(profile))


def lift(season: Season, lead_s: float, now: float) -> float:
    """ln of the factor by which the work of one lead later was above that of this hour on other days; 0 where that is not known."""
    here, there = _at(season, now), _at(season, now + lead_s)
    if here is None or there is None:
        return 0.0
    return min(max(there - here, 0.0), MAX_LIFT)


def compared(
    season: Season, work: float, forecast: float, *, headroom: float, lead_s: float, now: float
) -> Season:
    """With the work that came (replicas) held against the forecast of one lead ago, with and without the season, both with
    the same headroom (ln of a factor). What the season adds on average is taken from its headroom: more for all hours alike is no
    knowledge of the hour, and it would look like skill wherever headroom is short. A quarter of an hour of today is not in the profile before it is over, so a day is
    never compared with itself."""
    if work <= 0 or forecast <= 0 or not season.profile:
        return season
    residual = math.log(work / forecast) - headroom
    added = lift(season, lead_s, now - lead_s)
    usual = season.lifted / season.compared_s if season.compared_s > 0 else 0.0
    raised = residual - added + usual
    span_s = now - season.at_s if season.at_s else 0.0
    if span_s <= 0 or span_s > SLOT_S:
        return replace(season, at_s=now)
    fade = 0.5 ** (span_s / SKILL_HALF_LIFE_S)
    return replace(
        season,
        plain=season.plain * fade + _pinball(residual) * span_s,
        seasonal=season.seasonal * fade + _pinball(raised) * span_s,
        lifted=season.lifted * fade + added * span_s,
        compared_s=season.compared_s * fade + span_s,
        at_s=now,
    )


def skill(season: Season) -> float:
    """Share of the plain forecast's loss that the season spares; 0 while too little was compared."""
    if season.compared_s < LEAST_COMPARED_S or season.plain <= 0:
        return 0.0
    return 1.0 - season.seasonal / season.plain


def _pinball(residual: float) -> float:
    return residual * QUANTILE if residual >= 0 else -residual * (1.0 - QUANTILE)


def _at(season: Season, at_s: float) -> float | None:
    """The profile between the middles of its quarters."""
    if not season.profile:
        return None
    place = at_s / SLOT_S - 0.5
    low = math.floor(place)
    left, right = season.profile[low % SLOTS], season.profile[(low + 1) % SLOTS]
    if left is None or right is None:
        return None
    return left + (right - left) * (place - low)
