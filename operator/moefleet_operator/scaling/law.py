"""The work law: how many replicas the work that arrives needs. No bounds, no memory of targets, no guards: see decide.

Work is counted at arrival and in replicas: lambda/x*, where x* is what one replica carries of the present mix (moefleet_perf).
Its prompt part is due at once and is read from a short window; its decode part stays for O*T seconds and is read from a
window that long. The target rests on longer windows (a Poisson stream of 1 request/s has 18 % noise in 30 s, 9 % in 120 s)
plus headroom for what comes during a cold start, plus what already waits, or the memory that contexts hold, if that is more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from moefleet_perf import Calibration, Capacity, Mix, capacity, fit_step_model
from moefleet_perf.capacity import USABLE_KV, decode_work_s, prefill_work_s

from moefleet_operator.scaling.headroom import ROUNDING_SLACK, allowed_share, headroom
from moefleet_operator.scaling.season import LEAST_SKILL, lift, skill
from moefleet_operator.scaling.state import Drift, State
from moefleet_operator.scaling.types import Sample, Terms
from moefleet_operator.scaling.windows import Windows

# Capacity is taken at this share of the TPOT limit: the closed form speaks of means, the objective of single requests.
TPOT_SHARE = 0.85
# Short windows: prompts are due at once; 30 s is the least that holds a few requests of a small fleet.
PREFILL_WINDOW_S = 30.0
MAX_DECODE_WINDOW_S = 180.0
# Window of the forecast. What comes and goes within a cold start (tens of seconds to two minutes on production curves) cannot be
# followed, only be covered; a window of about one cold start sees the level behind it. A fleet that starts in seconds can follow a
# minute; beyond five minutes a longer window only lags.
MIN_FORECAST_WINDOW_S = 60.0
MAX_FORECAST_WINDOW_S = 300.0
# Inside it each second counts 1/e of what the one half a window later counts: the noise is that of an even mean over three quarters of
# the window, its age (a third of the window, not half) that of one over two thirds.
FORECAST_FADE = 0.5
# Demand is believed to fall by half in so many leads (an hour at 425 s), not faster. What vanishes within minutes (a client's
# outage, a deployment) comes back within minutes, and a cold start is too late then; a fleet that starts in seconds has little to
# fear. This floor has no headroom, so that it does not bind otherwise.
LEVEL_LEADS = 8.5
# ... and in an hour at most, however slow the start.
LEVEL_HALF_LIFE_S = 3600.0
# Of the level, so much is kept: the highest forecast of an hour is partly noise.
LEVEL_SHARE = 0.75
# What came in a minute is needed now, without any headroom: the noise of a minute stays below the headroom of the forecast.
SURGE_WINDOW_S = 60.0
# Mean lengths: long enough to be steady; the last minute counts at once when prompts get longer.
LENGTH_WINDOW_S = 300.0
RECENT_LENGTH_WINDOW_S = 60.0
# The last minute says something about prompt lengths only with so many requests.
RECENT_LENGTH_REQUESTS = 50.0
# What waits is to be gone in this time.
BACKLOG_DRAIN_S = 120.0
# How far ahead free capacity is counted against what waits.
BACKLOG_LOOKAHEAD_S = 60.0
# Down only when this many standard deviations of the count that the forecast rests on (1/sqrt(n) each) would still fit: at a
# constant Poisson load a need next to a whole number took and gave a replica 20 to 35 times an hour, with two of them 1 to 17 times.
DOWN_SIGMAS = 2.0
# ... and at least so much: the tolerance of Kubernetes HPA. It costs nothing at equal attainment and halves the scaling actions.
DOWN_MARGIN = 0.1
# A replica that is ready has an empty prefix cache; so long its share of the hits is not counted on.
WARM_CACHE_S = 300.0
# The step model is not believed any more when steps take so much more or less than it says for so many ticks ...
DRIFT_SHARE = 0.15
DRIFT_TICKS = 3
# ... and then so many times what was needed when it was last right is kept, when they take more.
DRIFT_FACTOR = 1.25
# A fleet that makes no steps for so long has no model to be wrong.
DRIFT_FORGOTTEN_S = 60.0
# Replicas are compared with gateways over this window: answers that take minutes are admitted at their start.
BYPASS_WINDOW_S = 120.0
BYPASS_RATIO = 1.1
# Below so many surplus requests the two counts are only read at different moments.
BYPASS_MIN_REQUESTS = 20.0
# Replicas tell every second, gateways every 5: what was admitted longer ago than two of their samples must have been sent by now.
# Without it the first seconds of every burst looked like traffic past the gateways.
BYPASS_LAG_S = 10.0

# Requests and their prompt, cached and output tokens, as gateways count them and as replicas do.
_DEMAND_COLUMNS = ("arrivals", "prompt_tokens", "cached_tokens", "output_tokens")
_SERVED_COLUMNS = ("admitted", "admitted_prompt_tokens", "admitted_cached_tokens", "made_output_tokens")


@dataclass(frozen=True, slots=True)
class Need:
    terms: Terms
    mix: Mix | None
    capacity: Capacity | None
    late: bool = False
    # What is to be remembered of the step model and of the caches.
    drift: Drift = field(default_factory=Drift)
    warm_hit: float | None = None
    # Of the window of the forecast, the seconds that anything is known of.
    covered_s: float = 0.0


def need(state: State, sample: Sample, calibration: Calibration, lead_s: float, now: float) -> Need:
    """Terms of this tick; `terms.need` is the law's answer in replicas, `terms.wanted` the same in whole ones."""
    fitted = (
        calibration
        if sample.steps is None
        else replace(
            calibration,
            step=fit_step_model(sample.steps, calibration.step, context_tokens=_attended_tokens(state)),
        )
    )
    windows = Windows(state.buckets, now)
    bypass = bypassed(windows, sample)
    measured = _mix(windows, state, bypass)
    if measured is None:
        # Nobody ever called: a known zero. (What waits without ever having arrived cannot be.)
        return Need(Terms(lead_s=lead_s), None, None)
    cold_share = min(sample.supply.cold_caches / max(sample.supply.ready, 1), 1.0)
    mix = _attended(_cold(measured, state.warm_hit, cold_share), sample.context_tokens)
    cap = capacity(fitted, mix, sample.policy.tpot_s * TPOT_SHARE)
    if cap.requests_per_s <= 0:
        return Need(Terms(lead_s=lead_s, bound=cap.bound, mean_input_tokens=mix.input_tokens), mix, cap)
    prefill_s, decode_s = prefill_work_s(fitted, mix), decode_work_s(fitted, mix)
    prefill_share = prefill_s / (prefill_s + decode_s)
    # At half of its utilisation, where the step takes twice its least: a limit on latency must not choose what is counted.
    residence_s = mix.decode_tokens * 2.0 * fitted.step.a_s
    decode_window_s = min(max(residence_s, PREFILL_WINDOW_S), MAX_DECODE_WINDOW_S)

    came = "admitted" if bypass else "arrivals"

    def rate(length_s: float) -> float:
        count = windows.total(came, length_s)
        # Time that is not covered is no time without arrivals, but a burst of half a second is no rate either.
        least_s = min(length_s, PREFILL_WINDOW_S / 2)
        return count / max(windows.total("span_s", length_s), least_s) if count > 0 else 0.0

    x = cap.requests_per_s
    arrival_rps = rate(PREFILL_WINDOW_S)
    arriving_prefill = prefill_share * arrival_rps / x
    arriving = arriving_prefill + (1 - prefill_share) * rate(decode_window_s) / x
    forecast_s = forecast_window_s(lead_s)
    forecast = windows.fading_rate(came, forecast_s, FORECAST_FADE * forecast_s, PREFILL_WINDOW_S / 2) / x
    noise = 1.0 / math.sqrt(max(windows.total(came, forecast_s), 1.0))
    kv = _kv_replicas(sample)
    waiting_s = _waiting_replica_s(sample, cap, mix, fitted)
    late_s = max(sample.queue.oldest_s, waiting_s / max(sample.supply.ready, 1))
    late = late_s > sample.policy.ttft_s / 2
    # What will pile up until a replica comes is judged by the forecast: half a minute's burst is over by then. Before requests are
    # late nothing piles up, but what is spare still works off what waits.
    coming_s = _shortfall_replica_s(sample, forecast, lead_s)
    coming_s = coming_s if late else min(coming_s, 0.0)
    backlog = min(max(waiting_s + coming_s, 0.0) / BACKLOG_DRAIN_S, 0.5 * forecast + 1.0)
    # Served counts saturate and forecasts lag; when requests already wait for half their time, the short window counts too.
    share = allowed_share(state.budget, sample.policy.attainment)
    factor = math.exp(headroom(state.surprises, share))
    season_skill = skill(state.season)
    season = math.exp(lift(state.season, lead_s, now)) if season_skill > LEAST_SKILL else 1.0
    # A surge is answered as soon as a minute of it is more than headroom was kept for: waiting for the queue costs that minute.
    surge = rate(SURGE_WINDOW_S) / x
    level = max(forecast, level_now(state, lead_s, now))
    measured_work = max(forecast * season * factor, surge, arriving if late else 0.0)
    total = max(measured_work, level * LEVEL_SHARE, kv) + backlog
    drift = drifted(state.drift, sample.step_time_ratio, total, now)
    off = drift.ticks >= DRIFT_TICKS
    if off and (sample.step_time_ratio or 0.0) > 1.0:
        # What the model says is not known to be enough; what was enough when it was right is.
        total = max(total, drift.good * DRIFT_FACTOR)
    # The noise is that of what was counted just now; the level rests on an earlier count. Where nothing arrives any more a margin of
    # two standard deviations of "none" on top of the level kept three times as many as the level itself asks for.
    enough = max(total * (1.0 + DOWN_MARGIN), measured_work * (1.0 + DOWN_SIGMAS * noise) + backlog)
    return Need(
        Terms(
            arriving=arriving,
            arriving_prefill=arriving_prefill,
            forecast=forecast,
            level=level,
            season_ratio=season - 1.0,
            season_skill=season_skill,
            headroom_ratio=factor - 1.0,
            allowed_share=share,
            budget_balance=state.budget.balance,
            backlog=backlog,
            kv=kv,
            need=total,
            capacity_rps=x,
            capacity_input_tok_s=cap.input_tokens_per_s,
            capacity_output_tok_s=cap.output_tokens_per_s,
            bound=cap.bound,
            arrival_rps=arrival_rps,
            mean_input_tokens=mix.input_tokens,
            mean_output_tokens=mix.output_tokens,
            wanted=max(0, math.ceil(total - ROUNDING_SLACK)),
            enough=max(0, math.ceil(enough - ROUNDING_SLACK)),
            lead_s=lead_s,
            bypass=int(bypass),
            cold_cache_share=cold_share if mix.cached_tokens < measured.cached_tokens else 0.0,
            step_time_ratio=(sample.step_time_ratio or 0.0) if off else 0.0,
        ),
        mix,
        cap,
        late,
        drift,
        measured.cached_tokens / measured.input_tokens
        if cold_share == 0.0 and measured.input_tokens > 0
        else state.warm_hit,
        windows.total("span_s", forecast_s),
    )


