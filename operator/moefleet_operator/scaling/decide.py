"""From need to target: guards, hold, caps and bounds, and the sentence that says why.

In this order: what is not known never lowers the target; up is at once, but not more than doubles what is ready (or +8); down
only to the most that was wanted during the hold, a fifth at a time, one step a hold; minReplicas and maxReplicas bind last.
Pending replicas are supply because the target is absolute: what is on its way is part of it. Those that should long be ready
are not, and others take their place.
"""

from __future__ import annotations

import math
from dataclasses import replace

from moefleet_operator.scaling.law import HEADROOM_RATIO, Need, need
from moefleet_operator.scaling.state import State, observed, wished
from moefleet_operator.scaling.types import Decision, Reason, Sample, Supply, Terms

# Before any cold start was measured: the median of 8-GPU replicas.
DEFAULT_COLD_START_S = 240.0
# Going down earlier than this share of a cold start costs more in new starts than it saves (ski rental).
HOLD_SHARE = 0.75
MIN_HOLD_S = 30.0
# How often decide runs: part of the time between a need and its replica.
TICK_S = 5.0
# Up: at most this many times what is ready, or so many more at once, pending ones included.
UP_FACTOR = 2.0
UP_STEP = 8
# Down: this share of the target per hold, at least one.
DOWN_SHARE = 0.2
# A replica that is not ready after this many slowest-known cold starts will not be; at least so many seconds.
DEAD_FACTOR = 1.5
MIN_DEAD_AFTER_S = 120.0
# Below so many measured cold starts the slowest one says little, and the default is kept as a floor.
TRUSTED_COLD_STARTS = 3
# Replacements at most for replicas that do not start: what keeps them from starting may keep the next ones too.
MAX_REPLACEMENTS = 2


def decide(state: State | None, sample: Sample, now: float) -> Decision:
    """The target of one fleet. `now` in unix seconds; `state` as the decision before returned it, None at first."""
    state = replace(state or State(), since_s=state.since_s if state and state.since_s else now)
    state = _called(observed(state, sample, now), sample, now)
    supply, policy = sample.supply, sample.policy
    hold_s = max(MIN_HOLD_S, HOLD_SHARE * cold_start_quantile_s(supply, 0.9))
    lead_s = cold_start_quantile_s(supply, 0.9) + TICK_S

    if policy.calibration is None:
        return _kept(
            state,
            sample,
            Terms(lead_s=lead_s, hold_s=hold_s),
            Reason.NO_CALIBRATION,
            "nobody knows what one replica carries",
        )
    if sample.demand is None:
        unknown = (
            f"{sample.silent_gateways} gateways are silent"
            if sample.silent_gateways
            else "no gateway has reported yet"
        )
        return _kept(state, sample, Terms(lead_s=lead_s, hold_s=hold_s), Reason.DEMAND_UNKNOWN, unknown)

    found = need(state, sample, policy.calibration, lead_s, now)
    if found.mix is not None:
        state = replace(state, mix=(found.mix.input_tokens, found.mix.cached_tokens, found.mix.output_tokens))
    if found.capacity is not None and found.capacity.requests_per_s <= 0:
        slow = (
            f"an empty step takes {policy.calibration.step.a_s * 1e3:.0f} ms, the limit is {policy.tpot_s * 1e3:.0f} ms"
            " per output token; no number of replicas meets it"
        )
        return _kept(state, sample, replace(found.terms, hold_s=hold_s), Reason.OBJECTIVE_UNREACHABLE, slow)
    return _targeted(state, sample, found, hold_s, now)


def cold_start_quantile_s(supply: Supply, share: float) -> float:
    """Of the measured cold starts, the nearest rank above; the default before there are any."""
    measured = sorted(supply.cold_starts_s)
    return measured[math.ceil(share * len(measured)) - 1] if measured else DEFAULT_COLD_START_S


def dead_after_s(supply: Supply) -> float:
    slowest = cold_start_quantile_s(supply, 0.99)
    if len(supply.cold_starts_s) < TRUSTED_COLD_STARTS:
        slowest = max(slowest, DEFAULT_COLD_START_S)
    return max(MIN_DEAD_AFTER_S, DEAD_FACTOR * slowest)


