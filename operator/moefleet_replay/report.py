"""A comparison as JSON and as one HTML file that needs nothing beside it: verdict, frontiers, tables, method."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from moefleet_replay.compare import Setting, Study
from moefleet_replay.compare_jobs import Results
from moefleet_replay.compare_verdict import (
    Cell,
    Estimate,
    Key,
    Line,
    Total,
    cell,
    cheapest,
    holds,
    judged,
    ours,
    peers,
    total,
)
from moefleet_replay.report_method import METHOD
from moefleet_replay.report_page import page, table
from moefleet_replay.report_plots import Curve, Point, frontier, timeline
from moefleet_replay.result import Timeline

# Policies whose day is drawn beside ours, at their cheapest setting that holds most.
DRAWN = 3


def comparison_json(study: Study, results: Results, command: Sequence[str]) -> dict[str, Any]:
    """Everything that the page says, and every run."""
    runs = results.summaries
    return {
        "study": study.name,
        "study_sha256": study.digest,
        "command": shlex.join(command),
        "criterion": asdict(study.criterion),
        "verdict": [{**asdict(line), "word": line.word} for line in judged(study, runs)],
        "cheapest": [
            _total_json(t) for c in study.calibrations for _, t in best_of_each(study, runs, c) if t is not None
        ],
        "totals": [
            _total_json(t) for c in study.calibrations for s in study.settings if (t := total(study, runs, s, c)) is not None
        ],
        "tuned_elsewhere": [row for c in study.calibrations for row in tuned_elsewhere(study, runs, c)],
        "cells": [_cell_json(study, c) for c in _cells(study, runs)],
        "arrivals": [
            {"segment": segment, "seed": seed, "sha256": digest} for (segment, seed), digest in arrival_hashes(results).items()
        ],
        "failed": [{**asdict(k), "error": e} for k, e in results.failed.items()],
        "runs": [
            {**asdict(k), **r["summary"], "compile_s": r["compile_s"], "setup": r["setup"], "extra": r["extra"]}
            for k, r in results.runs.items()
        ],
    }  # fmt: skip


def comparison_html(study: Study, results: Results, command: Sequence[str]) -> str:
    runs = results.summaries
    lines = judged(study, runs)
    parts = [f"<h1>Scaling policies on {escape(study.name)}</h1>"]
    parts.append(
        f"<p>{len(results.runs)} runs of {len(study.settings)} settings of {len(study.policies)} policies on"
        f" {len(study.segments)} segments, seeds {', '.join(map(str, study.seeds))}, objective {escape(study.common.objective)}."
        f" Study {study.digest[:12]}.</p><pre>{escape(shlex.join(command))}</pre>"
    )
    parts.append("<h2>The criterion, fixed before the first run</h2>" + verdict_table(lines))
    for calibration in study.calibrations:
        parts.append(_calibration(study, results, calibration))
    parts.append("<h2>Against us</h2>" + _against(study, runs, lines))
    if results.failed:
        rows = [[k.setting, k.segment, k.calibration, str(k.seed), e] for k, e in results.failed.items()]
        parts.append(
            "<h2>Runs that failed</h2>" + table(["setting", "segment", "calibration", "seed", "error"], rows)
        )
    parts.append("<h2>Every cell</h2>" + _cell_table(study, runs))
    parts.append("<h2>Method</h2>" + _method(results))
    return page(f"moefleet: {study.name}", "\n".join(parts))


def verdict_table(lines: Sequence[Line]) -> str:
    rows = [[line.word, line.rule, line.calibration, line.text] for line in lines]
    return table(["", "rule", "calibration", "what was found"], rows, classes={0: "word"})


def best_of_each(
    study: Study, runs: Mapping[Key, Mapping[str, float]], calibration: str
) -> list[tuple[str, Total | None]]:
    """Each policy with its cheapest setting that holds all headline segments, or where none does, as many as any of its own does;
    None where none was run in full."""
    found: list[tuple[str, Total | None]] = []
    for policy in study.policies:
        if policy == study.criterion.ours and (mine := ours(study)):
            found.append((policy, total(study, runs, mine, calibration)))
            continue
        best = None
        for held in range(len(study.headline), -1, -1):
            best = cheapest(study, runs, [policy], calibration, held)
            if best is not None:
                break
        found.append((policy, best))
    return sorted(found, key=lambda f: (-f[1].held, f[1].gpu_hours.mean) if f[1] else (1, 0.0))


def tuned_elsewhere(
    study: Study, runs: Mapping[Key, Mapping[str, float]], calibration: str
) -> list[dict[str, Any]]:
    """Per policy: the cheapest setting that holds every tuning segment on the first seed, and what it does on the other headline ones."""
    if not study.tuning:
        return []
    seed = study.seeds[0]
    judged_on = [s.name for s in study.headline if s.name not in study.tuning]
    rows: list[dict[str, Any]] = []
    for policy in study.policies:
        able: list[tuple[float, Setting]] = []
        for setting in study.of(policy):
            found = [runs.get(Key(setting.text, name, calibration, seed)) for name in study.tuning]
            if all(r is not None and r["attainment"] >= study.criterion.attainment for r in found):
                able.append((sum(r["gpu_hours"] for r in found if r), setting))
        if not able:
            rows.append({"calibration": calibration, "policy": policy, "setting": None})
            continue
        chosen = min(able, key=lambda a: a[0])[1]
        there = {name: r for name in judged_on if (r := runs.get(Key(chosen.text, name, calibration, seed)))}
        rows.append(
            {
                "calibration": calibration, "policy": policy, "setting": chosen.text,
                "held": sum(r["attainment"] >= study.criterion.attainment for r in there.values()),
                "of": len(judged_on), "run": len(there),
                "worst": min((r["attainment"] for r in there.values()), default=None),
                "gpu_hours": sum(r["gpu_hours"] for r in there.values()),
                "scaling_actions": sum(r["scaling_actions"] for r in there.values()),
            }
        )  # fmt: skip
    return rows


def arrival_hashes(results: Results) -> dict[tuple[str, int], str]:
    """By segment and seed; a second hash for the same pair would be a fault of the simulator, and is shown as one."""
    found: dict[tuple[str, int], str] = {}
    for key, result in results.runs.items():
        said = str(result["setup"].get("arrivals_sha256", "not recorded"))
        if found.setdefault((key.segment, key.seed), said) != said:
            found[key.segment, key.seed] = "DIFFERS BETWEEN RUNS"
    return found


def _calibration(study: Study, results: Results, calibration: str) -> str:
    runs = results.summaries
    mine = ours(study)
    own = total(study, runs, mine, calibration) if mine else None
    oracle = cheapest(study, runs, [study.criterion.oracle], calibration, own.held if own else 0)
    best = best_of_each(study, runs, calibration)
    rows = []
    for policy, found in best:
        if found is None:
            rows.append([policy, "none was run in full", *[""] * 7])
            continue
        rows.append(
            [
                policy, found.setting.text, f"{found.held} of {len(study.headline)}", _percent(found.worst),
                _percent(found.attainment), _estimate(found.gpu_hours),
                f"{found.gpu_hours.mean / own.gpu_hours.mean:.3f}" if own else "",
                f"{found.gpu_hours.mean / oracle.gpu_hours.mean:.3f}" if oracle else "", _estimate(found.actions),
            ]
        )  # fmt: skip
    heads = ["policy", "setting", "segments held", "worst segment", "all requests", "GPU-hours", "to ours", "to the oracle", "scaling actions"]  # fmt: skip
    parts = [
        f"<h2>Calibration {escape(calibration)}</h2>",
        "<h3>Cheapest setting of each policy that holds the most headline segments</h3>",
        table(heads, rows),
    ]
    if elsewhere := tuned_elsewhere(study, runs, calibration):
        shown = [
            [r["policy"], r["setting"] or "none holds the tuning segments"]
            + (
                [f"{r['held']} of {r['of']}" + ("" if r["run"] == r["of"] else f" ({r['run']} run)"), _percent(r["worst"]), f"{r['gpu_hours']:,.1f}", f"{r['scaling_actions']:,.0f}"]
                if r["setting"]
                else [""] * 4
            )
            for r in elsewhere
        ]  # fmt: skip
        parts += [
            f"<h3>Tuned on {escape(', '.join(study.tuning))}, judged on the other headline segments (first seed)</h3>",
            table(["policy", "setting", "segments held", "worst", "GPU-hours", "scaling actions"], shown),
        ]
    parts.append(frontier(_pooled_curves(study, runs, calibration), study.criterion.attainment, f"all headline segments, {calibration} (filled: run in full; star: shipped default)"))  # fmt: skip
    for segment in study.segments:
        curves = _segment_curves(study, runs, segment.name, calibration)
        parts.append(frontier(curves, study.criterion.attainment, f"{segment.name}, {calibration}"))
    parts += _days(study, results, calibration, best)
    return "\n".join(parts)


def _days(
    study: Study, results: Results, calibration: str, best: list[tuple[str, Total | None]]
) -> list[str]:
    """One segment as time went by: ours, the oracle, and the best peers."""
    first = ours(study)
    chosen = [first.text] if first else []
    chosen += [t.setting.text for p, t in best if t is not None and p in peers(study)][:DRAWN]
    parts: list[str] = []
    segment = (study.headline or study.segments)[0].name
    for text in chosen:
        result = results.runs.get(Key(text, segment, calibration, study.seeds[0]))
        if result and result.get("timeline"):
            parts.append(
                timeline(
                    Timeline(**result["timeline"]),
                    f"{text} on {segment}, {calibration}, seed {study.seeds[0]}",
                    study.criterion.attainment,
                )
            )
    return parts


def _pooled_curves(study: Study, runs: Mapping[Key, Mapping[str, float]], calibration: str) -> list[Curve]:
    def point(setting: Setting) -> Point | None:
        found = total(study, runs, setting, calibration)
        if found is None or found.segments < len(study.headline):
            return None
        return Point(found.gpu_hours.mean, found.attainment, found.gpu_hours.half or 0.0, 0.0, setting.default, found.complete)  # fmt: skip

    return _curves(study, point)


def _segment_curves(
    study: Study, runs: Mapping[Key, Mapping[str, float]], segment: str, calibration: str
) -> list[Curve]:
    (where,) = (s for s in study.segments if s.name == segment)

    def point(setting: Setting) -> Point | None:
        found = cell(study, runs, setting, where, calibration)
        if found is None:
            return None
        return Point(
            found.gpu_hours.mean, found.attainment.mean, found.gpu_hours.half or 0.0, found.attainment.half or 0.0,
            setting.default, found.seeds == study.seeds,
        )  # fmt: skip

    return _curves(study, point)


def _curves(study: Study, point: Any) -> list[Curve]:
    return [
        Curve(policy, tuple(p for s in study.of(policy) if (p := point(s)) is not None), policy == study.criterion.ours, policy == study.criterion.oracle)
        for policy in study.policies
    ]  # fmt: skip


def against_us(study: Study, runs: Mapping[Key, Mapping[str, float]], lines: Sequence[Line]) -> list[str]:
    """Lines that did not pass, segments that ours does not hold, and segments on which some setting of a peer holds for less."""
    said = [
        f"{line.word}: {line.rule} ({line.calibration}): {line.text}" for line in lines if not line.passed
    ]
    mine = ours(study)
    for calibration in study.calibrations:
        for segment in study.segments:
            own = cell(study, runs, mine, segment, calibration) if mine else None
            if own is None:
                continue
            if not holds(study, own):
                said.append(f"{segment.name} ({calibration}): ours has {_percent(own.attainment.mean)}")
            cells = [c for s in study.settings if s.policy in peers(study) and (c := cell(study, runs, s, segment, calibration))]  # fmt: skip
            better = [c for c in cells if holds(study, c) and c.gpu_hours.mean < own.gpu_hours.mean]
            if better:
                best = min(better, key=lambda c: c.gpu_hours.mean)
                said.append(
                    f"{segment.name} ({calibration}): {len(better)} settings of peers hold for less, the cheapest {best.setting.text} with"
                    f" {_percent(best.attainment.mean)} for {best.gpu_hours.mean:,.1f} GPU-hours; ours {_percent(own.attainment.mean)} for {own.gpu_hours.mean:,.1f}"
                )
    return said


def _against(study: Study, runs: Mapping[Key, Mapping[str, float]], lines: Sequence[Line]) -> str:
    said = against_us(study, runs, lines)
    if not said:
        return "<p>Nothing was found against ours in these runs.</p>"
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in said) + "</ul>"


def _cells(study: Study, runs: Mapping[Key, Mapping[str, float]]) -> list[Cell]:
    return [
        c
        for calibration in study.calibrations
        for segment in study.segments
        for setting in study.settings
        if (c := cell(study, runs, setting, segment, calibration)) is not None
    ]


def _cell_table(study: Study, runs: Mapping[Key, Mapping[str, float]]) -> str:
    rows = [
        [
            c.calibration, c.segment.name, c.setting.text + (" (default)" if c.setting.default else ""), str(len(c.seeds)),
            _percent(c.attainment.mean) + ("" if c.attainment.half is None else f" ± {100 * c.attainment.half:.3f}"),
            _estimate(c.gpu_hours), _estimate(c.actions), "yes" if holds(study, c) else "no",
        ]
        for c in _cells(study, runs)
    ]  # fmt: skip
    heads = ["calibration", "segment", "setting", "seeds", "attainment", "GPU-hours", "actions", "holds"]
    return f"<details><summary>{len(rows)} cells</summary>{table(heads, rows)}</details>"


def _method(results: Results) -> str:
    parts = [f"<h3>{escape(head)}</h3>" + "".join(f"<p>{escape(t)}</p>" for t in texts) for head, texts in METHOD]  # fmt: skip
    hashes = [[segment, str(seed), digest] for (segment, seed), digest in arrival_hashes(results).items()]
    parts.append("<h3>Hashes of the arrivals</h3>" + table(["segment", "seed", "sha256"], hashes))
    return "\n".join(parts)


def _total_json(found: Total) -> dict[str, Any]:
    return {
        "policy": found.setting.policy, "setting": found.setting.text, "default": found.setting.default,
        "calibration": found.calibration, "complete": found.complete, "segments": found.segments, "held": found.held,
        "attainment": found.attainment, "worst": found.worst, "gpu_hours": asdict(found.gpu_hours), "scaling_actions": asdict(found.actions),
    }  # fmt: skip


def _cell_json(study: Study, found: Cell) -> dict[str, Any]:
    return {
        "setting": found.setting.text, "policy": found.setting.policy, "default": found.setting.default,
        "knob": found.setting.knob, "value": None if found.setting.knob is None else found.setting.value,
        "segment": found.segment.name, "headline": found.segment.headline, "calibration": found.calibration, "seeds": found.seeds,
        "attainment": asdict(found.attainment), "gpu_hours": asdict(found.gpu_hours), "scaling_actions": asdict(found.actions),
        "requests": found.requests, "holds": holds(study, found),
    }  # fmt: skip


def _estimate(value: Estimate) -> str:
    return f"{value.mean:,.1f}" + ("" if value.half is None else f" ± {value.half:,.1f}")


def _percent(share: float) -> str:
    return f"{100 * share:.3f} %"
