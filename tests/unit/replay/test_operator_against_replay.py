"""The real operator on a real cluster, recorded (python -m moefleet_rehearsal), and the replay of the demand that it saw.

The recording is of the law of its day: after a change of the law that moves these decisions, record again. What may differ, and why, stands
in operator/studies/RESULTS.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from moefleet_rehearsal.compared import Change, Compared, compare, real_changes

RECORDED = Path(__file__).parents[2] / "support/recordings/operator"


@pytest.fixture(scope="module")
def found() -> Compared:
    return compare(RECORDED)


def test_the_recording_has_a_rise_and_a_fall(found: Compared) -> None:
    targets = [c.after for c in found.real]
    assert targets[0] == 1
    assert max(targets) >= 3
    assert targets[-1] < max(targets)
    assert found.duration_s > 400


def test_the_replay_decides_as_the_operator_did(found: Compared) -> None:
    assert found.near_share >= 0.97, found.table()
    assert found.same_share >= 0.85, found.table()
    operator, replay = found.replica_s
    assert replay == pytest.approx(operator, rel=0.05), found.table()
    peak = max(c.after for c in found.real)
    assert abs(max(c.after for c in found.replayed) - peak) <= 1, found.table()


def test_another_demand_is_another_answer(found: Compared) -> None:
    """The measures see a replay that never moves."""
    still = Compared(found.real, (Change(0.0, 1, 1, ""),), found.duration_s)
    assert still.same_share < 0.6
    assert still.replica_s[1] < 0.7 * still.replica_s[0]


def test_reasons_alone_are_no_changes() -> None:
    changes = real_changes(RECORDED, 0.0)
    assert any(c.before == c.after for c in changes)