def _targeted(state: State, sample: Sample, found: Need, hold_s: float, now: float) -> Decision:
    supply, policy = sample.supply, sample.policy
    asleep_allowed = _may_sleep(state, sample, now)
    low = 0 if asleep_allowed else policy.min_replicas
    limit_s = dead_after_s(supply)
    dead = min(sum(age > limit_s for age in supply.pending_ages_s), MAX_REPLACEMENTS)

    wanted = found.terms.wanted
    if wanted == 0 and not asleep_allowed and _anybody_there(sample):
        wanted = 1
    # Replacements only as far as the living do not suffice.
    alive = supply.ready + len(supply.pending_ages_s) + supply.unschedulable - dead
    dead = dead if alive < max(wanted, low) else 0
    asked = max(wanted, low) + dead

    if not state.wishes:
        # A first tick knows nothing of the hold that it is in: the present target was wanted until now.
        state = wished(state, now, supply.target, hold_s)
    state = wished(state, now, max(wanted, low), hold_s)
    held = max(w.replicas for w in state.wishes)
    terms = replace(found.terms, wanted=wanted, held=held, dead=dead, hold_s=hold_s)

    if asked > supply.target:
        return _up(state, sample, terms, asked, now)
    if asked < supply.target:
        return _down(state, sample, terms, held + dead, hold_s, now)
    return _result(state, sample, terms, supply.target, _standing(sample, terms, low), "")


def _up(state: State, sample: Sample, terms: Terms, asked: int, now: float) -> Decision:
    supply, policy = sample.supply, sample.policy
    cap = max(math.floor(supply.ready * UP_FACTOR), supply.ready + UP_STEP)
    target = max(min(asked, cap, policy.max_replicas), min(supply.target, policy.max_replicas))
    if asked > policy.max_replicas and target == policy.max_replicas:
        return _result(
            state,
            sample,
            terms,
            target,
            Reason.SCALING_LIMITED,
            f"{asked} are needed, maxReplicas is {policy.max_replicas}",
        )
    if target < asked:
        return _result(
            state,
            sample,
            terms,
            target,
            Reason.STEP_LIMITED,
            f"{asked} are needed, {supply.ready} are ready, at most {cap} at once",
        )
    return _result(state, sample, terms, target, _why_up(sample, terms), "")


def _down(state: State, sample: Sample, terms: Terms, floor: int, hold_s: float, now: float) -> Decision:
    supply, policy = sample.supply, sample.policy
    if policy.max_replicas < supply.target:
        # maxReplicas was lowered: no hold protects what is above it.
        return _result(
            state,
            sample,
            terms,
            policy.max_replicas,
            Reason.SCALING_LIMITED,
            f"maxReplicas is {policy.max_replicas}",
        )
    if sample.silent_gateways:
        return _kept(
            state, sample, terms, Reason.DEMAND_UNKNOWN, f"{sample.silent_gateways} gateways are silent"
        )
    if sample.silent_replicas:
        return _kept(
            state,
            sample,
            terms,
            Reason.LOAD_UNKNOWN,
            f"{sample.silent_replicas} of {supply.ready} ready replicas are silent",
        )
    if now - state.since_s < cold_start_quantile_s(supply, 0.9):
        left_s = cold_start_quantile_s(supply, 0.9) - (now - state.since_s)
        return _kept(
            state,
            sample,
            terms,
            Reason.RESTARTED,
            f"no memory of demand yet, nothing goes down for another {left_s:.0f} s",
            certain=True,
        )
    idle = floor == 0
    since_down_s = now - state.last_down_s
    if floor >= supply.target or since_down_s < hold_s:
        least_s = max(
            (w.at_s + hold_s - now for w in state.wishes if w.replicas + terms.dead >= supply.target),
            default=hold_s - since_down_s,
        )
        return _kept(
            state,
            sample,
            terms,
            Reason.HOLDING,
            f"{terms.wanted} would do, held for another {least_s:.0f} s",
            certain=True,
        )
    target = max(floor, 0 if idle else supply.target - max(1, math.floor(DOWN_SHARE * supply.target)))
    state = replace(state, last_down_s=now)
    return _result(state, sample, terms, target, Reason.IDLE if idle else Reason.WORK_FELL, "")


