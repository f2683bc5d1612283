"""Whatever the world: with pruning the criterion says what it says without, or that it cannot know."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from moefleet_replay.compare import Study
from moefleet_replay.compare_jobs import next_wave
from moefleet_replay.compare_verdict import Key, judged
from moefleet_studies import all_runs, make_study, outcome, setting

STUDY = make_study(
    (
        setting("ours", 0, default=True),
        setting("oracle", 0, default=True),
        setting("oracle", 1),
        setting("calm", 1, default=True),
        setting("calm", 2),
        setting("calm", 3),
        setting("other", 1, default=True),
        setting("other", 2),
    ),
    segments=("a", "b", "c"),
)
# Seeds differ by less than the margin that stands for their interval, which is what the margin is for.
attainments = st.dictionaries(
    st.tuples(st.sampled_from([s.text for s in STUDY.settings]), st.sampled_from("abc")),
    st.integers(980, 1000).map(lambda v: v / 1000),
)
seeds = st.tuples(*[st.integers(-10, 10).map(lambda v: v / 10_000)] * 3)
costs = st.dictionaries(
    st.sampled_from([s.text for s in STUDY.settings]), st.integers(50, 200), min_size=len(STUDY.settings)
)


def pruned_runs(study: Study, world: Mapping[Key, Mapping[str, float]]) -> dict[Key, Mapping[str, float]]:
    runs: dict[Key, Mapping[str, float]] = {}
    while wave := next_wave(study, runs, prune=True):
        assert not set(wave) & set(runs)
        runs |= {key: world[key] for key in wave}
    return runs


@given(attainments, seeds, costs)
def test_pruning_never_changes_a_verdict(
    attainment: dict[tuple[str, str], float], seed: tuple[float, float, float], cost: dict[str, int]
) -> None:
    def world(key: Key) -> dict[str, float]:
        share = attainment.get((key.setting, key.segment), 0.995) + seed[key.seed]
        return outcome(min(share, 1.0), cost[key.setting], cost[key.setting] / 10)

    everything = all_runs(STUDY, world)
    full = {line.rule: line for line in judged(STUDY, everything)}
    runs = pruned_runs(STUDY, everything)
    for line in judged(STUDY, runs):
        if line.passed is None:
            # Only where ours itself has lost a segment may a question stay open.
            assert not full["holds"].passed
        else:
            assert line == full[line.rule]
