"""Studies by hand, and worlds in which every run's outcome is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moefleet_replay.compare import Criterion, Pruning, Segment, Setting, Study
from moefleet_replay.compare_run import RunArguments, TraceArguments
from moefleet_replay.compare_verdict import Key

World = Callable[[Key], Mapping[str, float]]


def setting(policy: str, value: float, *, default: bool = False) -> Setting:
    # `static:replicas=` is a knob that every value suits.
    return Setting(policy, policy if default else f"{policy}:knob={value:g}", "knob", value, default)


def make_study(
    settings: tuple[Setting, ...],
    *,
    segments: tuple[str, ...] = ("a", "b"),
    others: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    calibrations: tuple[str, ...] = ("announcement",),
    tuning: tuple[str, ...] = (),
) -> Study:
    trace = TraceArguments(trace="synthetic:constant")
    return Study(
        name="by hand",
        criterion=Criterion("ours", "oracle", "calm", 0.99, 0.85, 1.10, 1.0),
        segments=(*(Segment(n, trace, True) for n in segments), *(Segment(n, trace, False) for n in others)),
        settings=settings,
        seeds=seeds,
        calibrations=calibrations,
        tuning=tuning,
        pruning=Pruning(True, 0.003),
        common=RunArguments(trace, "static"),
        digest="0" * 64,
    )


def outcome(
    attainment: float, gpu_hours: float, actions: float = 10, requests: float = 1000
) -> dict[str, float]:
    return {
        "attainment": attainment,
        "gpu_hours": gpu_hours,
        "scaling_actions": actions,
        "requests": requests,
    }


def all_runs(study: Study, world: World) -> dict[Key, Mapping[str, float]]:
    keys = [
        Key(s.text, g.name, c, seed)
        for s in study.settings
        for g in study.segments
        for c in study.calibrations
        for seed in study.seeds
    ]
    return {key: world(key) for key in keys}


def four_policies() -> Study:
    """Ours, the oracle, the calm peer at two settings and another peer."""
    return make_study(
        (
            setting("ours", 0, default=True),
            setting("oracle", 0, default=True),
            setting("calm", 1, default=True),
            setting("calm", 2),
            setting("other", 1, default=True),
        )
    )
