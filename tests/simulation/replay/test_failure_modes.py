"""F1 to F14: fourteen ways in which autoscalers of token fleets fail, each as one small story on a synthetic trace.

A story runs the peers that have the failure beside those that do not, and says in one sentence what must be seen; our own policy
runs in every story at its one default setting and must not have the failure. `pytest -s` prints the tables. Replicas are eight H800,
cold starts lognormal (median 240 s, 95 % 420 s), one in ten fails and begins again: nothing here is slower or faster than in a study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from moefleet_perf import load_calibration, with_limits
from moefleet_replay import fleet, policies
from moefleet_replay.arrivals import Arrivals, ArrivalSource
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.result import RunResult
from moefleet_replay.traces.synthetic import open_synthetic

NODE = load_calibration("deepseek-v2-8xh800")
OURS = "moefleet"
SEED = 1
# Two levels of the same traffic: about 1.4 and 4.2 replicas of need.
LOW, HIGH = 100.0, 300.0

Runs = Mapping[str, RunResult]


@dataclass(frozen=True)
class Story:
    mode: str
    claim: str
    shape: str
    values: Mapping[str, float]
    # Label to policy text; a label may carry changes of the setup in `changes`.
    runs: Mapping[str, str]
    judge: Callable[[Runs], None]
    ours: Callable[[Runs], None]
    setup: Mapping[str, object] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    hit: float = 0.0


@dataclass(frozen=True)
class Hitting:
    """The same requests, of which a warm replica has a share in its prefix cache."""

    source: ArrivalSource
    share: float

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def duration_s(self) -> float:
        return self.source.duration_s

    def between(self, start_s: float, end_s: float) -> Arrivals:
        found = self.source.between(start_s, end_s)
        return replace(found, cached_tokens=(found.input_tokens * self.share).astype(np.int32))


def run(story: Story, label: str, policy: str, seed: int = SEED) -> RunResult:
    source: ArrivalSource = open_synthetic(story.shape, {"noise": 0, **story.values}, seed=seed)
    if story.hit:
        source = Hitting(source, story.hit)
    spec, knobs = policies.parse(policy)
    given = {**story.setup, **story.changes.get(label, {})}
    setup = FleetSetup(
        **{"calibration": NODE, "max_replicas": 40, "seed": seed, "policy_name": label, **given}
    )
    return fleet.run(
        source, spec.build(knobs), setup, foresees=spec.foresees, rebuild=lambda: spec.build(knobs)
    )


def target_at(result: RunResult, at_s: float) -> int:
    before = [d for d in result.decisions if d.at_s <= at_s]
    return before[-1].after if before else result.decisions[0].before


def need_most(result: RunResult) -> float:
    return max(result.timeline.need)


def minutes_short(result: RunResult, from_s: float, to_s: float) -> int:
    """Minutes in which fewer were ready than needed."""
    t = result.timeline
    return sum(r < n for m, r, n in zip(t.minute_s, t.ready, t.need, strict=True) if from_s <= m < to_s)


def draining_share(result: RunResult) -> float:
    t = result.timeline
    return sum(t.draining) * 60 * 8 / 3600 / result.summary.gpu_hours


def attained(result: RunResult, from_s: float = 0.0, to_s: float = 1e9) -> float:
    """Share inside both limits of the requests that came in these minutes."""
    t = result.timeline
    inside = [(r, w) for m, r, w in zip(t.minute_s, t.requests, t.within, strict=True) if from_s <= m < to_s]
    return sum(w for _, w in inside) / sum(r for r, _ in inside)


# --- what is to be seen ----------------------------------------------------------------------------------------


def _f1(runs: Runs) -> None:
    served, arriving = runs["served tokens"], runs["arriving tokens"]
    assert attained(served, 1800) < attained(arriving, 1800) - 0.08
    # What is served cannot be more than what there is: no sight of how much is missing.
    assert target_at(served, 1920) < target_at(arriving, 1920)


def _f2(runs: Runs) -> None:
    for label in ("AIBrix APA", "Knative"):
        assert runs[label].summary.peak_replicas > 6 * need_most(runs[label])
    assert runs["pending counted"].summary.peak_replicas < 2.5 * need_most(runs["pending counted"])


def _f3(runs: Runs) -> None:
    frozen, free = runs["Dynamo load"], runs["HPA"]
    raises = [d for d in frozen.decisions if d.after > d.before and d.at_s >= 1200]
    assert all(d.after == d.before + 1 for d in raises)
    assert attained(frozen, 1200) < 0.5 < attained(free, 1200) - 0.2


def _f4(runs: Runs) -> None:
    assert attained(runs["HPA 60 %"], 3600, 4000) > 0.99
    assert attained(runs["HPA 60 %"], 4200) < 0.75


def _f5(runs: Runs) -> None:
    assert attained(runs["HPA 50 %"], 3000, 3700) > 0.99
    assert attained(runs["HPA 50 %"], 3700) < 0.8
    assert runs["HPA 50 %"].extra["preemptions"] > 5000


def _f6(runs: Runs) -> None:
    blind = runs["KV at 60 %"]
    assert attained(blind, 1500) < 0.1
    assert max(d.after for d in blind.decisions) <= 2 < need_most(blind)


def _f7(runs: Runs) -> None:
    convex, straight = runs["concurrency 70 %"], runs["tokens 70 %"]
    # Nothing changes, and it goes up and down.
    assert convex.summary.scaling_actions > 20 > straight.summary.scaling_actions + 15
    assert convex.summary.peak_replicas > 3 * need_most(convex)


def _f8(runs: Runs) -> None:
    assert attained(runs["Dynamo, ITL as wanted"]) < 0.7
    assert attained(runs["Dynamo, ITL at 30 %"]) > attained(runs["Dynamo, ITL as wanted"]) + 0.2


def _f9(runs: Runs) -> None:
    assert attained(runs["KEDA"]) > 0.99
    assert min(d.after for d in runs["KEDA, lost"].decisions if 1800 <= d.at_s < 3000) == 1
    assert attained(runs["KEDA, lost"], 1800, 4200) < 0.6


def _f10(runs: Runs) -> None:
    assert max(_moved(runs, "Knative"), _moved(runs, "AIBrix KPA")) >= 2


def _moved(runs: Runs, label: str) -> int:
    """Replicas between the run with and the one without a restart at 1500 s, at most, within one cold start."""
    plain, again = runs[label], runs[f"{label}, again"]
    return max(abs(target_at(plain, s) - target_at(again, s)) for s in range(1500, 1740))


def _f11(runs: Runs) -> None:
    # Only after the answers have ended, minutes later, it is known how long they are.
    assert minutes_short(runs["Dynamo"], 3700, 5400) >= 10
    assert attained(runs["Dynamo"], 3700) < 0.5
    assert attained(runs["knows the lengths"], 3700) > 0.99


def _f12(runs: Runs) -> None:
    assert runs["Knative"].summary.scaling_actions > 100
    assert attained(runs["no hold"]) < attained(runs["hold 300 s"]) - 0.1
    assert runs["no hold"].summary.scaling_actions > runs["hold 300 s"].summary.scaling_actions


def _f13(runs: Runs) -> None:
    for label in ("HPA 70 %", "Dynamo"):
        assert attained(runs[label], 900, 2400) < attained(runs[f"{label}, warm"], 900, 2400) - 0.1


def _f14(runs: Runs) -> None:
    assert draining_share(runs["no hold"]) > max(0.08, 2 * draining_share(runs["hold 300 s"]))


def beats(label: str, by: float, from_s: float = 0.0, to_s: float = 1e9) -> Callable[[Runs], None]:
    def judge(runs: Runs) -> None:
        ours, theirs = attained(runs[OURS], from_s, to_s), attained(runs[label], from_s, to_s)
        assert ours > theirs + by, f"{OURS} {ours:.1%}, {label} {theirs:.1%}"

    return judge


def _ours_does_not_overshoot(runs: Runs) -> None:
    assert runs[OURS].summary.peak_replicas <= 4 * need_most(runs[OURS])


def _ours_does_not_swing(runs: Runs) -> None:
    assert runs[OURS].summary.scaling_actions <= 4
    assert attained(runs[OURS]) > 0.99


def _ours_holds_without_metrics(runs: Runs) -> None:
    blind = runs[f"{OURS}, lost"]
    assert all(d.after >= d.before for d in blind.decisions if 1800 <= d.at_s < 3000)
    assert attained(blind, 1800, 4200) > 0.99
    # When they are back, what came meanwhile is no surge.
    assert blind.summary.peak_replicas <= runs[OURS].summary.peak_replicas + 1


def _ours_goes_on_after_a_restart(runs: Runs) -> None:
    assert _moved(runs, OURS) <= 1


def _ours_cycles_less(runs: Runs) -> None:
    assert attained(runs[OURS]) > 0.99
    assert runs[OURS].summary.scaling_actions < runs["no hold"].summary.scaling_actions


def _ours_drains_little(runs: Runs) -> None:
    assert draining_share(runs[OURS]) < 0.07
    assert attained(runs[OURS]) > 0.95


STEP = {"duration_s": 4800, "rate": LOW, "at_s": 1800, "factor": HIGH / LOW}
SHIFT = {"duration_s": 6900, "rate": 200, "at_s": 3700, "over_s": 1200}
ENOUGH = {"initial_replicas": 6}
STORIES = (
    Story(
        "F1", "served tokens saturate where replicas do: the same target sees less of a surge",
        "step", STEP, {"served tokens": "hpa-served:target=0.9", "arriving tokens": "hpa-arrival:target=0.9"},
        _f1, beats("served tokens", 0.2, 1800), {"initial_replicas": 2},
    ),
    Story(
        "F2", "replicas that are on their way are not counted, so more and more are made",
        "step", STEP, {"AIBrix APA": "aibrix-apa", "Knative": "knative", "pending counted": "hpa-arrival"},
        _f2, _ours_does_not_overshoot, ENOUGH,
    ),
    Story(
        "F3", "nothing is decided while a replica starts: one more per cold start",
        "ramp", {"duration_s": 3600, "rate": LOW, "at_s": 1200, "over_s": 600, "factor": 4},
        {"Dynamo load": "dynamo-load", "HPA": "hpa-arrival"}, _f3, beats("Dynamo load", 0.4, 1200), ENOUGH,
    ),
    Story(
        "F4", "tokens per second mean another load when chat turns into reasoning",
        "mix-shift", SHIFT, {"HPA 60 %": "hpa-arrival:target=0.6"}, _f4, beats("HPA 60 %", 0.15, 3700), ENOUGH,
    ),
    Story(
        "F5", "long contexts fill small caches while token rates look harmless",
        "mix-shift", {"duration_s": 6700, "rate": LOW, "at_s": 3700, "over_s": 2400, "share": 0.5},
        {"HPA 50 %": "hpa-arrival:target=0.5"}, _f5, beats("HPA 50 %", 0.2, 3700),
        {**ENOUGH, "preempting": True, "calibration": with_limits(NODE, kv_max_tokens=700_000)},
    ),
    Story(
        "F6", "the cache of an MLA model is nearly empty when the replica is full",
        "ramp", {"duration_s": 3600, "rate": LOW, "at_s": 1200, "over_s": 1200, "factor": 3},
        {"KV at 60 %": "hpa-kv"}, _f6, beats("KV at 60 %", 0.6, 1200), {"initial_replicas": 2},
    ),
    Story(
        "F7", "concurrency grows without bound near capacity: a target on it swings under a constant load",
        "constant", {"duration_s": 4800, "rate": HIGH},
        {"concurrency 70 %": "hpa-concurrency:target=0.7", "tokens 70 %": "hpa-arrival:target=0.7"},
        _f7, _ours_does_not_swing, ENOUGH,
    ),
    Story(
        "F8", "sized for what is there now, while a new replica takes four minutes",
        "sinusoid", {"duration_s": 5400, "low": LOW, "high": HIGH, "period_s": 3600, "noise": 1},
        {"Dynamo, ITL as wanted": "dynamo-throughput", "Dynamo, ITL at 30 %": "dynamo-throughput:itl_share=0.3"},
        _f8, beats("Dynamo, ITL as wanted", 0.3), ENOUGH,
    ),
    Story(
        "F9", "lost metrics are read as no load",
        "constant", {"duration_s": 5400, "rate": HIGH},
        {"KEDA": "keda:target=0.5", "KEDA, lost": "keda:target=0.5", f"{OURS}, lost": OURS},
        _f9, _ours_holds_without_metrics, ENOUGH,
        {label: {"lost": ((1800.0, 3000.0),)} for label in ("KEDA, lost", f"{OURS}, lost")},
    ),
    Story(
        "F10", "a controller begins anew in the fall of a surge, without its windows",
        "surge",
        {"duration_s": 2400, "rate": 150, "at_s": 600, "factor": 2, "rise_s": 300, "hold_s": 600, "fall_s": 60},
        {
            "Knative": "knative", "Knative, again": "knative",
            "AIBrix KPA": "aibrix-kpa", "AIBrix KPA, again": "aibrix-kpa", f"{OURS}, again": OURS,
        },
        _f10, _ours_goes_on_after_a_restart, ENOUGH,
        {f"{label}, again": {"restarts": (1500,)} for label in ("Knative", "AIBrix KPA", OURS)},
    ),
    Story(
        "F11", "lengths are known from answers that have ended, and the long ones still run",
        "mix-shift", {"duration_s": 5400, "rate": 200, "at_s": 3700, "over_s": 60, "factor": 1.5},
        {"Dynamo": "dynamo-throughput:itl_share=0.35", "knows the lengths": "oracle"},
        _f11, beats("Dynamo", 0.25, 3700), ENOUGH,
    ),
    Story(
        "F12", "a window shorter than a cold start turns waves into cycles",
        "sinusoid", {"duration_s": 5400, "low": LOW, "high": HIGH, "period_s": 900, "noise": 1},
        {"Knative": "knative", "no hold": "hpa-arrival:hold_s=0", "hold 300 s": "hpa-arrival"},
        _f12, _ours_cycles_less, ENOUGH,
    ),
    Story(
        "F13", "replicas that come in a surge have cold caches: prompts cost most just then",
        "surge",
        {"duration_s": 3000, "rate": HIGH, "at_s": 900, "factor": 2.5, "rise_s": 600, "hold_s": 900, "fall_s": 300},
        {
            "HPA 70 %, warm": "hpa-arrival:target=0.7", "HPA 70 %": "hpa-arrival:target=0.7",
            "Dynamo, warm": "dynamo-throughput:itl_share=0.35", "Dynamo": "dynamo-throughput:itl_share=0.35",
        },
        _f13, beats("HPA 70 %", 0.1, 900, 2400), {**ENOUGH, "warm_s": 900.0},
        {label: {"warm_s": 0.0} for label in ("HPA 70 %, warm", "Dynamo, warm")}, hit=0.8,
    ),
    Story(
        "F14", "replicas that drain long answers hold their GPUs for minutes",
        "mix-shift", {"duration_s": 7200, "rate": 200, "at_s": 0, "over_s": 1, "noise": 1},
        {"no hold": "hpa-arrival:hold_s=0", "hold 300 s": "hpa-arrival"}, _f14, _ours_drains_little, ENOUGH,
    ),
)  # fmt: skip


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.mode)
def test_what_peers_do_and_what_ours_does(story):
    runs = {label: run(story, label, policy) for label, policy in {**story.runs, OURS: OURS}.items()}
    print(f"\n{story.mode}: {story.claim} (seed {SEED})")
    for label, result in runs.items():
        s = result.summary
        print(
            f"  {label:22} attainment {s.attainment:6.1%}  GPU-hours {s.gpu_hours:6.1f}  peak {s.peak_replicas:3}"
            f" of {need_most(result):.1f} needed  actions {s.scaling_actions:3}  draining {draining_share(result):5.1%}"
        )
    story.judge(runs)
    story.ours(runs)


def test_all_fourteen_are_told():
    assert [story.mode for story in STORIES] == [f"F{number}" for number in range(1, 15)]
