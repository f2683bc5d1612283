"""From runs to numbers with intervals, and from numbers to the lines of the criterion: pure, and all that is claimed.

Definitions. A cell is a setting on a segment under a calibration; its numbers are means over seeds, with 95 % limits of Student's
t (absent with one seed). A setting holds a segment when the mean attainment of its cell is at least the criterion's. Sums are over
the headline segments of means over seeds; a setting with a headline cell missing has no sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from moefleet_replay.compare import Segment, Setting, Study

# Two-sided 95 % of Student's t by degrees of freedom; the last one for more.
STUDENT_T_95: Final = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
)


@dataclass(frozen=True, slots=True)
class Key:
    """Which run: texts, so that it sorts, prints and travels."""

    setting: str
    segment: str
    calibration: str
    seed: int


Runs = Mapping[Key, Mapping[str, float]]
"""Summaries by run: the numbers of `result.Summary`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    mean: float
    # Half of the 95 % interval; None with one value.
    half: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    setting: Setting
    segment: Segment
    calibration: str
    seeds: tuple[int, ...]
    attainment: Estimate
    gpu_hours: Estimate
    actions: Estimate
    requests: float

    @property
    def complete(self) -> bool:
        return bool(self.seeds)


@dataclass(frozen=True, slots=True)
class Total:
    """A setting over the headline segments under a calibration."""

    setting: Setting
    calibration: str
    # All headline cells have all seeds.
    complete: bool
    segments: int
    held: int
    # Mean over seeds of sums over segments.
    gpu_hours: Estimate
    actions: Estimate
    # Of all requests together, and of the worst segment.
    attainment: float
    worst: float


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the criterion under one calibration. passed None: cannot be decided from what was run."""

    rule: str
    calibration: str
    passed: bool | None
    text: str

    @property
    def word(self) -> str:
        return "UNDECIDED" if self.passed is None else "PASS" if self.passed else "FAIL"


def estimate(values: Iterable[float]) -> Estimate:
    found = list(values)
    count = len(found)
    # Three times 0.99 is 0.99 on average, also where floats say 0.98999...: a mean is inside of what it is made of.
    mean = min(max(math.fsum(found) / count, min(found)), max(found))
    if count < 2:
        return Estimate(mean, None)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (count - 1))
    return Estimate(mean, STUDENT_T_95[min(count - 1, len(STUDENT_T_95)) - 1] * deviation / math.sqrt(count))


def cell(study: Study, runs: Runs, setting: Setting, segment: Segment, calibration: str) -> Cell | None:
    """None: not run at all."""
    keys = [Key(setting.text, segment.name, calibration, seed) for seed in study.seeds]
    there = [(k.seed, runs[k]) for k in keys if k in runs]
    if not there:
        return None
    return Cell(
        setting, segment, calibration, tuple(seed for seed, _ in there),
        estimate(r["attainment"] for _, r in there),
        estimate(r["gpu_hours"] for _, r in there),
        estimate(r["scaling_actions"] for _, r in there),
        estimate(r["requests"] for _, r in there).mean,
    )  # fmt: skip


def holds(study: Study, found: Cell) -> bool:
    return found.attainment.mean >= study.criterion.attainment


def fails(study: Study, found: Cell) -> bool:
    """By more than its interval: what pruning goes by."""
    half = found.attainment.half if found.attainment.half is not None else study.pruning.one_seed_margin
    return found.attainment.mean + half < study.criterion.attainment


def total(study: Study, runs: Runs, setting: Setting, calibration: str) -> Total | None:
    """None: run on no headline segment. Sums are over what was run, so compare them only where `complete`."""
    cells = [c for s in study.headline if (c := cell(study, runs, setting, s, calibration)) is not None]
    if not cells:
        return None
    seeds = [s for s in study.seeds if all(s in c.seeds for c in cells)] or [cells[0].seeds[0]]

    def summed(field: str) -> Estimate:
        keys = [[Key(setting.text, c.segment.name, calibration, s) for c in cells] for s in seeds]
        return estimate(math.fsum(runs[k][field] for k in row if k in runs) for row in keys)

    requests = math.fsum(c.requests for c in cells)
    return Total(
        setting, calibration,
        complete=len(cells) == len(study.headline) and all(c.seeds == study.seeds for c in cells),
        segments=len(cells),
        held=sum(holds(study, c) for c in cells),
        gpu_hours=summed("gpu_hours"),
        actions=summed("scaling_actions"),
        attainment=math.fsum(c.attainment.mean * c.requests for c in cells) / requests if requests else math.nan,
        worst=min(c.attainment.mean for c in cells),
    )  # fmt: skip


def cheapest(study: Study, runs: Runs, policies: Iterable[str], calibration: str, held: int) -> Total | None:
    """Among the settings of these policies that were run in full and hold at least `held` headline segments."""
    wanted = set(policies)
    found = [t for s in study.settings if s.policy in wanted and (t := total(study, runs, s, calibration))]
    able = [t for t in found if t.complete and t.held >= held]
    return min(able, key=lambda t: t.gpu_hours.mean, default=None)


def undecidable(study: Study, runs: Runs, policies: Iterable[str], calibration: str, held: int) -> list[str]:
    """Settings not run in full that could still hold `held` segments and be the cheapest: what pruning may not hide.

    A setting is decided when it fails too many segments, or when on the very runs that it has, all headline segments of a seed
    among them, it costs more than a complete setting of its policy that holds as many.
    """
    open_: list[str] = []
    wanted = set(policies)
    for setting in study.settings:
        if setting.policy not in wanted:
            continue
        found = total(study, runs, setting, calibration)
        if found is not None and found.complete:
            continue
        cells = [c for s in study.headline if (c := cell(study, runs, setting, s, calibration))]
        lost = sum(fails(study, c) for c in cells)
        if len(study.headline) - lost < held or dear(study, runs, setting, calibration, held):
            continue
        open_.append(setting.text)
    return open_


def dear(study: Study, runs: Runs, setting: Setting, calibration: str, held: int) -> bool:
    """It costs more than its policy's cheapest complete holder, on the same runs; whole seeds only."""
    holder = cheapest(study, runs, [setting.policy], calibration, held)
    if holder is None or holder.setting == setting:
        return False
    for seed in study.seeds:
        mine = [runs.get(Key(setting.text, s.name, calibration, seed)) for s in study.headline]
        if any(r is None for r in mine):
            continue
        theirs = [runs[Key(holder.setting.text, s.name, calibration, seed)] for s in study.headline]
        return math.fsum(r["gpu_hours"] for r in mine if r) > math.fsum(r["gpu_hours"] for r in theirs)
    return False


