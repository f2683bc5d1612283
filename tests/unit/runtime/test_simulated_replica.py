"""The Simulated engine against the arithmetic of moefleet_perf, on a clock of our own."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Protocol
from zlib import crc32

import moefleet_perf as perf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.engine.base import EngineFull, EngineRequest, Finish, RequestInvalid, TokenDelta
from moefleet_runtime.engine.simulated_replica import (
    BLOCK_TOKENS,
    STALL_S,
    SimulatedReplica,
    _mix,
    _mixed,
    block_hashes,
)

NODE = perf.load_calibration("deepseek-v2-8xh800")
SMALL = perf.with_limits(NODE, max_sequences=4, max_batch_tokens=64, kv_max_tokens=10_000)


def simulated(calibration: perf.Calibration = NODE, **fields: int | bool) -> SimulatedReplica:
    return SimulatedReplica(calibration, vocabulary_size=102400, **fields)  # type: ignore[arg-type]


def request(
    name: str = "r", prompt: int | tuple[int, ...] = 10, max_tokens: int = 5, **fields: object
) -> EngineRequest:
    ids = (
        tuple(300 + (crc32(name.encode()) + i) % 50_000 for i in range(prompt))
        if isinstance(prompt, int)
        else prompt
    )
    return EngineRequest(name, ids, max_tokens, **fields)  # type: ignore[arg-type]


class Engine(Protocol):
    def submit(self, request: EngineRequest, hashes: tuple[bytes, ...], now_s: float) -> None: ...

    def due_s(self) -> float | None: ...

    def catch_up(self, now_s: float) -> list[TokenDelta]: ...


@dataclass
class Seen:
    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    finish: Finish | None = None
    cached: int = 0
    error: str = ""


def drive(
    engine: Engine, arrivals: list[tuple[float, EngineRequest]], until_s: float = float("inf")
) -> dict[str, Seen]:
    """Gives each request at its time, and wakes the engine exactly when it wants to be woken."""
    seen = {r.request_id: Seen() for _, r in arrivals}
    waiting = sorted(arrivals, key=lambda a: a[0])
    while True:
        due_s = engine.due_s()
        next_s = min(due_s if due_s is not None else float("inf"), waiting[0][0] if waiting else float("inf"))
        if next_s > until_s or next_s == float("inf"):
            return seen
        while waiting and waiting[0][0] <= next_s:
            at_s, r = waiting.pop(0)
            engine.submit(r, block_hashes(r), at_s)
        for delta in engine.catch_up(next_s):
            one = seen[delta.request_id]
            one.tokens.extend(delta.tokens)
            one.at_s.extend([next_s] * len(delta.tokens))
            if len(one.tokens) == len(delta.tokens):
                one.cached = delta.cached_tokens
            one.finish = delta.finish or one.finish
            one.error = delta.error or one.error


# -- fidelity


class Sleeper:
    """The engine that merely waits n/rate: right at one load, and wrong at every other."""

    def __init__(self, token_s: float) -> None:
        self._token_s = token_s
        self._due: list[tuple[float, str]] = []

    def submit(self, request: EngineRequest, hashes: tuple[bytes, ...], now_s: float) -> None:
        for number in range(request.max_tokens):
            heappush(self._due, (now_s + (number + 1) * self._token_s, request.request_id))

    def due_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def catch_up(self, now_s: float) -> list[TokenDelta]:
        out = []
        while self._due and self._due[0][0] <= now_s:
            out.append(TokenDelta(heappop(self._due)[1], (1,)))
        return out


MIX = perf.Mix(input_tokens=600, output_tokens=60)
# A smaller node: the same equations, and few enough requests for a unit test.
QUICK = replace(
    NODE,
    step=perf.StepModel(0.02, 2e-5, 4e-4, 4e-8),
    limits=perf.ReplicaLimits(max_sequences=256, kv_max_tokens=1_000_000, max_batch_tokens=4096),
)


def tpot_errors(make: Callable[[], Engine]) -> list[float]:
    """Relative error of the mean time per output token against T = a / (1 - x*w), at three loads."""
    w_s = perf.work_s(QUICK, MIX)
    errors = []
    for load in (0.2, 0.5, 0.75):
        rate = load / w_s
        chance = random.Random(int(load * 100))
        at_s, arrivals = 0.0, []
        for number in range(700):
            at_s += chance.expovariate(rate)
            r = request(f"{load}-{number}", prompt=MIX_PROMPT, max_tokens=int(MIX.output_tokens))
            arrivals.append((at_s, r))
        seen = list(drive(make(), arrivals).values())[100:600]
        tpot_s = sum((s.at_s[-1] - s.at_s[0]) / (len(s.at_s) - 1) for s in seen) / len(seen)
        errors.append(tpot_s / (QUICK.step.a_s / (1 - rate * w_s)) - 1)
    return errors


MIX_PROMPT = tuple(range(300, 300 + int(MIX.input_tokens)))


def test_time_per_token_follows_the_closed_form_at_every_load() -> None:
    errors = tpot_errors(lambda: simulated(QUICK, kv_reuse=False))
    assert max(map(abs, errors)) < 0.08, errors


def test_an_engine_that_merely_sleeps_does_not_pass_as_one() -> None:
    at_half_load_s = QUICK.step.a_s / (1 - 0.5)
    errors = tpot_errors(lambda: Sleeper(at_half_load_s))
    assert max(map(abs, errors)) > 0.25, errors


def test_it_gives_each_token_when_the_virtual_replica_does() -> None:
    chance = random.Random(7)
    arrivals, at_s = [], 0.0
    for number in range(60):
        at_s += chance.expovariate(40.0)
        arrivals.append((at_s, request(f"n{number}", chance.randint(1, 400), chance.randint(1, 60))))
    seen = drive(simulated(SMALL, kv_reuse=False), arrivals)
    wanted = perf.simulate(
        SMALL, [perf.Arrival(r.request_id, t, len(r.prompt), r.max_tokens) for t, r in arrivals]
    )
    assert len(wanted) == 60
    for outcome in wanted:
        one = seen[outcome.arrival.request_id]
        assert len(one.tokens) == outcome.arrival.output_tokens
        assert one.at_s[0] == pytest.approx(outcome.first_token_s)
        assert one.at_s[-1] == pytest.approx(outcome.last_token_s)


def test_speed_stretches_every_step_and_nothing_else() -> None:
    arrivals = [(0.0, request("a", 100, 20)), (0.0, request("b", 50, 10))]
    fast, slow = simulated(), simulated(perf.scaled(NODE, 0.1))
    at_speed, slowed = drive(fast, arrivals), drive(slow, arrivals)
    for name, one in at_speed.items():
        assert slowed[name].tokens == one.tokens
        assert slowed[name].at_s == pytest.approx([10 * t for t in one.at_s])
    assert slow.load().steps.time_s == pytest.approx(10 * fast.load().steps.time_s)


def test_steps_add_up_to_what_a_fit_gives_back() -> None:
    engine = simulated()
    chance = random.Random(1)
    arrivals = [
        (chance.uniform(0, 10), request(f"{i}", chance.randint(1, 3000), chance.randint(1, 80)))
        for i in range(200)
    ]
    drive(engine, arrivals)
    steps = engine.load().steps
    totals = perf.StepTotals(*(getattr(steps, name) for name in perf.StepTotals.__slots__))
    prior = perf.StepModel(*(2 * c for c in (NODE.step.a_s, NODE.step.b_s, NODE.step.c_s, NODE.step.d_s)))
    fitted = perf.fit_step_model(totals, prior)
    assert fitted.a_s == pytest.approx(NODE.step.a_s, rel=0.05)
    assert fitted.b_s == pytest.approx(NODE.step.b_s, rel=0.05)


def test_a_late_wake_up_catches_up_each_step_at_its_own_time() -> None:
    fast = perf.scaled(NODE, 10)
    arrivals = [(0.0, request("a", 10, 50))]
    prompt_driven = simulated(fast)
    on_time = drive(prompt_driven, arrivals)["a"]
    assert on_time.at_s[-1] < STALL_S
    late = simulated(fast)
    late.submit(arrivals[0][1], (), 0.0)
    late.catch_up(0.0)
    (delta,) = late.catch_up(STALL_S)
    assert list(delta.tokens) == on_time.tokens
    assert delta.finish is Finish.LENGTH
    assert late.load().steps == prompt_driven.load().steps
    # What comes after an idle hour begins when it comes.
    late.submit(request("b", 10, 1), (), 5000.0)
    late.catch_up(5000.0)
    due_s = late.due_s()
    assert due_s is not None
    assert due_s == pytest.approx(5000.0 + fast.step.step_time_s(10, 0, 0))


@pytest.mark.parametrize("speed", [1.0, 0.02])
def test_a_process_that_stood_still_has_lost_that_time(speed: float) -> None:
    """Stopped in a step: that step ends with the process's return, and the next one takes its full time."""
    calibration = perf.scaled(NODE, speed)
    engine = simulated(calibration)
    engine.submit(request("a", 10, 50), (), 0.0)
    engine.catch_up(0.0)
    first_s = engine.due_s()
    assert first_s is not None
    back_s = first_s + max(STALL_S, calibration.step.step_time_s(10, 0, 0)) * 1.01
    (delta,) = engine.catch_up(back_s)
    assert len(delta.tokens) == 1
    due_s = engine.due_s()
    assert due_s is not None
    assert due_s == pytest.approx(back_s + calibration.step.step_time_s(0, 1, 11))
    assert engine.catch_up(due_s - 1e-9) == []
    # The pause is nobody's step: what a fit of step times learns stays the calibration.
    assert engine.load().steps.time_s == pytest.approx(first_s)