def _why_up(sample: Sample, terms: Terms) -> Reason:
    if sample.supply.target == 0:
        return Reason.WAKING
    if terms.dead and terms.wanted <= sample.supply.target:
        return Reason.STARTS_FAILED
    if terms.bypass:
        return Reason.BYPASS_TRAFFIC
    work = terms.forecast * (1 + HEADROOM_RATIO)
    if terms.kv > work and terms.kv > terms.backlog:
        return Reason.KV_CACHE
    return Reason.WORK_ARRIVES if terms.need - terms.backlog >= terms.backlog else Reason.BACKLOG


def _standing(sample: Sample, terms: Terms, low: int) -> Reason:
    if terms.bypass:
        return Reason.BYPASS_TRAFFIC
    return Reason.AT_MINIMUM if terms.wanted < low else Reason.STEADY


def _anybody_there(sample: Sample) -> bool:
    return bool(sample.queue.requests or sample.load.active or sample.load.queued)


def _called(state: State, sample: Sample, now: float) -> State:
    latest = state.buckets[-1] if state.buckets else None
    arrived = latest is not None and latest.end_s == now and latest.arrivals + latest.admitted > 0
    if arrived or _anybody_there(sample) or not state.last_call_s:
        return replace(state, last_call_s=now)
    return state


def _may_sleep(state: State, sample: Sample, now: float) -> bool:
    after_s = sample.policy.scale_to_zero_after_s
    known = not (sample.silent_gateways or sample.silent_replicas)
    return after_s is not None and known and now - state.last_call_s >= after_s


def _kept(
    state: State, sample: Sample, terms: Terms, reason: Reason, why: str, *, certain: bool = False
) -> Decision:
    """The present target inside the bounds: not knowing is no licence to leave them."""
    policy = sample.policy
    target = sample.supply.target
    # A sleeping fleet stays asleep.
    low = 0 if target == 0 and policy.scale_to_zero_after_s is not None else policy.min_replicas
    return _result(
        state, sample, terms, min(max(target, low), policy.max_replicas), reason, why, certain=certain
    )


def _result(
    state: State,
    sample: Sample,
    terms: Terms,
    replicas: int,
    reason: Reason,
    why: str,
    *,
    certain: bool = True,
) -> Decision:
    return Decision(replicas, reason, sentence(sample, terms, replicas, why), terms, state, certain)


def sentence(sample: Sample, terms: Terms, replicas: int, why: str) -> str:
    """`3 replicas: 2.31 of work arrives (prefill 1.90, decode 0.41), each carries 7.2 requests/s (limit TPOT), headroom 25 %`."""
    said = [f"{replicas} {'replica' if replicas == 1 else 'replicas'}"]
    if why:
        said.append(f" ({why})")
    said.append(": ")
    if terms.capacity_rps <= 0:
        said.append("work unknown" if sample.demand is None else "nothing arrives")
        return "".join(said)
    if terms.forecast == 0 and terms.arriving == 0:
        said.append("nothing arrives")
    else:
        decode = terms.arriving - terms.arriving_prefill
        said.append(
            f"{terms.arriving:.2f} of work arrives (prefill {terms.arriving_prefill:.2f}, decode {decode:.2f})"
        )
        said.append(f", forecast {terms.forecast:.2f}")
    said.append(f", each carries {terms.capacity_rps:.3g} requests/s (limit {terms.bound})")
    said.append(f", headroom {terms.headroom_ratio:.0%}".replace("%", " %"))
    if terms.backlog > 0:
        said.append(f", backlog {terms.backlog:.2f}")
    if terms.kv > 0:
        said.append(f", KV caches fill {terms.kv:.2f}")
    if terms.dead:
        said.append(f", {terms.dead} failed to start")
    if terms.bypass:
        said.append(", counted at the replicas because they got more than the gateways sent")
    return "".join(said)