def judged(study: Study, runs: Runs) -> list[Line]:
    return [line for calibration in study.calibrations for line in _judged(study, runs, calibration)]


def peers(study: Study) -> tuple[str, ...]:
    return tuple(p for p in study.policies if p not in (study.criterion.ours, study.criterion.oracle))


def ours(study: Study) -> Setting | None:
    return next((s for s in study.of(study.criterion.ours) if s.default), None)


def _judged(study: Study, runs: Runs, calibration: str) -> list[Line]:
    criterion = study.criterion
    rules = ("holds", "peers", "oracle", "calm")
    setting = ours(study)
    mine = total(study, runs, setting, calibration) if setting else None
    if mine is None or not mine.complete:
        return [Line(rule, calibration, None, "ours was not run in full at its default") for rule in rules]
    wanted = len(study.headline)
    lost = [
        f"{c.segment.name} {_share(c.attainment)}"
        for s in study.headline
        if (c := cell(study, runs, mine.setting, s, calibration)) and not holds(study, c)
    ]
    lines = [
        Line(
            "holds", calibration, mine.held == wanted,
            f"{criterion.ours} holds {criterion.attainment:.4g} on {mine.held} of {wanted} segments, the worst has {mine.worst:.4%}"
            + (f"; it does not on {', '.join(lost)}" if lost else ""),
        )
    ]  # fmt: skip
    for rule, policies, bound, field in (
        ("peers", peers(study), criterion.peers_ratio, "gpu_hours"),
        ("oracle", (criterion.oracle,), criterion.oracle_ratio, "gpu_hours"),
        ("calm", (criterion.calm,), criterion.actions_ratio, "actions"),
    ):
        lines.append(
            _ratio(
                study,
                runs,
                mine,
                rule=rule,
                calibration=calibration,
                policies=policies,
                bound=bound,
                field=field,
            )
        )
    return lines


def _ratio(
    study: Study, runs: Runs, mine: Total, *, rule: str, calibration: str, policies: tuple[str, ...], bound: float, field: str
) -> Line:  # fmt: skip
    name = "GPU-hours" if field == "gpu_hours" else "scaling actions"
    if unsettled := undecidable(study, runs, policies, calibration, mine.held):
        return Line(rule, calibration, None, f"not run far enough: {_some(unsettled)}")
    best = cheapest(study, runs, policies, calibration, mine.held)
    if best is None:
        said = f"no setting of {', '.join(policies) or 'nobody'} holds as many segments as ours ({mine.held})"
        return Line(rule, calibration, rule == "peers", said)
    own, other = (t.gpu_hours if field == "gpu_hours" else t.actions for t in (mine, best))
    ratio = own.mean / other.mean if other.mean else (math.inf if own.mean else 1.0)
    return Line(
        rule, calibration, ratio <= bound,
        f"{name} {_number(own)} against {_number(other)} of {best.setting.text} ({best.held} of {len(study.headline)} held):"
        f" ratio {ratio:.3f}, wanted at most {bound:.2f}",
    )  # fmt: skip


def _number(value: Estimate) -> str:
    return f"{value.mean:,.1f}" + ("" if value.half is None else f" ± {value.half:,.1f}")


def _share(value: Estimate) -> str:
    return f"{value.mean:.3%}" + ("" if value.half is None else f" ± {value.half:.3%}")


def _some(names: list[str], shown: int = 5) -> str:
    left = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {left} more" if left > 0 else "")
