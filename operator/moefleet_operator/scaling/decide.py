"""From need to target: guards, hold, caps and bounds, and the sentence that says why.

In this order: what is not known never lowers the target; up is at once, but not more than doubles what is ready (or +8); down
only to the most that was wanted during the hold, a fifth at a time, one step a hold; minReplicas and maxReplicas bind last.
Pending replicas are supply because the target is absolute: what is on its way is part of it. Those that should long be ready
are not, and others take their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from moefleet_operator.scaling.asleep import called, may_sleep, woken
from moefleet_operator.scaling.headroom import due, settled
from moefleet_operator.scaling.headroom import observed as surprised
from moefleet_operator.scaling.law import MAX_DECODE_WINDOW_S, TPOT_SHARE, Need, forecast_window_s, need
from moefleet_operator.scaling.season import compared, seen
from moefleet_operator.scaling.state import MAX_FLAPS, State, observed, wished
from moefleet_operator.scaling.types import Decision, Policy, Reason, Sample, Supply, Terms

# Before any cold start was measured: the median of 8-GPU replicas.
DEFAULT_COLD_START_S = 240.0
# Going down earlier than about this share of a cold start costs more in new starts than it saves (ski rental); what is only noise is
# kept from moving anything by the margin, so the lower half of what is level does.
HOLD_SHARE = 0.6
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
# A start within one lead of a scale-down is a flap: the replica that was taken down would have been there. Each costs a cold start of
# GPU time and the requests of one lead; so many an hour are the price of following demand, more are a law that swings.
FLAPS_PER_HOUR = 6
HOUR_S = 3600.0
# Replacements at most for replicas that do not start: what keeps them from starting may keep the next ones too.
MAX_REPLACEMENTS = 2


def decide(state: State | None, sample: Sample, now: float) -> Decision:
    """The target of one fleet. `now` in unix seconds; `state` as the decision before returned it, None at first."""
    remembered = state or State()
    if not remembered.since_s:
        # Measured cold starts say that the fleet is older than this memory: whoever decided before knew more.
        found_target = sample.supply.target if sample.supply.cold_starts_s else 0
        remembered = replace(remembered, since_s=now, found_target=found_target)
    remembered = _called(observed(remembered, sample, now), sample, now)
    give_up_s = dead_after_s(sample.supply)
    remembered = woken(remembered, sample, give_up_s, now)
    # The middle one: a fleet that grows by several is helped by most of them by then, and the slow end (p90 is twice the median when
    # one start in ten fails) made it look further ahead than anybody can see.
    lead_s = cold_start_quantile_s(sample.supply, 0.5) + TICK_S
    terms = Terms(lead_s=lead_s, hold_s=hold_s(sample.supply))
    policy = sample.policy

    if policy.calibration is None:
        tick = _Tick(remembered, sample, terms, now)
        return tick.kept(Reason.NO_CALIBRATION, "nobody knows what one replica carries")
    if sample.demand is None:
        tick = _Tick(remembered, sample, terms, now)
        silent = sample.silent_gateways
        return tick.kept(
            Reason.DEMAND_UNKNOWN, f"{_gateways(silent)} silent" if silent else "no gateway has reported yet"
        )

    found = need(remembered, _living(sample, give_up_s), policy.calibration, lead_s, now)
    remembered = _learnt(remembered, sample, found, now)
    flaps = sum(at_s > now - HOUR_S for at_s in remembered.flaps)
    tick = _Tick(remembered, sample, found.terms, now, found.late)
    if found.capacity is not None and found.capacity.requests_per_s <= 0:
        return replace(tick, terms=replace(found.terms, hold_s=terms.hold_s, flaps=flaps)).kept(
            Reason.OBJECTIVE_UNREACHABLE,
            f"an empty step takes {found.capacity.step_time_s * 1e3:.3g} ms of {policy.tpot_s * 1e3:.3g} ms timePerOutputToken,"
            f" {_percent(TPOT_SHARE)} of which may be planned, so no number of replicas meets it",
        )
    return tick.targeted(terms.hold_s, flaps)


def hold_s(supply: Supply) -> float:
    return max(MIN_HOLD_S, HOLD_SHARE * cold_start_quantile_s(supply, 0.5))


def cold_start_quantile_s(supply: Supply, share: float) -> float:
    """Of the measured cold starts, the nearest rank above; the default before there are any."""
    measured = sorted(supply.cold_starts_s)
    return measured[math.ceil(share * len(measured)) - 1] if measured else DEFAULT_COLD_START_S


def dead_after_s(supply: Supply) -> float:
    slowest = cold_start_quantile_s(supply, 0.99)
    if len(supply.cold_starts_s) < TRUSTED_COLD_STARTS:
        slowest = max(slowest, DEFAULT_COLD_START_S)
    return max(MIN_DEAD_AFTER_S, DEAD_FACTOR * slowest)


@dataclass(frozen=True, slots=True)
class _Tick:
    """One call of decide after the law has spoken."""

    state: State
    sample: Sample
    terms: Terms
    now: float
    # Requests already wait for half of their time.
    late: bool = False

    @property
    def supply(self) -> Supply:
        return self.sample.supply

    @property
    def policy(self) -> Policy:
        return self.sample.policy

    def targeted(self, hold_s: float, flaps: int) -> Decision:
        supply = self.supply
        wanted, would_do = self.terms.wanted, self.terms.enough
        asleep = self._asleep()
        idle = asleep or self._may_sleep()
        if asleep:
            # Even one request, which is no work to speak of, wakes it, and nothing else does.
            wanted, would_do = (max(wanted, 1), would_do) if called(self.state) else (0, 0)
        elif idle and not self.terms.forecast:
            # Nobody called for as long as the owner said: that is believed.
            wanted = would_do = 0
        if wanted == 0 and _anybody_there(self.sample):
            wanted = 1
        # Asleep is all or nothing: a fleet that is needed at all has minReplicas.
        low = 0 if wanted == 0 and idle else self.policy.min_replicas
        limit_s = dead_after_s(supply)
        dead = min(sum(age_s > limit_s for age_s in supply.pending_ages_s), MAX_REPLACEMENTS)
        # Replacements only as far as the living do not suffice.
        alive = supply.ready + len(supply.pending_ages_s) + supply.unschedulable - dead
        dead = min(dead, max(max(wanted, low) - alive, 0))
        # A first tick knows nothing of the hold that it is in: the present target was wanted until now.
        state = self.state if self.state.wishes else wished(self.state, self.now, supply.target, hold_s)
        # What is enough is no reason to go up.
        enough = min(max(wanted, low, would_do), max(supply.target, wanted, low))
        state = wished(state, self.now, enough, hold_s)
        held = max(w.replicas for w in state.wishes)
        terms = replace(
            self.terms, wanted=wanted, enough=enough, held=held, dead=dead, hold_s=hold_s, flaps=flaps
        )
        tick = _Tick(state, self.sample, terms, self.now, self.late)
        asked = max(wanted, low) + dead
        if asked > supply.target:
            return tick.up(asked)
        if enough + dead < supply.target or self.policy.max_replicas < supply.target:
            return tick.down(max(held, low) + dead)
        return tick.result(supply.target, tick._standing(low))

    def up(self, asked: int) -> Decision:
        ready, highest = self.supply.ready, self.policy.max_replicas
        fresh_s = cold_start_quantile_s(self.supply, 0.9) - (self.now - self.state.since_s)
        known = max(self.state.found_target + 1, self.supply.target, self.policy.min_replicas)
        if fresh_s > 0 and self.state.found_target and asked > known and not self.late:
            return self.result(
                min(known, highest),
                Reason.RESTARTED,
                f"{asked} are needed by what little is known, one more than was found until {fresh_s:.0f} s from now",
            )
        at_once = max(math.floor(ready * UP_FACTOR), ready + UP_STEP)
        # A target that stands is no step: it is never taken back because replicas fell away.
        target = min(max(min(asked, at_once), self.supply.target, self.policy.min_replicas), highest)
        tick = self._flapped(target)
        if target >= asked:
            return tick.result(target, self._why_up())
        if target == highest:
            return tick.result(target, Reason.AT_MAXIMUM, f"{asked} are needed, maxReplicas is {highest}")
        return tick.result(
            target,
            Reason.STEP_LIMITED,
            f"{asked} are needed, {ready} {_is(ready)} ready, at most {at_once} at once",
        )

    def down(self, floor: int) -> Decision:
        """`floor`: the most that was called enough during the hold."""
        supply, sample, hold = self.supply, self.sample, self.terms.hold_s
        if self.policy.max_replicas < supply.target:
            # maxReplicas was lowered: no hold protects what is above it.
            highest = self.policy.max_replicas
            return self.result(highest, Reason.AT_MAXIMUM, f"maxReplicas is {highest}")
        if sample.silent_gateways:
            return self.kept(Reason.DEMAND_UNKNOWN, f"{_gateways(sample.silent_gateways)} silent")
        if sample.silent_replicas:
            # Streams and pods are seen at different moments.
            ready = max(supply.ready, sample.silent_replicas)
            return self.kept(
                Reason.LOAD_UNKNOWN,
                f"{sample.silent_replicas} of {ready} ready {_plural('replica', ready)} "
                f"{_is(sample.silent_replicas)} silent",
            )
        if self.terms.step_time_ratio:
            return self.kept(
                Reason.MODEL_DRIFT,
                f"steps take {self.terms.step_time_ratio:.2f} times what the model says",
            )
        if self.terms.flaps >= FLAPS_PER_HOUR:
            first_s = self.state.flaps[-FLAPS_PER_HOUR]
            return self.kept(
                Reason.FLAPPING,
                f"{self.terms.flaps} starts in an hour came soon after a scale-down, nothing goes down for another"
                f" {first_s + HOUR_S - self.now:.0f} s",
                certain=True,
            )
        left_s = cold_start_quantile_s(supply, 0.9) - (self.now - self.state.since_s)
        if left_s > 0:
            return self.kept(
                Reason.RESTARTED,
                f"no memory of demand yet, nothing goes down for another {left_s:.0f} s",
                certain=True,
            )
        wishes_s = [
            w.at_s + hold - self.now
            for w in self.state.wishes
            if w.replicas + self.terms.dead >= supply.target
        ]
        left_s = max([self.state.last_down_s + hold - self.now, *wishes_s])
        if left_s > 0:
            would = self.terms.wanted
            return self.kept(
                Reason.HOLDING_BEFORE_SCALE_DOWN,
                f"{would} {_plural('replica', would)} would do, held for another {left_s:.0f} s",
                certain=True,
            )
        step = max(1, math.floor(DOWN_SHARE * supply.target))
        # Asleep is one step: with nobody there, no replica is needed more than another.
        target = 0 if floor == 0 else max(floor, supply.target - step, self.policy.min_replicas)
        reason = Reason.IDLE if target == 0 else Reason.DEMAND_FELL
        return replace(self, state=replace(self.state, last_down_s=self.now)).result(target, reason)

    def kept(self, reason: Reason, why: str, *, certain: bool = False) -> Decision:
        """The present target inside the bounds: not knowing is no licence to leave them. Who sleeps stays asleep."""
        target = self.supply.target
        low = 0 if target == 0 and self.policy.scale_to_zero_after_s is not None else self.policy.min_replicas
        return self.result(min(max(target, low), self.policy.max_replicas), reason, why, certain=certain)

    def result(self, replicas: int, reason: Reason, why: str = "", *, certain: bool = True) -> Decision:
        if reason is Reason.AT_MINIMUM:
            why = f"minReplicas is {self.policy.min_replicas}"
        message = sentence(self.sample, self.terms, why)
        wakes = replicas > 0 and self.supply.target == 0
        state = replace(self.state, woke_s=self.now) if wakes else self.state
        return Decision(replicas, reason, message, self.terms, state, certain)

    def _flapped(self, target: int) -> _Tick:
        """With this step up remembered, when it takes back a step down of less than a lead ago."""
        before, down_s = self.state.flaps, self.state.last_down_s
        soon = down_s > 0 and self.now - down_s < self.terms.lead_s
        counted = bool(before) and before[-1] >= down_s
        if not soon or counted or target <= self.supply.target:
            return self
        return replace(self, state=replace(self.state, flaps=(*before, self.now)[-MAX_FLAPS:]))

    def _why_up(self) -> Reason:
        terms = self.terms
        if self.supply.target == 0:
            return Reason.WAKING
        if terms.dead and max(terms.wanted, self.policy.min_replicas) <= self.supply.target:
            return Reason.STARTS_FAILED
        if terms.wanted < self.policy.min_replicas:
            return Reason.AT_MINIMUM
        if terms.bypass:
            return Reason.BYPASS_TRAFFIC
        if terms.backlog > terms.need - terms.backlog:
            return Reason.BACKLOG
        if terms.step_time_ratio > 1.0:
            return Reason.MODEL_DRIFT
        return Reason.KV_CACHE if terms.kv >= terms.need - terms.backlog else Reason.DEMAND_ROSE

    def _standing(self, low: int) -> Reason:
        if self.terms.bypass:
            return Reason.BYPASS_TRAFFIC
        if self.supply.target == 0:
            return Reason.IDLE
        if self.terms.step_time_ratio:
            return Reason.MODEL_DRIFT
        return Reason.AT_MINIMUM if self.terms.wanted < low else Reason.DEMAND_STEADY

    def _asleep(self) -> bool:
        """Only a call wakes it: no lost memory, whose idle clock begins anew, and no gateway that says nothing."""
        return self.supply.target == 0 and self.policy.scale_to_zero_after_s is not None

    def _may_sleep(self) -> bool:
        if self.policy.scale_to_zero_after_s is None:
            return False
        return may_sleep(self.state, self.sample, cold_start_quantile_s(self.supply, 0.9), self.now)


def _learnt(state: State, sample: Sample, found: Need, now: float) -> State:
    """What this tick says of the mix, the model and of headroom. It counts from the next tick on."""
    terms = found.terms
    learnt: dict[str, Any] = {
        "budget": settled(state.budget, state.last_attained, sample.attained, sample.policy.attainment, now),
        "last_attained": sample.attained or state.last_attained,
    }
    if found.mix is not None:
        mix = (found.mix.input_tokens, found.mix.cached_tokens, found.mix.output_tokens)
        learnt |= {"mix": mix, "drift": found.drift, "warm_hit": found.warm_hit}
    # A gateway that is silent, or work that is counted elsewhere now, is no surprise of the traffic.
    # Nor is a forecast from a few seconds of history one.
    young = found.covered_s < forecast_window_s(terms.lead_s) / 2
    # What came in a gap is known as a mean only, and stays in the short windows for a while.
    blurred = bool(state.gap_end_s) and now - state.gap_end_s < MAX_DECODE_WINDOW_S
    if young or blurred or terms.capacity_rps <= 0 or sample.silent_gateways or terms.bypass:
        return replace(state, **learnt)
    budget = learnt["budget"]
    mean_rps = budget.requests / budget.seconds if budget.seconds > 0 else 0.0
    weight = terms.arrival_rps / mean_rps if mean_rps > 0 else 1.0
    # Kept as the height and its time, so that a tick that brings nothing new changes nothing.
    level = state.level if terms.level > terms.forecast else (terms.forecast, now)
    surprises = surprised(
        state.surprises,
        terms.arriving,
        terms.forecast,
        lead_s=terms.lead_s,
        hold_s=hold_s(sample.supply),
        weight=weight,
        now=now,
    )
    season = seen(state.season, terms.forecast, now)
    then = due(state.surprises, terms.lead_s, now) if surprises is not state.surprises else None
    if then is not None:
        kept_free = math.log1p(terms.headroom_ratio)
        season = compared(season, terms.arriving, then, headroom=kept_free, lead_s=terms.lead_s, now=now)
    return replace(state, level=level, season=season, surprises=surprises, **learnt)


def _living(sample: Sample, give_up_s: float) -> Sample:
    """Without the pending replicas that will not come: the law counts what is on its way."""
    ages_s = tuple(age_s for age_s in sample.supply.pending_ages_s if age_s <= give_up_s)
    if len(ages_s) == len(sample.supply.pending_ages_s):
        return sample
    return replace(sample, supply=replace(sample.supply, pending_ages_s=ages_s))


def _called(state: State, sample: Sample, now: float) -> State:
    latest = state.buckets[-1] if state.buckets else None
    arrived = latest is not None and latest.end_s == now and latest.arrivals + latest.admitted > 0
    if arrived or _anybody_there(sample) or not state.last_call_s:
        return replace(state, last_call_s=now)
    return state


def _anybody_there(sample: Sample) -> bool:
    return bool(sample.queue.requests or sample.load.active or sample.load.queued)


def _gateways(count: int) -> str:
    return f"{count} {_plural('gateway', count)} {_is(count)}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def sentence(sample: Sample, terms: Terms, why: str) -> str:
    """`4 are needed, maxReplicas is 3; work for 2.31 replicas arrives (prefill 1.90, decode 0.41), forecast 2.00, each ...`.

    Without the target: whoever shows the sentence says from where to where."""
    if terms.capacity_rps <= 0:
        # Nothing is known of the work, so nothing is said of it.
        return why or ("the work is not known" if sample.demand is None else "nothing arrives")
    said = [f"{why}; "] if why else []
    # What prints as 0.00 is nothing to a reader.
    if terms.arriving < 0.005:
        said.append("nothing arrives now" if terms.forecast >= 0.005 else "nothing arrives")
    else:
        decode = terms.arriving - terms.arriving_prefill
        said.append(
            f"work for {terms.arriving:.2f} replicas arrives (prefill {terms.arriving_prefill:.2f}, decode {decode:.2f})"
        )
    if terms.forecast >= 0.005:
        said.append(f", forecast {terms.forecast:.2f}")
    if terms.season_ratio >= 0.005:
        said.append(f", {_percent(terms.season_ratio)} more at this hour of other days")
    said.append(f", each carries {terms.capacity_rps:.3g} requests/s (limit {terms.bound})")
    said.append(f", headroom {_percent(terms.headroom_ratio)}")
    if terms.backlog > 0:
        said.append(f", backlog {terms.backlog:.2f}")
    if terms.kv > 0:
        said.append(f", KV caches fill {terms.kv:.2f}")
    if terms.dead:
        said.append(f", {terms.dead} failed to start")
    if terms.cold_cache_share > 0:
        said.append(f", new caches are {_percent(terms.cold_cache_share)} of all")
    if terms.step_time_ratio > 0:
        said.append(f", steps take {terms.step_time_ratio:.2f} of what the model says")
    if terms.bypass:
        said.append(", counted at the replicas because they got more than the gateways sent")
    return "".join(said)
