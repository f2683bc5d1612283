"""The step model from what steps really took: non-negative least squares on sums, with the calibration as prior.

A replica reports only sums over its steps (StepSums of the protos): enough for the normal equations, so a day of steps costs as
little as a minute. The prior is the calibration, each coefficient believed to +-50 %, each step's time to +-20 % of the mean:
a fleet that only ever decodes cannot learn b, and then keeps the calibration's. Pass differences of two reports to fit a window.
Which reports are believed, and for how long, is `online.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

from moefleet_perf.calibration import StepModel

# How far a calibration is trusted per coefficient, as a share of it.
PRIOR_SPREAD = 0.5
# What the model leaves unexplained of one step's time, as a share of the mean step time.
STEP_SPREAD = 0.2
# Fewer steps than this say more about start-up than about the engine.
MIN_STEPS = 200
# No engine steps faster: a shorter mean is a broken clock, and its squares vanish.
LEAST_STEP_S = 1e-6
# A coefficient that the calibration calls 0 may still be found: it is believed up to this share of a step's time per unit of the mean feature.
ZERO_PRIOR_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Sums over steps, as StepSums of the protos: prefill, sequences and kv are the features, time_s the answer."""

    count: float = 0.0
    time_s: float = 0.0
    prefill_tokens: float = 0.0
    sequences: float = 0.0
    kv_tokens: float = 0.0
    time_s_prefill: float = 0.0
    time_s_sequences: float = 0.0
    time_s_kv: float = 0.0
    prefill_prefill: float = 0.0
    prefill_sequences: float = 0.0
    prefill_kv: float = 0.0
    sequences_sequences: float = 0.0
    sequences_kv: float = 0.0
    kv_kv: float = 0.0

    def __add__(self, other: "StepTotals") -> "StepTotals":
        return StepTotals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "StepTotals") -> "StepTotals":
        return StepTotals(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def with_step(
        self, time_s: float, prefill_tokens: float, sequences: float, kv_tokens: float
    ) -> "StepTotals":
        p, n, kv = prefill_tokens, sequences, kv_tokens
        return self + StepTotals(
            1.0,
            time_s,
            p,
            n,
            kv,
            time_s * p,
            time_s * n,
            time_s * kv,
            p * p,
            p * n,
            p * kv,
            n * n,
            n * kv,
            kv * kv,
        )


def fit_step_model(totals: StepTotals, prior: StepModel, *, context_tokens: float = 0.0) -> StepModel:
    """The most believable non-negative coefficients; the prior itself below MIN_STEPS or LEAST_STEP_S.

    Sums do not tell what a prompt token attended to, so e is never learnt: it stays the prior's. `context_tokens`, the mean context
    that a prompt token of these steps attended to, says how much of their time it was; the price b of a token is learnt without it."""
    if totals.count < MIN_STEPS or totals.time_s < totals.count * LEAST_STEP_S:
        return prior
    t = totals
    gram = [
        [t.count, t.prefill_tokens, t.sequences, t.kv_tokens],
        [t.prefill_tokens, t.prefill_prefill, t.prefill_sequences, t.prefill_kv],
        [t.sequences, t.prefill_sequences, t.sequences_sequences, t.sequences_kv],
        [t.kv_tokens, t.prefill_kv, t.sequences_kv, t.kv_kv],
    ]
    answer = [t.time_s, t.time_s_prefill, t.time_s_sequences, t.time_s_kv]
    attended_s = prior.e_s * context_tokens
    believed = [prior.a_s, prior.b_s + attended_s, prior.c_s, prior.d_s]
    mean_step_s = t.time_s / t.count
    for i, value in enumerate(believed):
        root_mean_square = (gram[i][i] / t.count) ** 0.5
        spread = max(value * PRIOR_SPREAD, ZERO_PRIOR_SHARE * mean_step_s / max(root_mean_square, 1.0))
        weight = (STEP_SPREAD * mean_step_s / spread) ** 2
        gram[i][i] += weight
        answer[i] += weight * value
    a_s, b_s, c_s, d_s = _non_negative(gram, answer)
    return StepModel(a_s, max(b_s - attended_s, 0.0), c_s, d_s, prior.e_s)


def _non_negative(gram: list[list[float]], answer: list[float]) -> list[float]:
    """min x'Gx/2 - r'x with x >= 0, exactly: four unknowns have sixteen sets of zeros, so all are tried."""
    # Nearly always nothing is zero, and a least point without bounds that keeps to them is the least one of all.
    whole = _solve(gram, answer)
    if whole is not None and min(whole) >= 0:
        return whole
    best, best_cost = [0.0] * len(answer), 0.0
    for size in range(1, len(answer) + 1):
        for free in combinations(range(len(answer)), size):
            x = _solve([[gram[i][j] for j in free] for i in free], [answer[i] for i in free])
            if x is None or min(x) < 0:
                continue
            # At a stationary point the cost is -r'x/2.
            cost = -sum(answer[i] * v for i, v in zip(free, x, strict=True)) / 2
            if cost < best_cost:
                best = [0.0] * len(answer)
                for i, v in zip(free, x, strict=True):
                    best[i] = v
                best_cost = cost
    return best


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float] | None:
    """Gauss with pivoting after scaling by the diagonal (the features differ by six orders of magnitude); None when singular."""
    size = len(right)
    scale = [matrix[i][i] ** -0.5 if matrix[i][i] > 0 else 0.0 for i in range(size)]
    if 0.0 in scale:
        return None
    rows = [
        [matrix[i][j] * scale[i] * scale[j] for j in range(size)] + [right[i] * scale[i]] for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        if abs(rows[pivot][i]) < 1e-12:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    x = [0.0] * size
    for i in reversed(range(size)):
        x[i] = (rows[i][size] - sum(rows[i][j] * x[j] for j in range(i + 1, size))) / rows[i][i]
    return [v * s for v, s in zip(x, scale, strict=True)]
