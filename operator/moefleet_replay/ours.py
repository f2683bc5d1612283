"""Our own policy in virtual time: `moefleet_operator.scaling.decide`, the very function that runs in the operator.

This module only turns an observation into the sample that telemetry would have made of it: cumulative totals, the output that
gateways predict at arrival, requests that ended and those inside the objective, sums over steps of late.
"""

from __future__ import annotations

from collections.abc import Mapping

from moefleet_operator.scaling import (
    Attained,
    DemandTotals,
    Load,
    Policy,
    Queue,
    Sample,
    ServedTotals,
    State,
    Supply,
    decide,
)
from moefleet_operator.scaling.law import WARM_CACHE_S
from moefleet_perf import StepTotals, StepWatch, fed

from moefleet_replay.account import parts
from moefleet_replay.observation import Observation, Series, Signal
from moefleet_replay.policy import Knob, PolicySpec, Wanted

# As the operator decides.
TICK_S = 5.0
# Unix seconds of second 0: the law's zero means "never".
EPOCH_S = 1_700_000_000.0


class _Totals:
    """Sums of signals since the start, from windows that touch."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._sums: dict[Signal, float] = {}

    def advance(self, series: Series, now_s: float, signals: tuple[Signal, ...]) -> None:
        span_s = now_s - self._at_s
        for signal in signals:
            self._sums[signal] = self._sums.get(signal, 0.0) + series.total(signal, span_s)
        self._at_s = now_s

    def __getitem__(self, signal: Signal) -> float:
        return self._sums.get(signal, 0.0)


_COUNTED = (
    Signal.ARRIVALS,
    Signal.ARRIVED_INPUT_TOKENS,
    Signal.ARRIVED_CACHED_TOKENS,
    Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS,
    Signal.PREFILLED_TOKENS,
    Signal.GENERATED_TOKENS,
    Signal.ADMITTED,
    Signal.COMPLETED,
    Signal.COMPLETED_IN_OBJECTIVE,
)


class Ours:
    interval_s = TICK_S
    # A draining replica is warm: the planner takes it back before it makes a new one.
    resumes_draining = True

    def __init__(self, attainment: float) -> None:
        # 0: the objective's own.
        self._attainment = attainment
        self._state: State | None = None
        self._totals = _Totals()
        self._watch = StepWatch()
        self._steps_seen: StepTotals | None = None

    def restart(self) -> None:
        """The operator begins anew and nobody kept its memory."""
        self._state = None
        self._watch = StepWatch()

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        decision = decide(self._state, self._sample(o), EPOCH_S + o.now_s)
        self._state = decision.state
        return Wanted(decision.replicas, str(decision.reason), parts(decision.terms, decision.replicas))

    def _sample(self, o: Observation) -> Sample:
        series, t = o.series, self._totals
        known = not o.metrics_lost
        if known:
            t.advance(series, o.now_s, _COUNTED)
        limits = o.calibration.limits
        watch = self._watched(o)
        steps = watch.totals
        return Sample(
            policy=Policy(
                min_replicas=o.min_replicas,
                max_replicas=o.max_replicas,
                tpot_s=o.objective.tpot_s,
                ttft_s=o.objective.ttft_s,
                calibration=o.calibration,
                attainment=self._attainment or o.objective.attainment,
            ),
            supply=Supply(
                o.target,
                o.ready,
                o.pending_ages_s,
                draining=o.draining,
                cold_starts_s=o.cold_starts_s,
                # Those that the run began with have been at work for long.
                cold_caches=sum(
                    r.ready_since_s > 0.0 and o.now_s - r.ready_since_s < WARM_CACHE_S for r in o.replicas
                ),
            ),
            demand=DemandTotals(
                t[Signal.ARRIVALS],
                t[Signal.ARRIVED_INPUT_TOKENS],
                t[Signal.ARRIVED_CACHED_TOKENS],
                t[Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS],
            )
            if known
            else None,
            silent_gateways=0 if known else 1,
            queue=Queue(int(series.last(Signal.GATEWAY_QUEUED)), 0, o.oldest_wait_s),
            served=ServedTotals(
                t[Signal.ADMITTED], t[Signal.PREFILLED_TOKENS], 0.0, t[Signal.GENERATED_TOKENS]
            ),
            silent_replicas=0 if known else o.ready,
            load=Load(
                replicas=o.ready,
                active=int(series.last(Signal.RUNNING)),
                queued=int(series.last(Signal.REPLICA_QUEUED)),
                outstanding_prefill_tokens=int(series.last(Signal.OUTSTANDING_PREFILL_TOKENS)),
                outstanding_decode_tokens=int(series.last(Signal.OUTSTANDING_DECODE_TOKENS)),
                kv_used_tokens=int(series.last(Signal.KV_USED_TOKENS)),
                kv_max_tokens=o.ready * limits.kv_max_tokens,
            ),
            steps=steps if steps.count > 0 else None,
            step_time_ratio=watch.ratio,
            context_tokens=watch.context_tokens,
            attained=Attained(t[Signal.COMPLETED], t[Signal.COMPLETED_IN_OBJECTIVE]),
        )

    def _watched(self, o: Observation) -> StepWatch:
        before, self._steps_seen = self._steps_seen, o.steps
        if before is not None:
            self._watch = fed(self._watch, [o.steps - before], o.calibration.step, o.now_s)
        return self._watch


def _ours(knobs: Mapping[str, float]) -> Ours:
    return Ours(knobs["attainment"])


SPECS = (
    PolicySpec(
        name="moefleet",
        summary="Work at arrival, headroom learnt over one cold start, a budget of misses.",
        source="moefleet_operator.scaling.decide; operator/decisions/0010-headroom.md.",
        knobs=(
            Knob(
                "attainment",
                0.0,
                0.0,
                0.9999,
                "share of requests that it aims at; 0: the objective's",
                tuned=True,
            ),
        ),
        build=_ours,
    ),
)