def test_a_replica_that_is_stopped_most_of_the_time_makes_as_much_less() -> None:
    def tokens(awake_s: float) -> int:
        engine = simulated()
        engine.submit(request("a", 10, 100_000), (), 0.0)
        made = 0
        for tick in range(10_000):  # 10 s in steps of 1 ms; of each second only the beginning is lived
            if tick % 1000 < awake_s * 1000:
                made += sum(len(d.tokens) for d in engine.catch_up(tick / 1000))
        return made

    whole, fifth = tokens(1.0), tokens(0.2)
    assert whole > 100
    # One step a second is lost in the stop: it ends with the return.
    assert 0.1 * whole < fifth < 0.3 * whole


def test_who_came_while_the_process_stood_still_begins_with_its_return() -> None:
    engine = simulated()
    engine.submit(request("a", 10, 2), (), 0.0)
    assert engine.catch_up(10.0) == []
    due_s = engine.due_s()
    assert due_s == pytest.approx(10.0 + NODE.step.step_time_s(10, 0, 0))


# -- requests


def test_the_same_request_gives_the_same_tokens_alone_and_in_a_crowd() -> None:
    alone = drive(simulated(), [(0.0, request("x", (301, 302), 20))])["x"].tokens
    crowd = [(0.0, request("y", (301, 302), 20)), *((0.0, request(f"c{i}", 100, 30)) for i in range(20))]
    assert drive(simulated(), crowd)["y"].tokens == alone
    assert len(set(alone)) > 15
    other = drive(simulated(), [(0.0, request("x", (301, 303), 20))])["x"].tokens
    assert other != alone