def forecast_window_s(lead_s: float) -> float:
    """One lead (cold start and tick), within bounds."""
    return min(max(lead_s, MIN_FORECAST_WINDOW_S), MAX_FORECAST_WINDOW_S)


def level_now(state: State, lead_s: float, now: float) -> float:
    """Replicas that the highest forecast of late still stands for."""
    level, at_s = state.level
    return level * math.exp2(-max(now - at_s, 0.0) / min(LEVEL_HALF_LIFE_S, LEVEL_LEADS * lead_s))


def drifted(before: Drift, ratio: float | None, needed: float, now: float) -> Drift:
    """`ratio`: measured over predicted time of this tick's steps; `needed`: what the law asks for, in replicas."""
    if ratio is None:
        # A tick without steps says nothing; many of them end it.
        return before if now - before.at_s <= DRIFT_FORGOTTEN_S else Drift(good=before.good)
    if abs(ratio - 1.0) <= DRIFT_SHARE:
        return Drift(good=needed)
    # What the first wrong ticks asked for is not what was good.
    return Drift(before.ticks + 1, now, before.good or needed)


def bypassed(windows: Windows, sample: Sample) -> bool:
    """Replicas admitted clearly more than gateways sent: somebody calls them without a gateway."""
    if sample.silent_gateways or sample.served is None:
        return False
    sent = windows.total("sent", BYPASS_WINDOW_S)
    admitted = windows.total("admitted", BYPASS_WINDOW_S) - windows.total("admitted", BYPASS_LAG_S)
    return admitted > sent * BYPASS_RATIO and admitted - sent >= BYPASS_MIN_REQUESTS


