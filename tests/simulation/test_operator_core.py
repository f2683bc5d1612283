"""The real core in a simulated world: a corpus of schedules holds every rule, planted bugs do not get through."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from moefleet_testing.planted import BUGS, Planted, planted
from moefleet_testing.simulate import explained, simulate, told_of
from moefleet_testing.simulator.schedule import FAULTS, LENGTH_S, MIN_FAULTS, Schedule, draw
from moefleet_testing.simulator.shrink import shrink
from moefleet_testing.simulator.world import RuleBrokenError

# Schedules that once broke a rule, or that reach what others seldom do; each takes about a second.
CORPUS = (3, 5, 16, 21, 138, 228, 355, 361, 492, 738, 809, 1618, 2125, 2527, 2873, 4664, 5386, 8077, 9521)


@pytest.mark.parametrize("seed", CORPUS)
def test_a_schedule_holds_every_rule(seed: int) -> None:
    scenario = simulate(seed)
    assert scenario.world.now >= LENGTH_S
    assert scenario.served > 100, "a story without requests would prove nothing"
    assert len(scenario.acts_done) == len(scenario.schedule.acts)


def test_every_schedule_has_faults_of_three_kinds_and_all_kinds_are_drawn() -> None:
    drawn: Counter[str] = Counter()
    for seed in range(1, 201):
        kinds = draw(seed).fault_kinds
        assert len(kinds) >= MIN_FAULTS, f"seed {seed}: {sorted(kinds)}"
        drawn.update(kinds)
    assert set(drawn) == set(FAULTS)


def test_a_seed_is_the_same_story_whatever_hashes_are() -> None:
    """In two processes: nothing depends on the order of a set."""
    command = [sys.executable, "-m", "moefleet_testing.simulate", "--seeds", "1", "--first", "3", "--traces"]
    path = os.pathsep.join(p for p in sys.path if p)
    traces = []
    for hashes in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": path}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        traces.append(next(line for line in told.splitlines() if " trace " in line))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_breaks_a_rule(bug: Planted) -> None:
    """On the first seed that finds it; what it takes to find it is in the table."""
    with planted(bug), pytest.raises(RuleBrokenError) as caught:
        simulate(bug.seed)
    # A patch that does not fit any more raises, and that would pass for a find.
    assert caught.value.rule != "the core raises nothing", str(caught.value)
    assert f"again: make simulate SEEDS=1 FIRST={bug.seed}" in str(caught.value)


def test_what_is_printed_has_the_shortest_schedule_and_the_command_that_repeats_it() -> None:
    bug = next(b for b in BUGS if b.name == "delete-at-once")
    with planted(bug):
        told = told_of(bug.seed, shorten=True)
        assert told.rule
        assert 0 < len(told.shortest) < told.acts
        again = told_of(bug.seed, shorten=False, only=told.shortest)
        assert again.rule == told.rule
    said = explained(told)
    assert f"shortest schedule found: {len(told.shortest)} of" in said
    assert f"make simulate SEEDS=1 FIRST={bug.seed} ONLY={','.join(map(str, told.shortest))}" in said


def test_shrinking_keeps_just_what_breaks_the_rule() -> None:
    schedule = draw(1)
    needed = {3, 17, 30}

    def tell(shorter: Schedule) -> str | None:
        return "rule" if needed <= {a.number for a in shorter.acts} else None

    done = [a.number for a in schedule.acts]
    assert set(shrink(schedule, done, "rule", tell)) == needed
    assert shrink(schedule, done, "rule", lambda _s: "rule") == ()
