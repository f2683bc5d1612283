"""What the law remembers between ticks: at most 4 KiB of JSON a fleet, so that one ConfigMap can carry it.

Demand is kept as buckets of what arrived in them, 5 s wide for a minute and then 30 s: the windows of the law need no more.
Wishes are the targets of the hold, thinned to those that can still be the highest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from moefleet_operator.scaling.headroom import BINS, Budget, Surprises
from moefleet_operator.scaling.season import SLOTS, Season
from moefleet_operator.scaling.types import Attained, DemandPoint, DemandTotals, Sample, ServedTotals

STATE_VERSION = 2
# Hard limit of the JSON; the ConfigMap of a fleet has room for more, but 1,000 fleets share one etcd.
STATE_MAX_BYTES = 4096
# Buckets younger than this stay as they came (the 30 s window needs them fine).
FINE_S = 60.0
COARSE_BUCKET_S = 30.0
# The longest window of the law is the 300 s mean of prompt lengths.
HISTORY_S = 330.0
# Buckets at most: 12 fine, 9 coarse, and some for ticks that came early.
MAX_BUCKETS = 32
# Different targets in one hold; beyond it the lowest are merged upwards, which only holds longer.
MAX_WISHES = 32
# Of one start after another that had just been taken down, so many times are kept: more than the budget for an hour.
MAX_FLAPS = 16
# A gateway is called silent when it has said nothing for so long; what it took in that time is missing already.
SILENCE_S = 15.0
# Counts of a longer time than this are a mean, not what happened in it: ticks come every 5 s, and buckets are 30 s at most.
GAP_S = 45.0
# Times that came through JSON have a tenth of a second.
CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Bucket:
    """What arrived and what replicas admitted in the `span_s` seconds before `end_s`."""

    end_s: float
    span_s: float
    arrivals: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    output_tokens: float = 0.0
    # Left the gateways for a replica: arrivals + retries - shed - growth of the queue.
    sent: float = 0.0
    admitted: float = 0.0
    admitted_prompt_tokens: float = 0.0
    admitted_cached_tokens: float = 0.0
    made_output_tokens: float = 0.0

    def merged(self, later: Bucket) -> Bucket:
        return Bucket(
            later.end_s,
            self.span_s + later.span_s,
            *(a + b for a, b in zip(_counts(self), _counts(later), strict=True)),
        )


_COUNTS = tuple(f.name for f in fields(Bucket))[2:]
# astuple would copy every number; this is read some hundred times a tick.
_counts: Callable[[Bucket], tuple[float, ...]] = attrgetter(*_COUNTS)


@dataclass(frozen=True, slots=True)
class Wish:
    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Sight:
    """The totals before something became silent: what came since then is known when it speaks again, but not when it came."""

    at_s: float
    demand: DemandTotals
    served: ServedTotals | None = None
    queue_requests: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """How long the step model has been wrong."""

    # Ticks in a row, and the newest of them.
    ticks: int = 0
    at_s: float = 0.0
    # Replicas that were needed when it was last right.
    good: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    # When this memory began; 0: with the first tick. Younger than a cold start and without replay, nothing goes down.
    since_s: float = 0.0
    # The target that this memory found when it began without one; 0: the fleet began with it.
    found_target: int = 0
    last_s: float = 0.0
    last_demand: DemandTotals | None = None
    last_served: ServedTotals | None = None
    last_queue_requests: int = 0
    # Oldest first.
    buckets: tuple[Bucket, ...] = ()
    # Oldest first, strictly falling.
    wishes: tuple[Wish, ...] = ()
    last_down_s: float = 0.0
    # Last time that something arrived, waited or ran; for sleeping.
    last_call_s: float = 0.0
    # When the target last left zero; 0: not since this memory began.
    woke_s: float = 0.0
    # Mean request when last there was one: prompt, cached and output tokens.
    mix: tuple[float, float, float] | None = None
    # Highest forecast of late in replicas, and when it was that; it fades (law).
    level: tuple[float, float] = (0.0, 0.0)
    surprises: Surprises = field(default_factory=Surprises)
    budget: Budget = field(default_factory=Budget)
    last_attained: Attained | None = None
    # None: all gateways speak.
    sight: Sight | None = None
    # End of the last gap in what is known; 0: there was none.
    gap_end_s: float = 0.0
    # Of the prompt, what caches had when no replica was new; None: not known yet.
    warm_hit: float | None = None
    drift: Drift = field(default_factory=Drift)
    # When replicas were started soon after one was taken down, oldest first.
    flaps: tuple[float, ...] = ()
    season: Season = field(default_factory=Season)

    def to_json(self) -> str:
        data = {
            "v": STATE_VERSION,
            "since": round(self.since_s, 1),
            "found": self.found_target,
            "last": round(self.last_s, 1),
            "demand": None if self.last_demand is None else [_short(x) for x in astuple(self.last_demand)],
            "served": None if self.last_served is None else [_short(x) for x in astuple(self.last_served)],
            "queue": self.last_queue_requests,
            # Ends are kept as ages: a third of the digits.
            "buckets": [
                [_short(self.last_s - b.end_s), _short(b.span_s), *map(_short, _counts(b))]
                for b in self.buckets
            ],
            "wishes": [[_short(self.last_s - w.at_s), w.replicas] for w in self.wishes],
            "down": round(self.last_down_s, 1),
            "call": round(self.last_call_s, 1),
            "woke": round(self.woke_s, 1),
            "mix": None if self.mix is None else [_short(x) for x in self.mix],
            "level": [_short(self.level[0]), round(self.level[1], 1)],
            "surprises": {
                "at": round(self.surprises.at_s, 1),
                # Whole hundredths of a sample: what is less has no say.
                "weights": [round(w * 100) for w in self.surprises.weights],
                "forecasts": [
                    [round(self.last_s - at, 1), _short(f, 4)] for at, f in self.surprises.forecasts
                ],
            },
            "budget": [
                round(self.budget.at_s, 1),
                *(_short(x) for x in (self.budget.balance, self.budget.requests, self.budget.seconds)),
            ],
            "attained": None
            if self.last_attained is None
            else [_short(x) for x in astuple(self.last_attained)],
            "sight": None if self.sight is None else _sight_json(self.sight),
            "gap": round(self.gap_end_s, 1),
            "warm": None if self.warm_hit is None else _short(self.warm_hit, 4),
            "drift": [self.drift.ticks, round(self.drift.at_s, 1), _short(self.drift.good)],
            "flaps": [round(at_s, 1) for at_s in self.flaps],
            "season": _season_json(self.season),
        }
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> State | None:
        """None when the text is not a state of this version: an old memory is no memory, and no reason to stop."""
        try:
            data: Any = json.loads(text)
            if data["v"] != STATE_VERSION:
                return None
            last = float(data["last"])
            return State(
                since_s=float(data["since"]),
                found_target=int(data["found"]),
                last_s=last,
                last_demand=None if data["demand"] is None else DemandTotals(*map(float, data["demand"])),
                last_served=None if data["served"] is None else ServedTotals(*map(float, data["served"])),
                last_queue_requests=int(data["queue"]),
                buckets=tuple(Bucket(last - float(age), *map(float, rest)) for age, *rest in data["buckets"]),
                wishes=tuple(Wish(last - float(age), int(n)) for age, n in data["wishes"]),
                last_down_s=float(data["down"]),
                last_call_s=float(data["call"]),
                # Absent in what an older release kept.
                woke_s=float(data.get("woke", 0.0)),
                mix=None if data["mix"] is None else tuple(map(float, data["mix"])),  # type: ignore[arg-type]
                level=(float(data["level"][0]), float(data["level"][1])),
                surprises=_surprises(data["surprises"], last),
                budget=Budget(*map(float, data["budget"])),
                last_attained=None if data["attained"] is None else Attained(*map(float, data["attained"])),
                sight=_sight(data.get("sight")),
                gap_end_s=float(data.get("gap", 0.0)),
                warm_hit=None if data.get("warm") is None else float(data["warm"]),
                drift=_drift(*data.get("drift", (0, 0.0, 0.0))),
                flaps=tuple(map(float, data.get("flaps", ()))),
                season=_season(data.get("season")),
            )
        except (ValueError, TypeError, KeyError):
            return None


def shifted(state: State, by_s: float) -> State:
    """The same memory after the clock was set: every time in it moves along, so that nothing looks older or newer than it
    is. Times that are 0 mean "never" and stay."""

    def moved(at_s: float) -> float:
        return at_s + by_s if at_s else 0.0

    return replace(
        state,
        since_s=moved(state.since_s),
        last_s=moved(state.last_s),
        buckets=tuple(replace(b, end_s=b.end_s + by_s) for b in state.buckets),
        wishes=tuple(replace(w, at_s=w.at_s + by_s) for w in state.wishes),
        last_down_s=moved(state.last_down_s),
        last_call_s=moved(state.last_call_s),
        woke_s=moved(state.woke_s),
        level=(state.level[0], moved(state.level[1])),
        surprises=replace(
            state.surprises,
            at_s=moved(state.surprises.at_s),
            forecasts=tuple((at + by_s, f) for at, f in state.surprises.forecasts),
        ),
        budget=replace(state.budget, at_s=moved(state.budget.at_s)),
        sight=state.sight and replace(state.sight, at_s=state.sight.at_s + by_s),
        gap_end_s=moved(state.gap_end_s),
        drift=replace(state.drift, at_s=moved(state.drift.at_s)),
        flaps=tuple(map(moved, state.flaps)),
        season=replace(state.season, at_s=moved(state.season.at_s)),
    )


def observed(state: State, sample: Sample, now: float) -> State:
    """The state with this tick's counts in it. Unknown demand leaves a gap that the next known total fills evenly.

    While a gateway is silent its share is missing; when it speaks again, all that came since is spread over that time: as the
    count of one tick it would be a surge that never was (14 replicas were asked for where 4.2 were needed)."""
    if sample.demand is None:
        return state
    if sample.silent_gateways:
        state = state if state.sight is not None else replace(state, sight=_last_sight(state))
    elif state.sight is not None:
        seen = state.sight
        state = replace(
            state,
            last_s=seen.at_s,
            last_demand=seen.demand,
            last_served=seen.served,
            last_queue_requests=seen.queue_requests,
            buckets=tuple(b for b in state.buckets if b.end_s <= seen.at_s + CLOSE_S),
            sight=None,
        )
    return _appended(state, DemandPoint(now, sample.demand, sample.queue.requests, sample.served))


def _last_sight(state: State) -> Sight | None:
    """Totals as they were before a gateway that is called silent now said its last word."""
    if state.last_demand is None:
        return None
    since = [b for b in state.buckets if b.end_s > state.last_s - SILENCE_S]
    lost = since[0] if since else Bucket(state.last_s, 0.0)
    for bucket in since[1:]:
        lost = lost.merged(bucket)
    d, s = state.last_demand, state.last_served
    demand = replace(
        d,
        arrivals=d.arrivals - lost.arrivals,
        prompt_tokens=d.prompt_tokens - lost.prompt_tokens,
        cached_tokens=d.cached_tokens - lost.cached_tokens,
        output_tokens=d.output_tokens - lost.output_tokens,
    )
    served = s and ServedTotals(
        s.admitted - lost.admitted,
        s.prompt_tokens - lost.admitted_prompt_tokens,
        s.cached_tokens - lost.admitted_cached_tokens,
        s.output_tokens - lost.made_output_tokens,
    )
    return Sight(state.last_s - lost.span_s, demand, served, state.last_queue_requests)


def remember(history: Iterable[DemandPoint], now: float) -> State:
    """A first state from what gateways replayed after a restart; without history this is the empty state.

    Totals of a history and of samples begin at different times (a standby has listened for hours), so only the differences
    inside the history are kept, and the first sample counts from itself."""
    points = sorted((p for p in history if p.at_s <= now), key=lambda p: p.at_s)
    state = State(since_s=points[0].at_s if points else 0.0)
    for point in points:
        state = _appended(state, point)
    return replace(state, last_demand=None, last_served=None)


def resumed(replayed: State, kept: State | None, now: float) -> State:
    """After a restart: what was learnt from the kept state, the demand from what gateways replayed, or the other way round.

    Totals begin anew with the process, so differences across the restart are not known."""
    if kept is None:
        return replayed
    # Without a replay, buckets that still reach into the windows are a history as well.
    recent = not replayed.buckets and now - kept.last_s < HISTORY_S
    history = kept if recent else replayed
    return replace(
        kept,
        since_s=history.since_s,
        last_s=history.last_s,
        last_demand=None,
        last_served=None,
        last_queue_requests=0,
        last_attained=None,
        sight=None,
        buckets=history.buckets,
        wishes=kept.wishes if now - kept.last_s < HISTORY_S else (),
        last_call_s=max(kept.last_call_s, replayed.last_call_s),
        mix=replayed.mix or kept.mix,
    )


def wished(state: State, now: float, replicas: int, hold_s: float) -> State:
    """Adds a target; drops those older than the hold and those that can never be the highest again."""
    kept = [w for w in state.wishes if w.at_s > now - hold_s and w.replicas > replicas]
    kept.append(Wish(now, replicas))
    while len(kept) > MAX_WISHES:
        # Pretend that the second lowest was wished for as late as the lowest: holds longer, never shorter.
        kept[-2:] = [Wish(kept[-1].at_s, kept[-2].replicas)]
    return replace(state, wishes=tuple(kept))


def _appended(state: State, point: DemandPoint) -> State:
    now = point.at_s
    span_s = now - state.last_s
    known: dict[str, Any] = {
        "last_s": now,
        "last_demand": point.demand,
        "last_served": point.served if point.served is not None else state.last_served,
        "last_queue_requests": point.queue_requests,
    }
    if state.last_demand is None or span_s <= 0:
        return replace(state, **known)
    d, d0 = point.demand, state.last_demand
    s, s0 = point.served, state.last_served
    if s is None or s0 is None:
        s = s0 = ServedTotals()
    arrivals = max(d.arrivals - d0.arrivals, 0.0)
    # Of a gap that is longer than what is remembered, its end: the counts are its mean either way.
    share = min(1.0, HISTORY_S / span_s)
    came = arrivals + max(d.retries - d0.retries, 0.0) - max(d.shed - d0.shed, 0.0)
    counts = (
        arrivals,
        max(d.prompt_tokens - d0.prompt_tokens, 0.0),
        max(d.cached_tokens - d0.cached_tokens, 0.0),
        max(d.output_tokens - d0.output_tokens, 0.0),
        max(came - (point.queue_requests - state.last_queue_requests), 0.0),
        max(s.admitted - s0.admitted, 0.0),
        max(s.prompt_tokens - s0.prompt_tokens, 0.0),
        max(s.cached_tokens - s0.cached_tokens, 0.0),
        max(s.output_tokens - s0.output_tokens, 0.0),
    )
    bucket = Bucket(now, span_s * share, *(count * share for count in counts))
    if span_s > GAP_S:
        # Forecasts from before it are not compared with a mean.
        known |= {"gap_end_s": now, "surprises": replace(state.surprises, forecasts=())}
    edge_s = state.sight.at_s + CLOSE_S if state.sight else 0.0
    return replace(state, buckets=_thinned((*state.buckets, bucket), now, edge_s), **known)


def _thinned(buckets: Iterable[Bucket], now: float, edge_s: float) -> tuple[Bucket, ...]:
    """`edge_s`: what is before it may come to be all that is kept, so no bucket goes across."""
    out: list[Bucket] = []
    for bucket in buckets:
        if bucket.end_s <= now - HISTORY_S:
            continue
        coarse = bucket.end_s <= now - FINE_S
        across = bool(out) and out[-1].end_s <= edge_s < bucket.end_s
        if coarse and out and not across and out[-1].span_s + bucket.span_s <= COARSE_BUCKET_S:
            out[-1] = out[-1].merged(bucket)
        else:
            out.append(bucket)
    while len(out) > MAX_BUCKETS:
        out[:2] = [out[0].merged(out[1])]
    return tuple(out)


def _sight_json(sight: Sight) -> list[Any]:
    served = None if sight.served is None else [_short(x) for x in astuple(sight.served)]
    return [
        round(sight.at_s, 1),
        [_short(x) for x in astuple(sight.demand)],
        served,
        sight.queue_requests,
    ]


def _sight(data: Any) -> Sight | None:
    if data is None:
        return None
    at_s, demand, served, queue = data
    return Sight(
        float(at_s),
        DemandTotals(*map(float, demand)),
        None if served is None else ServedTotals(*map(float, served)),
        int(queue),
    )


def _season_json(season: Season) -> list[Any]:
    # A thousandth of a logarithm is a tenth of a percent.
    profile = [None if x is None else _short(round(x, 3)) for x in season.profile]
    sums = (season.plain, season.seasonal, season.lifted, season.compared_s)
    return [
        season.slot,
        _short(season.total),
        season.count,
        profile,
        *map(_short, sums),
        round(season.at_s, 1),
    ]


def _season(data: Any) -> Season:
    if data is None:
        return Season()
    slot, total, count, profile, *sums, at_s = data
    if len(profile) not in (0, SLOTS):
        raise ValueError(f"season.profile: wanted {SLOTS}, found {len(profile)}")
    known = tuple(None if x is None else float(x) for x in profile)
    plain, seasonal, lifted, compared_s = map(float, sums)
    return Season(
        int(slot), float(total), int(count), known, plain, seasonal, lifted, compared_s, float(at_s)
    )


def _drift(ticks: Any, at_s: Any, good: Any) -> Drift:
    return Drift(int(ticks), float(at_s), float(good))


def _surprises(data: Any, last: float) -> Surprises:
    weights = tuple(float(w) / 100 for w in data["weights"])
    if len(weights) not in (0, BINS):
        raise ValueError(f"surprises.weights: wanted {BINS}, found {len(weights)}")
    return Surprises(
        float(data["at"]), weights, tuple((last - float(age), float(f)) for age, f in data["forecasts"])
    )


def _short(number: float, digits: int = 7) -> float | int:
    """Seven digits for what is a rate in the end; whole numbers as they are."""
    return int(number) if float(number).is_integer() else float(f"{number:.{digits}g}")
