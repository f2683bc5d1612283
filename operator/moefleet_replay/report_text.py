"""A comparison as Markdown: the verdict, each policy's best, and every cell, for a file that stands beside the study."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from moefleet_replay.compare import Study
from moefleet_replay.compare_jobs import Results
from moefleet_replay.compare_verdict import cell, cheapest, holds, judged, ours, total
from moefleet_replay.report import against_us, best_of_each


def comparison_markdown(study: Study, results: Results, command: Sequence[str]) -> str:
    """A cell reads `99.12 % 1,234 h`; ~ marks an attainment below the criterion, an empty cell was not run."""
    runs = results.summaries
    lines = judged(study, runs)
    parts = [
        f"{len(results.runs)} runs of {len(study.settings)} settings of {len(study.policies)} policies, seeds"
        f" {', '.join(map(str, study.seeds))}; study {study.name}, sha256 {study.digest[:12]}.",
        f"    {shlex.join(command)}",
        "## Verdict",
        _table(["", "rule", "calibration", "what was found"], [[x.word, x.rule, x.calibration, x.text] for x in lines]),
    ]  # fmt: skip
    for calibration in study.calibrations:
        parts += [f"## Calibration {calibration}", _best(study, results, calibration), _cells(study, results, calibration)]  # fmt: skip
    said = against_us(study, runs, lines)
    parts += ["## Against us", "\n".join(f"- {s}" for s in said) or "Nothing was found against ours in these runs."]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _best(study: Study, results: Results, calibration: str) -> str:
    runs = results.summaries
    mine = ours(study)
    own = total(study, runs, mine, calibration) if mine else None
    oracle = cheapest(study, runs, [study.criterion.oracle], calibration, own.held if own else 0)
    rows = []
    for policy, found in best_of_each(study, runs, calibration):
        if found is None:
            rows.append([policy, "none was run on all headline segments", *[""] * 6])
            continue
        hours = found.gpu_hours.mean
        rows.append(
            [
                policy, f"`{found.setting.text}`", f"{found.held} of {len(study.headline)}", f"{found.worst:.2%}", f"{hours:,.0f}",
                f"{hours / own.gpu_hours.mean:.3f}" if own and own.complete else "",
                f"{hours / oracle.gpu_hours.mean:.3f}" if oracle else "", f"{found.actions.mean:,.0f}",
            ]
        )  # fmt: skip
    heads = ["policy", "cheapest setting that holds most", "held", "worst", "GPU-hours", "to ours", "to the oracle", "actions"]  # fmt: skip
    return _table(heads, rows)


def _cells(study: Study, results: Results, calibration: str) -> str:
    runs = results.summaries
    rows = []
    for setting in study.settings:
        found = [cell(study, runs, setting, segment, calibration) for segment in study.segments]
        if any(found):
            shown = [
                ""
                if c is None
                else f"{'' if holds(study, c) else '~'}{c.attainment.mean:.2%} {c.gpu_hours.mean:,.0f} h"
                for c in found
            ]
            rows.append([f"`{setting.text}`" + (" (default)" if setting.default else ""), *shown])
    names = [s.name + ("" if s.headline else " (no headline)") for s in study.segments]
    return _table(["setting", *names], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