def test_a_seed_decides_a_sample_and_greedy_ignores_it() -> None:
    def tokens(**fields: object) -> list[int]:
        return drive(simulated(), [(0.0, request("x", (301,), 10, **fields))])["x"].tokens

    assert tokens(temperature=0.8, seed=1) == tokens(temperature=0.8, seed=1)
    assert tokens(temperature=0.8, seed=1) != tokens(temperature=0.8, seed=2)
    assert tokens(temperature=0.8) != tokens(temperature=0.8)
    assert tokens(seed=1) == tokens(seed=2)


def test_a_stop_token_is_delivered_and_ends_it_and_frees_what_was_kept() -> None:
    whole = drive(simulated(), [(0.0, request("x", (301,), 10))])["x"].tokens
    engine = simulated()
    one = drive(engine, [(0.0, request("x", (301,), 10, stop_token_ids=frozenset({whole[3]})))])["x"]
    assert one.tokens == whole[:4]
    assert one.finish is Finish.STOP
    load = engine.load()
    assert (load.active, load.kv_used_tokens, load.outstanding_decode_tokens) == (0, 0, 0)


def test_answers_end_by_themselves_about_as_long_as_asked_unless_told_not_to() -> None:
    arrivals = [(0.0, request(f"m{i}", (300 + i,), 5000)) for i in range(400)]
    seen = drive(simulated(mean_output_tokens=50), arrivals)
    lengths = [len(s.tokens) for s in seen.values()]
    assert 40 < sum(lengths) / len(lengths) < 62
    assert {s.finish for s in seen.values()} == {Finish.STOP}
    stubborn = drive(simulated(mean_output_tokens=5), [(0.0, request("x", (301,), 300, ignore_eos=True))])[
        "x"
    ]
    assert (len(stubborn.tokens), stubborn.finish) == (300, Finish.LENGTH)


def test_an_abort_takes_effect_with_the_step_that_runs_wherever_the_request_is() -> None:
    engine = simulated(SMALL)
    for name in ("a", "b", "c", "d", "waits"):
        engine.submit(request(name, 10, 100), (), 0.0)
    engine.catch_up(0.0)
    engine.submit(request("inbox", 10, 100), (), 0.0)
    for name in ("a", "waits", "inbox", "unknown"):
        engine.abort(name)
    due_s = engine.due_s()
    assert due_s is not None
    ended = {d.request_id: d for d in engine.catch_up(due_s) if d.finish is Finish.CANCELLED}
    assert set(ended) == {"a", "waits", "inbox"}
    assert all(d.tokens == () for d in ended.values())
    load = engine.load()
    assert (load.active, load.queued) == (3, 0)


