"""Who comes and who goes: the operator's planner in the replay, and the plain rules that stand for other controllers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf import Calibration, ReplicaLimits, StepModel
from moefleet_replay import fleet, pods
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.fleet import FleetSetup
from moefleet_replay.planned import Moves, PodSeen, plain, planned

from .replayed import Scripted, poisson

PENDING = PodSeen(0, 0, 10.0)
YOUNGER = PodSeen(1, 1, 20.0)
BUSY = PodSeen(2, 2, 0.0, 5000, 10, 3)
CALM = PodSeen(3, 3, 5.0, 400, 1, 0)
LEAVING = PodSeen(4, 4, 0.0, 9000, 12, 0, draining=True)
ALL = (PENDING, YOUNGER, BUSY, CALM, LEAVING)

TABLE = [
    ("enough", 4, ALL, Moves((), (), 0)),
    ("the youngest that never started goes first", 3, ALL, Moves((1,), (), 0)),
    ("then the one before it", 2, ALL, Moves((1, 0), (), 0)),
    ("then the one with least to do", 1, ALL, Moves((1, 0, 3), (), 0)),
    ("the draining one comes back before one is made", 6, ALL, Moves((), (4,), 1)),
    ("nobody is draining: all are made", 7, ALL[:4], Moves((), (), 3)),
]


@pytest.mark.parametrize(("story", "wanted", "seen", "moves"), TABLE, ids=[row[0] for row in TABLE])
def test_the_operators_planner(story, wanted, seen, moves):
    assert planned(seen, wanted, 100.0) == moves


def test_other_controllers_make_new_ones_while_one_drains():
    assert plain(ALL, 6) == Moves((), (), 2)


PODS = st.lists(
    st.tuples(st.integers(0, 50), st.none() | st.integers(0, 5), st.integers(0, 3), st.booleans()),
    max_size=12,
).map(
    lambda rows: [
        PodSeen(
            i, i, float(at), tokens, active if tokens is not None else 0, 0, drains and tokens is not None
        )
        for i, (at, tokens, active, drains) in enumerate(rows)
    ]
)


@given(seen=PODS, wanted=st.integers(1, 15))
def test_both_choose_the_same_and_reach_what_is_wanted(seen, wanted):
    ours, others = planned(seen, wanted, 60.0), plain(seen, wanted)
    assert ours.leave == others.leave
    assert len(ours.resume) + ours.create == others.create
    drains = [p.uid for p in seen if p.draining]
    assert ours.resume == tuple(drains[: others.create])
    assert sum(not p.draining for p in seen) - len(ours.leave) + len(ours.resume) + ours.create == wanted


def test_over_an_hour_the_planner_and_its_mirror_move_the_same_pods(monkeypatch):
    """Every change of an hour of ups and downs is put to both; nobody is resumed, so both can lead."""
    changes = []

    def asked(seen, wanted):
        undrained = [p for p in seen if not p.draining]
        moves = plain(seen, wanted)
        assert planned(undrained, wanted, 0.0) == moves
        changes.append(moves)
        return moves

    monkeypatch.setattr(pods, "plain", asked)
    calibration = Calibration(
        "made", StepModel(0.02, 2e-5, 4e-4, 4e-8), ReplicaLimits(64, 40_000, 512), "Made up."
    )
    setup = FleetSetup(calibration=calibration, max_replicas=12, cold_start=ColdStart(40, 90))
    wants = [3, 6, 9, 4, 2, 8, 8, 8, 8, 1, 1, 10, 7, 7, 5] * 8
    fleet.run(poisson(10, 3600, 1), Scripted(wants, interval_s=30.0), setup)
    assert len(changes) >= 80
    assert sum(len(m.leave) for m in changes) > 100