def _mix(windows: Windows, state: State, bypass: bool) -> Mix | None:
    mean = _means(windows, LENGTH_WINDOW_S, bypass)
    if mean is None:
        return None if state.mix is None else Mix(state.mix[0], state.mix[2], state.mix[1])
    prompt, cached, output = mean
    requests = windows.total("admitted" if bypass else "arrivals", RECENT_LENGTH_WINDOW_S)
    if (
        requests >= RECENT_LENGTH_REQUESTS
        and (latest := _means(windows, RECENT_LENGTH_WINDOW_S, bypass)) is not None
        and latest[0] > prompt
    ):
        prompt, cached = latest[0], latest[1]
    return Mix(input_tokens=prompt, output_tokens=output, cached_tokens=cached)


def _cold(measured: Mix, warm_hit: float | None, cold_share: float) -> Mix:
    """New replicas have no prefixes yet. Gateways see what they miss, but only as late as the answers end: the lesser hit counts."""
    if cold_share <= 0.0 or warm_hit is None:
        return measured
    counted = warm_hit * (1.0 - cold_share) * measured.input_tokens
    return replace(measured, cached_tokens=min(measured.cached_tokens, counted))


def _attended(mix: Mix, context_tokens: float | None) -> Mix:
    """Long answers are the ones that run: where lengths vary much, the mean context is a multiple of what mean lengths say (two for
    reasoning), and capacity by the means is a fifth too high. Measured contexts lag behind a mix that grows, so they only add."""
    if context_tokens is None or context_tokens <= mix.decode_context_tokens:
        return mix
    return replace(mix, context_tokens=context_tokens)


