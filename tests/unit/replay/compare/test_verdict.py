"""The criterion as code: each rule passes, fails, or says that it cannot know."""

from __future__ import annotations

import math

import pytest
from moefleet_replay.compare import Study
from moefleet_replay.compare_jobs import next_wave
from moefleet_replay.compare_verdict import (
    Key,
    cheapest,
    estimate,
    judged,
    total,
    undecidable,
)
from moefleet_studies import all_runs, four_policies, make_study, outcome, setting


@pytest.fixture
def four() -> Study:
    return four_policies()


GOOD = {
    "ours": outcome(0.995, 100, 20),
    "oracle": outcome(0.999, 95, 10),
    "calm": outcome(0.95, 90, 25),
    "calm:knob=2": outcome(0.992, 130, 25),
    "other": outcome(0.97, 80, 50),
}


def words(study: Study, changed: dict[str, dict[str, float]]) -> dict[str, str]:
    runs = all_runs(study, lambda key: {**GOOD, **changed}[key.setting])
    return {line.rule: line.word for line in judged(study, runs)}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, {"holds": "PASS", "peers": "PASS", "oracle": "PASS", "calm": "PASS"}),
        # 0.99 itself is enough, a hair less is not; then peers are compared with those that hold as few.
        ({"ours": outcome(0.99, 100, 20)}, {"holds": "PASS"}),
        ({"ours": outcome(0.98999, 100, 20)}, {"holds": "FAIL", "peers": "FAIL"}),
        # 100 of 117.6 is 0.8503.
        ({"calm:knob=2": outcome(0.992, 117.6, 25)}, {"peers": "FAIL", "holds": "PASS"}),
        ({"calm:knob=2": outcome(0.992, 117.7, 25)}, {"peers": "PASS"}),
        # A peer that is cheap and misses counts for nothing; one that is cheap and holds counts.
        ({"other": outcome(0.9901, 80, 50)}, {"peers": "FAIL", "calm": "PASS"}),
        ({"oracle": outcome(0.999, 90, 10)}, {"oracle": "FAIL"}),
        ({"oracle": outcome(0.5, 90, 10)}, {"oracle": "FAIL"}),
        ({"calm:knob=2": outcome(0.992, 130, 19)}, {"calm": "FAIL", "peers": "PASS"}),
        # Nobody holds: that is a win over peers, and nothing to be calmer than.
        ({"calm:knob=2": outcome(0.98, 130, 25)}, {"peers": "PASS", "calm": "FAIL"}),
    ],
)
def test_each_rule(four: Study, changed: dict[str, dict[str, float]], wanted: dict[str, str]) -> None:
    found = words(four, changed)
    assert {rule: found[rule] for rule in wanted} == wanted


def test_a_segment_that_ours_loses_is_named_and_peers_need_only_hold_as_many(four: Study) -> None:
    def world(key: Key) -> dict[str, float]:
        if key.setting == "ours" and key.segment == "b":
            return outcome(0.98, 100, 20)
        # Holds one of two, like ours: it is what ours is compared with.
        if key.setting == "other":
            return outcome(0.995 if key.segment == "a" else 0.5, 80, 50)
        return GOOD[key.setting]

    lines = {line.rule: line for line in judged(four, all_runs(four, world))}
    assert lines["holds"].text == (
        "ours holds 0.99 on 1 of 2 segments, the worst has 98.0000%; it does not on b 98.000% ± 0.000%"
    )
    assert "of other (1 of 2 held)" in lines["peers"].text
    assert lines["peers"].word == "FAIL"


def test_what_was_not_run_is_undecided_not_passed(four: Study) -> None:
    runs = all_runs(four, lambda key: GOOD[key.setting])
    cut = {k: r for k, r in runs.items() if not (k.setting == "calm:knob=2" and k.seed == 2)}
    lines = {line.rule: line for line in judged(four, cut)}
    assert (lines["holds"].word, lines["oracle"].word) == ("PASS", "PASS")
    assert lines["peers"].word == lines["calm"].word == "UNDECIDED"
    assert lines["peers"].text == "not run far enough: calm:knob=2"
    # What it would cost in full is not known, so it is not the cheapest of anything.
    assert cheapest(four, cut, ["calm"], "announcement", 2) is None
    nothing = judged(four, {k: r for k, r in runs.items() if k.setting != "ours"})
    assert {line.word for line in nothing} == {"UNDECIDED"}


def test_numbers_have_the_interval_of_student_over_seeds() -> None:
    # t for 2 degrees of freedom is 4.303, the standard error of (1, 2, 3) is 1/sqrt(3).
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([5.0]).half is None


def test_pooled_attainment_weighs_requests() -> None:
    study = make_study((setting("ours", 0, default=True),))
    runs = all_runs(
        study,
        lambda key: outcome(0.9, 1, requests=100) if key.segment == "a" else outcome(1.0, 1, requests=900),
    )
    found = total(study, runs, study.settings[0], "announcement")
    assert found is not None
    assert (found.attainment, found.worst, found.held) == (pytest.approx(0.99), 0.9, 1)


def test_pruning_leaves_out_what_fails_and_what_is_dear_and_hides_neither() -> None:
    study = make_study(
        (
            setting("ours", 0, default=True),
            setting("oracle", 0, default=True),
            setting("calm", 1, default=True),
            setting("calm", 2),
            setting("calm", 3),
            setting("calm", 4),
        ),
        segments=("a", "b"),
        others=("c",),
    )
    # The first two fail on a, one by more than its margin and one by less; the third holds; the fourth holds and is dearer.
    world = {
        "ours": outcome(0.995, 100),
        "oracle": outcome(0.999, 95),
        "calm": outcome(0.98, 90),
        "calm:knob=2": outcome(0.9889, 110),
        "calm:knob=3": outcome(0.993, 120),
        "calm:knob=4": outcome(0.999, 140),
    }
    runs: dict[Key, dict[str, float]] = {}
    while wave := next_wave(study, runs, prune=True):
        runs |= {key: world[key.setting] for key in wave}
    made = {s.text: sorted({(k.segment, k.seed) for k in runs if k.setting == s.text}) for s in study.settings}  # fmt: skip
    everywhere = [(g, seed) for g in "abc" for seed in (0, 1, 2)]
    other = [("c", 0), ("c", 1), ("c", 2)]
    assert made["ours"] == made["oracle"] == made["calm:knob=2"] == made["calm:knob=3"] == everywhere
    # A default is shown on every segment; it is not run on for what it has lost.
    assert made["calm"] == [("a", 0), ("b", 0), *other]
    assert made["calm:knob=4"] == [("a", 0), ("b", 0), *other]
    best = cheapest(study, runs, ["calm"], "announcement", 2)
    assert best is not None
    assert best.setting.text == "calm:knob=3"
    assert undecidable(study, runs, ["calm"], "announcement", 2) == []
    assert len(next_wave(study, runs, prune=False)) == 2 * 2 * 2


def test_a_run_that_fails_ends_its_setting_and_nothing_else(four: Study) -> None:
    runs: dict[Key, dict[str, float]] = {}
    failed: set[Key] = set()
    for _ in range(100):
        wave = next_wave(four, runs, failed, prune=True)
        if not wave:
            break
        failed |= {k for k in wave if k.setting == "other"}
        runs |= {k: GOOD[k.setting] for k in wave if k not in failed}
    assert not wave
    assert {k.setting for k in failed} == {"other"}
    lines = {line.rule: line for line in judged(four, runs)}
    assert lines["peers"].text == "not run far enough: other"
