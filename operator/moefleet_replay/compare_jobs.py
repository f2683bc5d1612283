"""A study run in parallel processes: which runs come next is a pure function of those that are done, so a cut study goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

from moefleet_replay.compare import Setting, Study, StudyError
from moefleet_replay.compare_cache import Cache, code_digest, run_key
from moefleet_replay.compare_run import RunArguments, checked, execute_to_json
from moefleet_replay.compare_verdict import Key, Runs, cell, dear, fails, ours, total

Execute = Callable[[RunArguments], dict[str, Any]]


@dataclass(slots=True)
class Results:
    """`runs` hold what `RunResult` says, as JSON; `failed` the error of a run that could not be made."""

    runs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)

    @property
    def summaries(self) -> dict[Key, Mapping[str, float]]:
        return {key: result["summary"] for key, result in self.runs.items()}


def next_wave(study: Study, runs: Runs, failed: Collection[Key] = (), *, prune: bool) -> list[Key]:
    """Runs that may be made side by side now; empty when the study is done. What is left out is told in the study's file.

    In order: everybody's first seed, one headline segment after the other, without settings that have failed one; ours at its
    default with all seeds, and the segments without a headline; then for each policy the other seeds of its cheapest setting
    that may hold all, until one does.
    """

    def missing(setting: Setting, segments: Collection[str], seeds: Collection[int], calibration: str) -> list[Key]:  # fmt: skip
        keys = [Key(setting.text, s, calibration, seed) for s in segments for seed in seeds]
        return [k for k in keys if k not in runs and k not in failed]

    every = [s.name for s in study.segments]
    if not (prune and study.pruning.enabled):
        return [k for segment in every for c in study.calibrations for s in study.settings for k in missing(s, [segment], study.seeds, c)]  # fmt: skip
    pairs = [(s, c) for c in study.calibrations for s in study.settings]
    lost = {(s.text, c): _failed_segments(study, runs, s, c) for s, c in pairs}
    headline = [s.name for s in study.headline]
    for segment in headline:
        alive = [(s, c) for s, c in pairs if s.default or not lost[s.text, c]]
        if wave := [k for s, c in alive for k in missing(s, [segment], study.seeds[:1], c)]:
            return wave
    mine = ours(study)
    wave = [k for c in study.calibrations if mine for k in missing(mine, headline, study.seeds, c)]
    others = [name for name in every if name not in headline]
    wave += [k for s, c in pairs for k in missing(s, others, study.seeds, c)]
    if wave:
        return wave
    for policy in study.policies:
        for calibration in study.calibrations:
            candidates = [
                s
                for s in study.of(policy)
                if not lost[s.text, calibration]
                and missing(s, headline, study.seeds, calibration)
                and not dear(study, runs, s, calibration, len(headline))
                and not any(k in failed for k in _keys(study, s, calibration))
            ]
            if candidates:
                chosen = min(candidates, key=lambda s: _cost(study, runs, s, calibration))
                wave += missing(chosen, headline, study.seeds, calibration)
    return wave


def execute_here(arguments: RunArguments) -> dict[str, Any]:
    """In a process of its own, with the code that it has: which that is goes with the result."""
    digest = code_digest(checked(arguments).spec.name)
    return {**execute_to_json(arguments), "code": digest}


def run_study(
    study: Study,
    cache: Cache,
    *,
    jobs: int,
    prune: bool = True,
    told: Callable[[Results, int], None] = lambda _results, _waiting: None,
    execute: Execute = execute_here,
) -> Results:
    """`told` hears after each run how many of the wave are left. With one job, runs are made in this process.

    Raises StudyError when the code is edited meanwhile; what was made before stays in the cache.
    """
    results = Results()
    settings = {s.text: s for s in study.settings}
    segments = {s.name: s for s in study.segments}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None
    try:
        while wave := next_wave(study, results.summaries, results.failed, prune=prune):
            left: list[tuple[Key, RunArguments, str]] = []
            for key in wave:
                arguments = study.arguments(
                    settings[key.setting], segments[key.segment], key.calibration, key.seed
                )
                file = run_key(arguments)
                if (known := cache.load(file)) is not None:
                    results.runs[key] = known
                else:
                    left.append((key, arguments, file))
            for key, made, file in _made(left, pool, execute, results.failed):
                _same_code(key, made)
                cache.store(file, made)
                results.runs[key] = made
                told(results, sum(k not in results.runs and k not in results.failed for k in wave))
    finally:
        if pool is not None:
            # What runs is ended with its process: its result would come after nobody waits for it.
            pool.shutdown(wait=True, cancel_futures=True)
    return results


def cached_runs(study: Study, cache: Cache) -> tuple[Study, Results]:
    """What the cache has of a study, and the study cut to what can be judged by it: settings that have run at all, and segments on which
    ours has (all, when ours has not run on any). The name says what was cut."""
    results = Results()
    for setting in study.settings:
        for segment in study.segments:
            for calibration in study.calibrations:
                for seed in study.seeds:
                    known = cache.load(run_key(study.arguments(setting, segment, calibration, seed)))
                    if known is not None:
                        results.runs[Key(setting.text, segment.name, calibration, seed)] = known
    there = {key.setting for key in results.runs}
    mine = ours(study)
    every = [(c, s) for c in study.calibrations for s in study.seeds]
    segments = tuple(
        g
        for g in study.segments
        if mine and all(Key(mine.text, g.name, c, s) in results.runs for c, s in every)
    )
    if not any(g.headline for g in segments):
        segments = study.segments
    left = [s.text for s in study.settings if s.text not in there]
    left += [g.name for g in study.segments if g not in segments]
    cut = replace(
        study,
        name=f"{study.name} (not run: {', '.join(left)})" if left else study.name,
        settings=tuple(s for s in study.settings if s.text in there),
        segments=segments,
        tuning=tuple(name for name in study.tuning if name in {g.name for g in segments}),
    )
    kept = {g.name for g in segments}
    return cut, Results({key: run for key, run in results.runs.items() if key.segment in kept})


def _same_code(key: Key, made: dict[str, Any]) -> None:
    """A file that is edited while a study runs would put results of two programs under one key."""
    ours_now = code_digest(key.setting.partition(":")[0]) if "code" in made else None
    if made.get("code") != ours_now:
        raise StudyError(
            "the code changed while the study ran: start it again, from a checkout that nobody edits"
        )


def _made(
    left: list[tuple[Key, RunArguments, str]],
    pool: ProcessPoolExecutor | None,
    execute: Execute,
    failed: dict[Key, str],
) -> Any:
    """Yields (key, result, file) as they come; an error of one run does not take the others with it."""
    if pool is None:
        for key, arguments, file in left:
            try:
                made = execute(arguments)
            except Exception as error:
                failed[key] = f"{type(error).__name__}: {error}"
                continue
            yield key, made, file
        return
    waiting: dict[Future[dict[str, Any]], tuple[Key, str]] = {
        pool.submit(execute, arguments): (key, file) for key, arguments, file in left
    }
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            key, file = waiting.pop(future)
            try:
                made = future.result()
            except Exception as error:
                failed[key] = f"{type(error).__name__}: {error}"
                continue
            yield key, made, file


def _failed_segments(study: Study, runs: Runs, setting: Setting, calibration: str) -> list[str]:
    found = (cell(study, runs, setting, s, calibration) for s in study.headline)
    return [c.segment.name for c in found if c is not None and fails(study, c)]


def _keys(study: Study, setting: Setting, calibration: str) -> list[Key]:
    return [Key(setting.text, s.name, calibration, seed) for s in study.headline for seed in study.seeds]


def _cost(study: Study, runs: Runs, setting: Setting, calibration: str) -> float:
    found = total(study, runs, setting, calibration)
    return found.gpu_hours.mean if found else math.inf
