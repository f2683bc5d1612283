"""The compiled kernel and the plain reference run the same fleet: times, series, sums, bills and decisions are equal."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet_perf import Arrival, Calibration, ReplicaLimits, StepModel, load_calibration, simulate
from moefleet_replay import fleet, kernel, layout
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.engine import CompiledEngine
from moefleet_replay.fleet import Death, FleetSetup
from moefleet_replay.observation import Objective, Signal
from moefleet_replay.reference import ReferenceEngine

from .replayed import Listed, Scripted, poisson

NODE = load_calibration("deepseek-v2-8xh800")
MODEL = StepModel(a_s=0.02, b_s=2e-5, c_s=4e-4, d_s=4e-8, e_s=1e-9)


def made(sequences: int = 64, kv: int = 40_000, chunk: int = 512, model: StepModel = MODEL) -> Calibration:
    return Calibration("made", model, ReplicaLimits(sequences, kv, chunk), "Made up.")


def setup_of(calibration: Calibration, **changes) -> FleetSetup:
    plain = FleetSetup(
        calibration=calibration,
        objective=Objective(ttft_s=0.5, tpot_s=0.05),
        max_replicas=12,
        cold_start=ColdStart(20, 40, 0.2),
        keep_times=True,
    )
    return replace(plain, **changes)


def both(source, wants, setup, **policy):
    """Runs both engines; what they hold must be equal, and is given back with the result."""
    runs = []
    for engine_class in (CompiledEngine, ReferenceEngine):
        made_engines = []

        def engine_of(*args, engine_class=engine_class, made_engines=made_engines):
            made_engines.append(engine_class(*args))
            return made_engines[-1]

        script = Scripted(wants, **policy)
        result = fleet.run(source, script, setup, engine_of=engine_of)
        runs.append((made_engines[-1], script, result))
    (compiled, kernel_script, kernel), (plain, plain_script, reference) = runs
    np.testing.assert_array_equal(compiled.times, plain.times)
    np.testing.assert_array_equal(compiled.totals, plain.totals)
    np.testing.assert_array_equal(compiled.minutes, plain.minutes)
    np.testing.assert_array_equal(compiled.tpot_bins, plain.tpot_bins)
    np.testing.assert_array_equal(compiled.ttft_bins, plain.ttft_bins)
    np.testing.assert_array_equal(compiled.ttft_minutes, plain.ttft_minutes)
    np.testing.assert_allclose(compiled.sums, plain.sums, rtol=1e-12)
    assert replace(kernel.summary, wall_s=0) == replace(reference.summary, wall_s=0)
    assert kernel.timeline == reference.timeline
    assert kernel.decisions == reference.decisions
    assert kernel.extra == reference.extra
    for ours, theirs in zip(kernel_script.seen, plain_script.seen, strict=True):
        for signal in set(Signal) - {Signal.KV_USED_TOKENS}:
            assert ours.series.values(signal, 1e9) == theirs.series.values(signal, 1e9), signal
        assert [replace(v, kv_used_tokens=0) for v in ours.replicas] == [
            replace(v, kv_used_tokens=0) for v in theirs.replicas
        ]
        assert (ours.steps, ours.oldest_wait_s, ours.pending_ages_s) == (
            theirs.steps,
            theirs.oldest_wait_s,
            theirs.pending_ages_s,
        )
    return compiled, kernel_script, kernel


STORIES = {
    "one replica": (poisson(4, 60, 1), [1], {}),
    "up and down": (poisson(30, 120, 2), [2, 4, 8, 8, 8, 8, 8, 8, 3, 3, 1, 5, 5, 1], {}),
    "too few: they wait in the gateway": (poisson(60, 40, 3), [1, 1, 1, 1, 1, 6], {}),
    "a cache that is full": (poisson(12, 60, 4), [2], {"calibration": made(kv=9000)}),
    "slots that are full": (poisson(12, 60, 5), [2], {"calibration": made(sequences=9)}),
    "a chunk that decode fills": (poisson(12, 60, 6), [2], {"calibration": made(chunk=24)}),
    "preemption": (poisson(12, 60, 7), [2], {"calibration": made(kv=7000), "preempting": True}),
    "preemption in prompts": (
        poisson(12, 40, 8, prompt=1500),
        [2],
        {"calibration": made(kv=20_000, chunk=256), "preempting": True},
    ),
    "replicas die": (poisson(30, 90, 9), [4], {"deaths": (Death(20), Death(21, 2), Death(50))}),
    "replicas die while others preempt": (
        poisson(20, 60, 10),
        [3, 4],
        {"calibration": made(kv=8000), "preempting": True, "deaths": (Death(15), Death(33))},
    ),
    "cold caches": (poisson(30, 120, 11, cached=0.7), [2, 4, 6], {"warm_s": 60.0}),
    "clients tell how long their answers will be": (
        poisson(30, 90, 15, cached=0.5),
        [2, 3, 6],
        {"max_tokens_told": True, "deaths": (Death(25),)},
    ),
    "metrics are lost": (poisson(20, 60, 12), [2, 3], {"lost": ((20, 40),)}),
    "a node of eight GPUs": (poisson(150, 30, 13, prompt=600, answer=100), [1, 2], {"calibration": NODE}),
}


@pytest.mark.parametrize("story", STORIES)
def test_stories(story):
    source, wants, changes = STORIES[story]
    setup = setup_of(**{"calibration": made(), **changes})
    engine, _, result = both(source, wants, setup)
    assert result.summary.requests == len(source.requests) > 100
    assert np.isfinite(engine.times).all()


def test_the_stories_tell_what_their_names_say():
    def told(story):
        source, wants, changes = STORIES[story]
        return both(source, wants, setup_of(**{"calibration": made(), **changes}))

    assert told("preemption")[2].extra["preemptions"] > 20
    assert told("preemption in prompts")[2].extra["preemptions"] > 10
    assert told("replicas die")[2].extra["retries"] > 20
    waits = told("too few: they wait in the gateway")[1].seen
    assert max(o.oldest_wait_s for o in waits) > 5
    assert max(o.draining for o in told("up and down")[1].seen) > 0


def test_draining_replicas_come_back_when_the_policy_says_so():
    source = poisson(30, 60, 14, answer=400)
    setup = setup_of(made(), initial_replicas=6)
    _, script, with_resume = both(source, [6, 2, 6], setup, resumes_draining=True)
    _, _, without = both(source, [6, 2, 6], setup)
    assert with_resume.summary.replica_starts < without.summary.replica_starts
    assert [o.draining for o in script.seen[2:4]] == [4, 0]


def test_compiled_code_is_not_older_than_the_layout():
    found = hashlib.sha256(Path(layout.__file__).read_bytes()).hexdigest()
    assert found == kernel.LAYOUT_SHA256, f"write {found} into kernel.py"


def test_one_replica_is_the_virtual_replica():
    source = poisson(6, 60, 15)
    engine, _, _ = both(source, [1], setup_of(made(), initial_replicas=1))
    outcomes = simulate(made(), [Arrival(str(i), t, p, o) for i, (t, p, o, _) in enumerate(source.requests)])
    found = {int(o.arrival.request_id): (o.first_token_s, o.last_token_s) for o in outcomes}
    assert [found[i] for i in range(len(found))] == [tuple(row) for row in engine.times.tolist()]


def test_answers_longer_than_the_ring_go_round_it():
    """One replica: order within a bucket, which the ring changes, moves only predictions, and nobody routes by them here."""
    source, setup = poisson(4, 60, 16), setup_of(made(), initial_replicas=1)

    def engine(ring):
        engines = []

        def engine_of(*args):
            engines.append(CompiledEngine(*args, ring=ring))
            return engines[-1]

        fleet.run(source, Scripted([1]), setup, engine_of=engine_of)
        return engines[-1]

    assert max(r[2] for r in source.requests) > 64
    np.testing.assert_array_equal(engine(8).times, engine(4096).times)


@given(
    requests=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 40).map(float), st.floats(0, 40, exclude_max=True, width=32)),
            st.integers(1, 900),
            st.one_of(st.integers(1, 5), st.integers(1, 300)),
            st.integers(0, 900),
        ),
        min_size=1,
        max_size=150,
    ),
    wants=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    sequences=st.integers(1, 12),
    kv=st.integers(1200, 6000),
    chunk=st.integers(1, 300),
    preempting=st.booleans(),
    resumes=st.booleans(),
    deaths=st.lists(st.integers(1, 39), max_size=3),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_any_traffic_and_any_life_of_replicas(  # noqa: PLR0917
    requests, wants, sequences, kv, chunk, preempting, resumes, deaths
):
    # Requests in bunches at the same moment, replicas that come and go at whole seconds: every kind of tie.
    source = Listed(sorted((t, p, o, min(c, p - 1)) for t, p, o, c in requests), 41.0)
    setup = setup_of(
        made(sequences, kv, chunk),
        preempting=preempting,
        deaths=tuple(Death(at_s) for at_s in deaths),
        cold_start=ColdStart(4, 9, 0.2),
        warm_s=10.0,
    )
    engine, _, result = both(source, wants, setup, resumes_draining=resumes)
    assert result.extra["unfinished"] == 0
    assert np.isfinite(engine.times).all()