def _attended_tokens(state: State) -> float:
    """Mean context that a prompt token attends to, as `prefill_work_s` counts it."""
    if state.mix is None:
        return 0.0
    prompt, cached, _ = state.mix
    return cached + (prompt - cached) / 2


def _means(windows: Windows, length_s: float, bypass: bool) -> tuple[float, float, float] | None:
    count, prompt, cached, output = (
        windows.total(name, length_s) for name in (_SERVED_COLUMNS if bypass else _DEMAND_COLUMNS)
    )
    return (prompt / count, min(cached, prompt) / count, output / count) if count > 0 else None


def _kv_replicas(sample: Sample) -> float:
    load = sample.load
    if load.replicas == 0 or load.kv_max_tokens == 0:
        return 0.0
    return load.kv_used_tokens / (USABLE_KV * load.kv_max_tokens / load.replicas)


def _waiting_replica_s(sample: Sample, cap: Capacity, mix: Mix, calibration: Calibration) -> float:
    """Whole requests that wait (in gateways and in front of engines), and what replicas still have to read of those that run."""
    requests = sample.queue.requests + sample.load.queued
    unread_tokens = max(sample.load.outstanding_prefill_tokens - sample.load.queued * mix.prefill_tokens, 0.0)
    return requests * cap.replica_s_per_request + unread_tokens * calibration.step.b_s


def _shortfall_replica_s(sample: Sample, arriving: float, lead_s: float) -> float:
    """Work that arrives in the next minute (or cold start) less what can be done of it until then; negative: spare time."""
    ahead_s = min(lead_s, BACKLOG_LOOKAHEAD_S)
    supply = sample.supply
    # A pending replica helps from when it will be ready. One without a node counts as if it had one: more of them would
    # only wait beside it.
    helps_s = sum(max(ahead_s - max(lead_s - age_s, 0.0), 0.0) for age_s in supply.pending_ages_s)
    return arriving * ahead_s - (supply.ready + supply.unschedulable) * ahead_s - helps_s
