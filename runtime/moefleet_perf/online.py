"""Which reports of steps the fit believes, and for how long: `fed(watch, reports, prior, now)`, pure.

Steps are kept by kind, 16 buckets of (prompt tokens, sequences) a step, so that a night of small batches does not outvote the
hours that sizing is about, and a mix that comes back is still known. A report that the model does not explain (normalised
innovation squared above 7.378, the 97.5 % point of chi-squared with two degrees of freedom) is an outlier: a paused process, a
neighbour on the machine. When most steps of a minute are outliers, they are the engine now (another driver, another machine,
another kernel), and what was before is forgotten at once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

from moefleet_perf.calibration import StepModel
from moefleet_perf.fit import LEAST_STEP_S, MIN_STEPS, STEP_SPREAD, StepTotals, fit_step_model

# Lower edges of the kinds: a decode step and three sizes of chunk; four sizes of batch.
PREFILL_EDGES = (1.0, 256.0, 2048.0)
SEQUENCE_EDGES = (16.0, 64.0, 256.0)
KINDS = (len(PREFILL_EDGES) + 1) * (len(SEQUENCE_EDGES) + 1)
# What is seen again fades with this half-life; what is not seen keeps its word until the engine changes.
HALF_LIFE_S = 1800.0
# No kind counts as more steps than so many: a second of a fleet of 30 has a thousand.
MAX_STEPS = 20_000.0
# Squared deviations of a report from the model, in variances of the model.
MAX_NIS = 7.378
# A straight line explains sums of steps to so much, however many they are; 7.378 variances of it are 14 %.
MODEL_SPREAD = 0.05
# Fewer steps say nothing of a ratio.
MIN_RATIO_STEPS = 20.0
# Believed and doubted reports are weighed against each other over about a minute ...
DOUBT_HALF_LIFE_S = 30.0
# ... and a change is only noticed when it was seen for so long.
DOUBT_LEAST_S = 20.0
# Contexts are a mean in which a second counts 1/e of what the one so much later counts: as long as the law's mean of lengths.
CONTEXT_FADE_S = 300.0
# Fewer sequences of steps say nothing of their contexts.
MIN_CONTEXT_SEQUENCES = 1000.0

_counts: Callable[[StepTotals], tuple[float, ...]] = attrgetter(*(f.name for f in fields(StepTotals)))


@dataclass(frozen=True, slots=True)
class StepWatch:
    """What is known of the steps of one fleet."""

    at_s: float = 0.0
    # By kind: when it was seen last, and its sums.
    kinds: tuple[tuple[float, StepTotals], ...] = ((0.0, StepTotals()),) * KINDS
    # Outliers of late, and since when there have been more of them than of the others; 0: there are not.
    doubted: StepTotals = field(default_factory=StepTotals)
    believed_steps: float = 0.0
    doubted_since_s: float = 0.0
    # When the engine last turned out to be another one; 0: never.
    changed_at_s: float = 0.0
    # Measured over predicted time of the newest steps, outliers too; None: there were none.
    ratio: float | None = None
    # All kinds together, for `fit_step_model`.
    totals: StepTotals = field(default_factory=StepTotals)
    # Tokens of context and sequences of the steps of late, doubted or not: contexts are counted, not timed.
    kv_tokens: float = 0.0
    sequences: float = 0.0

    @property
    def context_tokens(self) -> float | None:
        """Mean context in which a token was made, E[O*(I+O/2)]/E[O] in steady state; None: too few were."""
        return self.kv_tokens / self.sequences if self.sequences >= MIN_CONTEXT_SEQUENCES else None


def fed(watch: StepWatch, reports: Iterable[StepTotals], prior: StepModel, now: float) -> StepWatch:
    """With the newest reports, each the sums of one replica (or of like ones) since the report before."""
    new = [r for r in reports if r.count > 0 and r.time_s >= r.count * LEAST_STEP_S]
    if not new:
        kv_tokens, sequences = _contexts(watch, (), now)
        return replace(watch, at_s=now, ratio=None, kv_tokens=kv_tokens, sequences=sequences)
    model = fit_step_model(watch.totals, prior)
    # A calibration that was never checked is a guess, and nothing is an outlier to a guess.
    gated = watch.totals.count >= MIN_STEPS
    kinds = list(watch.kinds)
    fade = 0.5 ** (max(now - watch.at_s, 0.0) / DOUBT_HALF_LIFE_S)
    doubted, believed = _scaled(watch.doubted, fade), watch.believed_steps * fade
    measured_s = predicted_s = 0.0
    for report in new:
        expected_s = predicted_time_s(model, report)
        measured_s += report.time_s
        predicted_s += expected_s
        if gated and innovation(report, expected_s) > MAX_NIS:
            doubted = doubted + report
            continue
        believed += report.count
        kind = kind_of(report)
        seen_s, sums = kinds[kind]
        kinds[kind] = (now, _scaled(sums, 0.5 ** (max(now - seen_s, 0.0) / HALF_LIFE_S)) + report)
    counted = sum(report.count for report in new)
    contexts = _contexts(watch, new, now)
    ratio = measured_s / predicted_s if predicted_s > 0 and counted >= MIN_RATIO_STEPS else None
    since_s = (watch.doubted_since_s or now) if doubted.count > believed else 0.0
    if since_s and now - since_s >= DOUBT_LEAST_S and doubted.count >= MIN_STEPS:
        fresh = list(StepWatch().kinds)
        fresh[kind_of(doubted)] = (now, doubted)
        return StepWatch(
            now,
            tuple(fresh),
            changed_at_s=now,
            ratio=ratio,
            totals=doubted,
            kv_tokens=contexts[0],
            sequences=contexts[1],
        )
    return StepWatch(
        now, tuple(kinds), doubted, believed, since_s, watch.changed_at_s, ratio, _together(kinds), *contexts
    )


def predicted_time_s(model: StepModel, sums: StepTotals) -> float:
    """Seconds that these steps take by the model; exact, because it is linear in what the sums are of."""
    linear_s = model.a_s * sums.count + model.b_s * sums.prefill_tokens
    return linear_s + model.c_s * sums.sequences + model.d_s * sums.kv_tokens


def innovation(report: StepTotals, expected_s: float) -> float:
    """Normalised innovation squared of a report: steps deviate each on their own, and the line deviates for all of them."""
    mean_s = expected_s / report.count
    variance = report.count * (STEP_SPREAD * mean_s) ** 2 + (MODEL_SPREAD * expected_s) ** 2
    return (report.time_s - expected_s) ** 2 / variance if variance > 0 else 0.0


def kind_of(sums: StepTotals) -> int:
    """Which bucket, by the mean step."""
    prefill = bisect_right(PREFILL_EDGES, sums.prefill_tokens / sums.count)
    return prefill * (len(SEQUENCE_EDGES) + 1) + bisect_right(SEQUENCE_EDGES, sums.sequences / sums.count)


def _contexts(watch: StepWatch, reports: Iterable[StepTotals], now: float) -> tuple[float, float]:
    """Tokens of context and sequences, those of before faded."""
    fade = math.exp(-max(now - watch.at_s, 0.0) / CONTEXT_FADE_S)
    kv_tokens, sequences = watch.kv_tokens * fade, watch.sequences * fade
    for report in reports:
        kv_tokens, sequences = kv_tokens + report.kv_tokens, sequences + report.sequences
    return kv_tokens, sequences


def _together(kinds: Iterable[tuple[float, StepTotals]]) -> StepTotals:
    seen = [_counts(_scaled(sums, min(1.0, MAX_STEPS / sums.count))) for _, sums in kinds if sums.count > 0]
    return StepTotals(*map(sum, zip(*seen, strict=True))) if seen else StepTotals()


def _scaled(sums: StepTotals, share: float) -> StepTotals:
    return sums if share == 1.0 else StepTotals(*(count * share for count in _counts(sums)))