def test_a_prefix_is_found_again_by_the_same_salt_only() -> None:
    engine = simulated()
    prompt = tuple(range(300, 300 + 10 * BLOCK_TOKENS + 5))
    arrivals = [
        (0.0, request("first", prompt)),
        (1.0, request("again", prompt)),
        (2.0, request("longer", (*prompt[: 4 * BLOCK_TOKENS], *range(9000, 9100)))),
        (3.0, request("salted", prompt, cache_salt="tenant")),
        (4.0, request("whole", prompt[: 10 * BLOCK_TOKENS])),
    ]
    seen = drive(engine, arrivals)
    cached = {name: s.cached for name, s in seen.items()}
    assert cached == {
        "first": 0,
        "again": 10 * BLOCK_TOKENS,
        "longer": 4 * BLOCK_TOKENS,
        "salted": 0,
        # One token is always left to compute.
        "whole": 10 * BLOCK_TOKENS - 1,
    }
    assert engine.load().cached_tokens_total == sum(cached.values())
    assert seen["again"].at_s[0] - 1.0 < seen["first"].at_s[0]
    without = drive(simulated(kv_reuse=False), arrivals)
    assert {s.cached for s in without.values()} == {0}


def test_the_queue_is_bounded_and_its_places_come_back() -> None:
    engine = simulated(SMALL, max_queued=2)
    for number in range(6):
        engine.submit(request(f"{number}", 10, 100), (), 0.0)
    with pytest.raises(EngineFull, match="2 requests wait"):
        engine.submit(request("too many"), (), 0.0)
    engine.catch_up(0.0)
    engine.abort("5")
    engine.submit(request("takes its place"), (), 0.0)
    with pytest.raises(EngineFull):
        engine.submit(request("too many again"), (), 0.0)
    none = simulated(SMALL, max_queued=0)
    for number in range(4):
        none.submit(request(f"{number}"), (), 0.0)
    with pytest.raises(EngineFull):
        none.submit(request("fifth"), (), 0.0)


def test_what_can_never_fit_is_refused_and_leaves_nothing() -> None:
    engine = simulated(SMALL)
    before = engine.load()
    with pytest.raises(RequestInvalid, match="never fit a cache of 10000"):
        engine.submit(request("x", 9_990, 11), (), 0.0)
    with pytest.raises(RequestInvalid):
        engine.submit(request("x", ()), (), 0.0)
    assert engine.load() == before


def test_a_full_cache_makes_requests_wait() -> None:
    engine = simulated(SMALL)
    engine.submit(request("large", 6_000, 1_000), (), 0.0)
    engine.submit(request("next", 3_000, 1_000), (), 0.0)
    engine.catch_up(0.0)
    engine.catch_up(0.1)
    load = engine.load()
    assert (load.active, load.queued) == (1, 1)
    assert load.outstanding_decode_tokens == 2_000
    assert 0 < load.kv_used_tokens < 7_000


def test_every_nth_step_fails_whom_it_would_have_given_a_token() -> None:
    engine = simulated(step_error_every=3)
    seen = drive(engine, [(0.0, request("a", 5, 10)), (5.0, request("b", 5, 1))])
    assert (len(seen["a"].tokens), seen["a"].finish) == (2, Finish.FAILED)
    assert "step 3" in seen["a"].error
    assert seen["b"].finish is Finish.LENGTH
    load = engine.load()
    assert (load.failed_steps_total, load.active) == (1, 0)
    assert load.steps.count == 3


def test_stopping_ends_everybody() -> None:
    engine = simulated(SMALL)
    for number in range(6):
        engine.submit(request(f"{number}", 10, 100), (), 0.0)
    engine.catch_up(0.0)
    engine.submit(request("last"), (), 0.01)
    ended = engine.end_all()
    assert {d.request_id for d in ended} == {*map(str, range(6)), "last"}
    assert {d.finish for d in ended} == {Finish.CANCELLED}


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 24))
def test_numbers_made_at_once_are_those_made_one_by_one(seed: int, index: int) -> None:
    assert _mixed(seed, index)[::-1] == [_mix(seed, index + i) for i in range(32)]


def test_a_request_gives_these_tokens_in_every_version() -> None:
    """Another replica, maybe a newer one, goes on with what this one began."""
    replica = simulated()
    replica.submit(request(prompt=(300, 301, 302), max_tokens=70, ignore_eos=True), (), 0.0)
    made: list[int] = []
    while (due_s := replica.due_s()) is not None:
        made += [token for delta in replica.catch_up(due_s) for token in delta.tokens]
    assert (made[:4], made[30:35]) == ([6510, 34465, 100214, 88276], [32686, 13836, 14775, 23598, 12146])
    assert (len(made), made[-1]) == (70, 1057)
