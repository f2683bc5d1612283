"""Where the time of a cold start went, and which starts say what the next one takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.planning.cold_start import ColdStart, cold_start, of_revision, phase_medians_s
from moefleet_operator.planning.facts import pod_facts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.planning.reported import ReplicaLoad, StartReport
from moefleet_testing.builders import NOW, a_container, a_pod, false, true

BORN = NOW - 600
TOLD = ReplicaLoad("SERVING", start=StartReport(fetch_s=100.0, load_s=340.0, tune_s=60.0, start_s=345.0))


def replica(load: ReplicaLoad | None = TOLD, *, ready: bool = True, **container: Any) -> Replica:
    conditions = {"PodScheduled": true(at=BORN + 10), "Ready": true(at=BORN + 400) if ready else false()}
    found = a_container(**{"started_at": BORN + 50, **container})
    return Replica(a_pod(conditions=conditions, created_at=BORN, container=found), load)


TABLE: list[tuple[str, Replica, dict[str, float]]] = [
    (
        "all is told",
        replica(),
        {
            "scheduling": 10, "pulling": 40, "fetching": 100, "loading": 180, "tuning": 60, "warming": 5, "registering": 5,
        },
    ),
    (
        "nothing had to be fetched or tuned",
        replica(ReplicaLoad("SERVING", start=StartReport(0.0, 340.0, 0.0, 345.0))),
        {"scheduling": 10, "pulling": 40, "loading": 340, "warming": 5, "registering": 5},
    ),
    (
        "the engine does not tell tuning from loading",
        replica(ReplicaLoad("SERVING", start=StartReport(0.0, 340.0, None, 345.0))),
        {"scheduling": 10, "pulling": 40, "loading": 340, "warming": 5, "registering": 5},
    ),
    ("a replica of an older release", replica(ReplicaLoad("SERVING")), {"scheduling": 10, "pulling": 40, "starting": 350}),
    ("nothing is heard of it", replica(None), {"scheduling": 10, "pulling": 40, "starting": 350}),
    (
        "its first attempts failed",
        replica(restarts=2, started_at=BORN + 390, ),
        {"scheduling": 10, "restarting": 380, "fetching": 100, "loading": 180, "tuning": 60, "warming": 5},
    ),
    ("the kubelet says no time", replica(started_at=None), {"scheduling": 10}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "seen", "phases"), TABLE, ids=[row[0] for row in TABLE])
def test_phases(what: str, seen: Replica, phases: dict[str, float]) -> None:
    found = cold_start(seen, watched=True)
    assert found is not None
    assert found.total_s == 400.0
    assert dict(found.phases_s) == phases
    assert [name for name, _ in found.phases_s] == list(phases), "in their order"


@pytest.mark.parametrize(
    ("what", "seen", "watched", "total_s"),
    [
        ("not ready", replica(ready=False), True, None),
        ("no container", Replica(a_pod(conditions={"Ready": true()}, container=None), None), True, None),
        # Ready again after a crash, for all we know: that is no start from nothing.
        ("restarted before we looked", replica(restarts=1), False, None),
        # All of its attempts: what the fleet had to wait for.
        ("restarted before our eyes", replica(restarts=1), True, 400.0),
        ("ready before we looked", replica(), False, 400.0),
    ],
)
def test_failed_attempts_count_where_they_were_seen(
    what: str, seen: Replica, watched: bool, total_s: float | None
) -> None:
    found = cold_start(seen, watched=watched)
    assert (found.total_s if found is not None else None) == total_s, what


def test_the_start_of_the_process_is_read_from_the_pod() -> None:
    status = {
        "containerStatuses": [
            {"name": "runtime", "state": {"running": {"startedAt": "2026-01-01T00:00:10Z"}}, "ready": True}
        ]
    }
    found = pod_facts({"metadata": {}, "status": status})
    assert found.container is not None
    assert found.container.started_at == 1767225610.0


def start(revision: str, total_s: float, **phases: float) -> ColdStart:
    return ColdStart(revision, total_s, tuple(phases.items()))


def test_a_revision_is_judged_by_its_own_starts_once_there_are_enough() -> None:
    starts = [start("old", 100.0)] * 5 + [start("new", 300.0)] * 2
    assert of_revision(starts, "new") == starts
    starts.append(start("new", 310.0))
    assert [s.total_s for s in of_revision(starts, "new")] == [300.0, 300.0, 310.0]
    assert len(of_revision(starts, "old")) == 5
    assert of_revision([], "new") == []


def test_a_phase_that_only_the_first_had_is_not_typical() -> None:
    starts = [
        start("r", 100, fetching=80, loading=20),
        start("r", 25, loading=25),
        start("r", 21, loading=21),
    ]
    assert phase_medians_s(starts) == {"fetching": 0.0, "loading": 21.0}


@given(
    st.lists(st.floats(0, 1e5), min_size=4, max_size=4),
    st.integers(0, 3),
    st.floats(0, 1e5),
)
def test_phases_are_never_negative_whatever_clocks_say(
    told: list[float], restarts: int, began: float
) -> None:
    seen = replica(
        ReplicaLoad("SERVING", start=StartReport(*told)), restarts=restarts, started_at=BORN + began
    )
    found = cold_start(seen, watched=True)
    assert found is not None
    assert all(seconds > 0 for _, seconds in found.phases_s)
