"""What each replica of a target is kept for: the replica-hours of our policy by reason.

A waterfall in the order of the law: what the forecast alone asks for, then what each next term adds on top of all before it. A term
that another one covers costs nothing, and the parts add up to the target. Hours of drains and of pods on their way are no reasons but
states: `draining` comes on top of the targets, `starting` is a part of them.
"""

from __future__ import annotations

from moefleet_operator.scaling.law import LEVEL_SHARE
from moefleet_operator.scaling.types import Terms

REASONS = (
    # Work that came of late, as the forecast has it.
    "forecast",
    # For what can come within a cold start, the season's share included.
    "headroom",
    # What came in the last minute, when that was more, and a model that is not believed.
    "surge",
    "kv",
    # Demand is not believed to fall faster.
    "level",
    "backlog",
    # Replicas are whole.
    "rounding",
    # Not worth a step down yet.
    "margin",
    # Was needed during the hold, is going down step by step, or a guard or a bound keeps it.
    "hold",
    "replaced",
)


def parts(terms: Terms, target: int) -> dict[str, float]:
    """Replicas by REASONS; they add up to `target`."""
    covered = terms.forecast * (1.0 + terms.season_ratio) * (1.0 + terms.headroom_ratio)
    level = terms.level * LEVEL_SHARE
    before_backlog = terms.need - terms.backlog
    # Whatever is above every term that has a number of its own is the minute's.
    worked = before_backlog if before_backlog > max(covered, level, terms.kv) + 1e-9 else covered
    kv = max(worked, terms.kv)
    living = float(target - terms.dead)
    wanted = min(float(terms.wanted), living)
    steps = (
        terms.forecast,
        covered,
        worked,
        kv,
        max(kv, level),
        terms.need,
        wanted,
        min(max(float(terms.enough), wanted), living),
        living,
        float(target),
    )
    return {name: after - before for name, before, after in zip(REASONS, (0.0, *steps), steps, strict=False)}
