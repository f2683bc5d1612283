"""What happens to replicas between creation and the end of their drain, and what is billed for it."""

from dataclasses import replace

import pytest
from moefleet_perf import Calibration, ReplicaLimits, StepModel
from moefleet_replay import fleet
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.fleet import FleetSetup, RunError
from moefleet_replay.policy import Wanted

from .replayed import Listed, Scripted, poisson

SECOND_STEPS = Calibration(
    "second", StepModel(1.0, 1e-6, 1e-6, 0.0), ReplicaLimits(64, 100_000, 4096), "Made up."
)
FIXED = ColdStart(10.0, 10.0, 0.0)


def setup_of(**changes) -> FleetSetup:
    plain = FleetSetup(
        calibration=SECOND_STEPS, cold_start=FIXED, initial_replicas=1, max_replicas=200, keep_times=True
    )
    return replace(plain, **changes)


def replica_s(result) -> float:
    return result.summary.gpu_hours * 3600 / 8


def quiet(duration_s: float = 60.0) -> Listed:
    return Listed([(0.5, 10, 2, 0)], duration_s)


def test_one_replica_is_billed_from_the_start_to_the_end():
    assert replica_s(fleet.run(quiet(), Scripted([1]), setup_of())) == 60


def test_a_pending_replica_is_billed_while_it_starts_and_the_youngest_is_cancelled_first():
    # Ticks at 5, 10, ...: two more at 5 s, one of them taken back at 10 s before it is ready at 15 s, the other one drained at 20 s.
    script = Scripted([3, 2, 2, 1])
    result = fleet.run(quiet(), script, setup_of())
    assert [o.pending_ages_s for o in script.seen[:4]] == [(), (5.0, 5.0), (), ()]
    assert [o.ready for o in script.seen[:5]] == [1, 1, 2, 2, 1]
    assert replica_s(result) == 60 + 5 + 15
    assert result.summary.replica_starts == 3


def test_a_drain_is_billed_until_its_last_token():
    # The answer of 30 tokens takes 30 steps of a second; its replica is told to drain at 5 s.
    # Both have as much left to do as anybody knows, so the higher slot goes.
    source = Listed([(0.0, 10, 40, 0), (0.0, 10, 30, 0)], 60.0)
    result = fleet.run(source, Scripted([1]), setup_of(initial_replicas=2))
    assert replica_s(result) == pytest.approx(60 + 30, abs=0.1)


@pytest.mark.parametrize(("pod_end_s", "billed_s"), [(0.0, 40), (12.0, 52), (100.0, 60)])
def test_a_drained_pod_is_billed_until_it_is_gone_or_the_run_is_over(pod_end_s, billed_s):
    source = Listed([(0.0, 10, 30, 0), (0.0, 10, 40, 0)], 60.0)
    setup = setup_of(initial_replicas=2, pod_end_s=pod_end_s)
    assert replica_s(fleet.run(source, Scripted([1]), setup)) == pytest.approx(60 + billed_s, abs=0.1)


def test_what_still_runs_after_the_trace_is_run_to_its_end_and_billed():
    source = Listed([(8.0, 10, 30, 0)], 10.0)
    result = fleet.run(source, Scripted([1]), setup_of())
    assert result.extra["unfinished"] == 0
    assert 38 <= replica_s(result) <= 38 + fleet.TAIL_GRAIN_S


def test_more_replicas_drain_than_rows_were_thought_of():
    # 90 replicas with a long answer each are told to drain, 90 more come, and these again.
    source = Listed([(0.0, 10, 200, 0)] * 90 + [(40.0, 10, 200, 0)] * 90 + [(80.0, 10, 200, 0)] * 90, 120.0)
    script = Scripted([90] * 3 + [1, 90, 90, 90, 90, 90, 90, 90, 1, 90, 90, 90, 90, 90, 90, 90])
    result = fleet.run(source, script, setup_of(initial_replicas=90, max_replicas=90))
    assert max(o.draining for o in script.seen) > 64 + 89
    assert result.extra["unfinished"] == 0


def test_the_kth_start_takes_the_same_time_under_every_policy():
    cold = ColdStart(10.0, 30.0, 0.3)
    steady = Scripted([4])
    wavering = Scripted([2, 3, 4])
    fleet.run(quiet(400.0), steady, setup_of(cold_start=cold))
    fleet.run(quiet(400.0), wavering, setup_of(cold_start=cold))
    assert sorted(steady.seen[-1].cold_starts_s) == sorted(wavering.seen[-1].cold_starts_s)


def test_nobody_is_asked_before_anything_could_be_seen():
    script = Scripted([1], interval_s=15.0)
    fleet.run(poisson(5, 60, 1), script, setup_of())
    assert script.seen[0].now_s == 15.0


def test_lost_metrics_stay_as_they_were_and_kubernetes_goes_on():
    script = Scripted([2], interval_s=5.0)
    fleet.run(poisson(5, 60, 2), script, setup_of(lost=((20.0, 40.0),)))
    during = [o for o in script.seen if 20 <= o.now_s < 40]
    assert all(o.metrics_lost for o in during)
    assert len({o.replicas for o in during}) == 1
    assert len({o.steps for o in during}) == 1
    assert [o.metrics_lost for o in script.seen if o.now_s == 40.0] == [False]


class Forgetful:
    """Counts its ticks since it began."""

    interval_s = 5.0

    def __init__(self, ticks: list[int]) -> None:
        self.ticks, self.count = ticks, 0

    def decide(self, observation: object) -> Wanted:
        self.count += 1
        self.ticks.append(self.count)
        return Wanted(1)


class Restarts(Forgetful):
    def restart(self) -> None:
        self.count = 100


@pytest.mark.parametrize(("made", "then"), [(Forgetful, [1, 2, 3]), (Restarts, [101, 102, 103])])
def test_a_restart_at_any_second_makes_the_policy_anew_or_tells_it(made, then):
    ticks: list[int] = []
    setup = setup_of(restarts=(13,))
    fleet.run(quiet(26.0), made(ticks), setup, rebuild=lambda: made(ticks))
    assert ticks == [1, 2, *then]


def test_a_restart_that_is_not_possible_is_named():
    with pytest.raises(RunError, match=r"Forgetful has no restart\(\)"):
        fleet.run(quiet(), Forgetful([]), setup_of(restarts=(13,)))


@pytest.mark.parametrize(("prompt", "answer"), [(99_990, 11), (0, 5), (5, 0)])
def test_a_request_that_no_replica_can_take_is_named(prompt, answer):
    with pytest.raises(RunError, match=rf"request at 3\.000 s: .* found {prompt} in and {answer} out"):
        fleet.run(Listed([(3.0, prompt, answer, 0)], 10.0), Scripted([1]), setup_of())
