"""Our own policy in virtual time: `moefleet_operator.scaling.decide`, the very function that runs in the operator.

This module only turns an observation into the sample that telemetry would have made of it: cumulative totals, the output that
gateways predict at arrival, requests that ended and those inside the objective, sums over steps of late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

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
from moefleet_perf import StepTotals

from moefleet_replay.observation import Observation, Series, Signal
from moefleet_replay.policy import Knob, PolicySpec, Wanted

# As the operator decides.
TICK_S = 5.0
# Recent steps fade with this half-life, as telemetry has it.
STEP_HALF_LIFE_S = 1800.0
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
        self._steps = StepTotals()
        self._steps_seen: StepTotals | None = None
        self._steps_at_s = 0.0

    def restart(self) -> None:
        """The operator begins anew and nobody kept its memory."""
        self._state = None

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        decision = decide(self._state, self._sample(o), EPOCH_S + o.now_s)
        self._state = decision.state
        return Wanted(decision.replicas, str(decision.reason))

    def _sample(self, o: Observation) -> Sample:
        series, t = o.series, self._totals
        known = not o.metrics_lost
        if known:
            t.advance(series, o.now_s, _COUNTED)
        limits = o.calibration.limits
        return Sample(
            policy=Policy(
                min_replicas=o.min_replicas,
                max_replicas=o.max_replicas,
                tpot_s=o.objective.tpot_s,
                ttft_s=o.objective.ttft_s,
                calibration=o.calibration,
                attainment=self._attainment or o.objective.attainment,
            ),
            supply=Supply(o.target, o.ready, o.pending_ages_s, 0, o.draining, o.cold_starts_s),
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
            steps=self._recent_steps(o),
            attained=Attained(t[Signal.COMPLETED], t[Signal.COMPLETED_IN_OBJECTIVE]),
        )

    def _recent_steps(self, o: Observation) -> StepTotals | None:
        total = o.steps
        before, self._steps_seen = self._steps_seen, total
        if before is not None:
            kept = 0.5 ** ((o.now_s - self._steps_at_s) / STEP_HALF_LIFE_S)
            new = total - before
            self._steps = StepTotals(
                *(getattr(self._steps, f.name) * kept + getattr(new, f.name) for f in fields(new))
            )
        self._steps_at_s = o.now_s
        return self._steps if self._steps.count > 0 else None


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
