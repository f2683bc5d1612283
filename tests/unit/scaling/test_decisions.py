"""Timelines as tables: what is asked of a fleet at which time, and why."""

import random
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from moefleet_operator.scaling import (
    REASONS,
    DemandPoint,
    DemandTotals,
    Load,
    Policy,
    Queue,
    Reason,
    Sample,
    ServedTotals,
    State,
    Supply,
    decide,
    remember,
)
from moefleet_perf import Calibration, ReplicaLimits, StepModel, StepTotals
from moefleet_testing.reading import faults

# One request/s of 100 prompt and 10 output tokens is 0.1 of marginal work; with T* = 0.85 * 100 ms and a = 8.5 ms, 0.9 of a
# replica can be worked: 9 requests/s each.
CALIBRATION = Calibration(
    "round",
    StepModel(a_s=0.0085, b_s=0.0005, c_s=0.005, d_s=0.0),
    ReplicaLimits(1000, 10**6, 10**4),
    "Made up.",
)
POLICY = Policy(min_replicas=1, max_replicas=20, tpot_s=0.1, ttft_s=2.0, calibration=CALIBRATION)
COLD_STARTS = (40.0,) * 5  # hold max(30, 0.6 * 40) = 30 s
T0 = 1_700_000_000.0
TICK_S = 5.0


@dataclass
class Fleet:
    """A fleet whose replicas start after `start_s`, driven tick by tick. Tests name what matters to them."""

    policy: Policy = POLICY
    cold_starts_s: tuple[float, ...] = COLD_STARTS
    start_s: float = 40.0
    target: int = 1
    now: float = T0
    state: State | None = None
    demand: DemandTotals | None = field(default_factory=DemandTotals)
    served: ServedTotals | None = None
    # Creation times of replicas, oldest first; those that never get ready.
    created_s: list[float] = field(default_factory=list)
    stuck: bool = False

    def __post_init__(self):
        self.created_s = [self.now - 1000] * self.target

    @property
    def ready(self):
        return sum(self.now - t >= (1000 if self.stuck else self.start_s) for t in self.created_s)

    def supply(self):
        ages = tuple(self.now - t for t in self.created_s)
        ready_age = 1000 if self.stuck else self.start_s
        pending = tuple(a for a in ages if a < ready_age)
        return Supply(self.target, self.ready, pending, cold_starts_s=self.cold_starts_s)

    def tick(self, rps=0.0, tokens=(100, 10), **facts):
        """5 s of arrivals, then a decision that is carried out."""
        self.now += TICK_S
        n = rps * TICK_S
        if self.demand is not None:
            d = self.demand
            self.demand = replace(
                d,
                arrivals=d.arrivals + n,
                prompt_tokens=d.prompt_tokens + n * tokens[0],
                output_tokens=d.output_tokens + n * tokens[1],
            )
        facts = {"demand": self.demand, "served": self.served} | facts
        sample = Sample(policy=self.policy, supply=self.supply(), **facts)
        decision = decide(self.state, sample, self.now)
        self.state, self.target = decision.state, decision.replicas
        while len(self.created_s) > self.target:
            self.created_s.pop()
        while len(self.created_s) < self.target:
            self.created_s.append(self.now)
        return decision

    def run(self, seconds, rps=0.0, **facts):
        decision = None
        for _ in range(round(seconds / TICK_S)):
            decision = self.tick(rps, **facts)
        return decision


@pytest.mark.parametrize(
    ("story", "legs", "expected"),
    [
        # Each leg: seconds, requests/s; then replicas and reason at its end. One replica carries 9 requests/s.
        ("nothing ever arrives", [(600, 0)], [(1, "AtMinimum")]),
        (
            "little arrives: 3.6 of 9 and a third of headroom is half a replica",
            [(600, 3.6)],
            [(1, "DemandSteady")],
        ),
        ("work for 2.0 replicas and headroom needs three", [(600, 18)], [(3, "DemandSteady")]),
        (
            "up at once: half a minute of a step is answered, long before the forecast window is full",
            [(300, 3.6), (30, 36)],
            [(1, "DemandSteady"), (5, None)],
        ),
        (
            "up, and after the hold down again, one step a hold",
            [(300, 26), (600, 3.6)],
            # Ten minutes: this fleet starts in seconds, so its level is soon forgotten.
            [(4, "DemandSteady"), (1, None)],
        ),
        (
            "what falls to a seventh at once is kept for hours: a half an hour is believed",
            [(300, 26), (6 * 3600, 3.6)],
            [(4, "DemandSteady"), (1, "DemandSteady")],
        ),
        (
            "nothing any more: the noise of a count of nothing is no reason to keep three times the level",
            [(300, 18), (450, 0)],
            [(3, None), (1, None)],
        ),
        (
            "a dip shorter than the window and the hold changes nothing",
            [(300, 26), (20, 0), (60, 26)],
            [(4, "DemandSteady"), (4, None), (4, "DemandSteady")],
        ),
        ("more than maxReplicas", [(600, 400)], [(20, "AtMaximum")]),
    ],
)
def test_timelines(story, legs, expected):
    fleet = Fleet()
    for (seconds, rps), (replicas, reason) in zip(legs, expected, strict=True):
        decision = fleet.run(seconds, rps)
        assert decision.replicas == replicas, f"{story}: {decision.message}"
        assert reason is None or decision.reason == reason, f"{story}: {decision.message}"


def test_minute_by_minute_through_a_surge_and_back():
    fleet = Fleet()
    rates = [4, 4, 10, 20, 30, 30, 30, 15, 5, 4, 4, 4]
    seen = [fleet.run(60, rps).replicas for rps in rates]
    # Up within the minute in which it rises, and a surge of 7 times in five minutes raises headroom while it lasts; down by one
    # step a hold (30 s), never below what the last minute needs.
    assert seen[:4] == [1, 1, 2, 4]
    assert max(seen) <= 8
    assert seen == sorted(seen[:7]) + sorted(seen[7:], reverse=True)


def test_work_is_counted_not_requests_so_that_longer_answers_add_replicas_at_the_same_rate():
    fleet = Fleet()
    before = fleet.run(600, 9, tokens=(100, 10))
    assert before.replicas == 2
    # 100 output tokens each: decode work rises from 0.05 to 0.5 s a request.
    decision = fleet.run(600, 9, tokens=(100, 100))
    # Work for 5.5, with more headroom than before: this was a surprise.
    assert decision.replicas == 8
    assert decision.terms.headroom_ratio > before.terms.headroom_ratio
    assert decision.terms.capacity_rps == pytest.approx(0.9 / 0.55)


@pytest.mark.parametrize(
    ("context_tokens", "carries_rps"),
    [
        # What mean lengths say: 100 + 100 / 2. Decode takes 100 * (1 ms + 10 us * context) a request, prefill 50 ms.
        (None, 0.9 / 0.30),
        (150.0, 0.9 / 0.30),
        # Half of the answers have 1 token and the other half 199: the long ones are those that run.
        (200.0, 0.9 / 0.35),
        # Measured contexts are those of the mix that was: a mix that grows is not believed to be cheaper for it.
        (50.0, 0.9 / 0.30),
    ],
)
def test_long_answers_are_the_ones_that_run_so_contexts_are_measured(context_tokens, carries_rps):
    step = StepModel(a_s=0.0085, b_s=0.0005, c_s=0.001, d_s=1e-5)
    fleet = Fleet(policy=replace(POLICY, calibration=replace(CALIBRATION, step=step)))
    decision = fleet.run(300, 3, tokens=(100, 100), context_tokens=context_tokens)
    assert decision.terms.capacity_rps == pytest.approx(carries_rps)
    assert decision.terms.forecast == pytest.approx(3 / carries_rps)


def test_pending_replicas_are_supply_so_a_steady_wish_is_not_repeated():
    fleet = Fleet(start_s=200.0, cold_starts_s=(200.0,) * 5)
    fleet.run(300, 3.6)
    targets = [fleet.tick(36).replicas for _ in range(60)]
    # 36 requests/s need 4.0 * 1.35 = 6, and what was a surprise adds up to 2 more; never a second wave.
    assert max(targets) <= 8
    assert targets[-1] <= 8


@dataclass
class Guard:
    story: str
    reason: Reason
    replicas: int
    says: str
    policy: Policy = POLICY
    supply: Supply = field(default_factory=lambda: Supply(4, 4, cold_starts_s=COLD_STARTS))
    facts: dict = field(default_factory=dict)
    # Requests/s of the ten minutes before.
    rps: float = 0.0
    fresh: bool = False
    # The last of so many, 35 s apart.
    ticks: int = 2
    # Flaps of the ten minutes before.
    flaps: int = 0


GUARDS = [
    Guard("no demand known: hold", Reason.DEMAND_UNKNOWN, 4, "no gateway has reported yet", facts={"demand": None}),
    Guard(
        "all gateways silent: hold", Reason.DEMAND_UNKNOWN, 4, "2 gateways are silent",
        facts={"demand": None, "silent_gateways": 2},
    ),
    Guard("one gateway silent: never down", Reason.DEMAND_UNKNOWN, 4, "1 gateway is silent", facts={"silent_gateways": 1}),
    Guard(
        "one gateway silent: still up", Reason.DEMAND_ROSE, 6, "headroom 35 %",
        facts={"silent_gateways": 1}, rps=36,
    ),
    Guard(
        "a ready replica silent: never down", Reason.LOAD_UNKNOWN, 4, "1 of 4 ready replicas is silent",
        facts={"silent_replicas": 1},
    ),
    Guard(
        "restarted without memory: nothing goes down for one cold start", Reason.RESTARTED, 4, "for another 40 s",
        fresh=True,
    ),
    Guard(
        "no calibration: hold", Reason.NO_CALIBRATION, 4, "nobody knows what one replica carries",
        policy=replace(POLICY, calibration=None),
    ),
    Guard(
        "an objective that no replica meets: hold", Reason.OBJECTIVE_UNREACHABLE, 4, "an empty step takes 8.5 ms of 9 ms",
        policy=replace(POLICY, tpot_s=0.009), rps=1,
    ),
    Guard(
        "unknown is no licence to pass maxReplicas", Reason.DEMAND_UNKNOWN, 3, "no gateway has reported yet",
        policy=replace(POLICY, max_replicas=3), facts={"demand": None},
    ),
    Guard(
        "unknown is no licence to stay below minReplicas", Reason.DEMAND_UNKNOWN, 6, "no gateway has reported yet",
        policy=replace(POLICY, min_replicas=6), facts={"demand": None},
    ),
    Guard("maxReplicas lowered: at once", Reason.AT_MAXIMUM, 2, "maxReplicas is 2", policy=replace(POLICY, max_replicas=2)),
    Guard(
        "maxReplicas lowered: also while a replacement would keep the target", Reason.AT_MAXIMUM, 4, "maxReplicas is 4",
        policy=replace(POLICY, min_replicas=4, max_replicas=4), supply=Supply(5, 4, (500.0,), cold_starts_s=COLD_STARTS),
    ),
    Guard("minReplicas raised: at once", Reason.AT_MINIMUM, 6, "minReplicas is 6", policy=replace(POLICY, min_replicas=6)),
    Guard(
        "up at most to twice what is ready or 8 more", Reason.STEP_LIMITED, 12, "4 are ready, at most 12 at once",
        policy=replace(POLICY, max_replicas=100), rps=360,
    ),
    Guard(
        "ready replicas fell away: the target stands", Reason.STEP_LIMITED, 30, "are needed, 0 are ready",
        policy=replace(POLICY, max_replicas=100), rps=360, supply=Supply(30, 0, (1.0,) * 30, cold_starts_s=COLD_STARTS),
    ),
    Guard(
        "what waits in gateways adds replicas", Reason.BACKLOG, 2, "backlog 1.05",
        rps=0.9, supply=Supply(1, 1, cold_starts_s=COLD_STARTS), facts={"queue": Queue(5000, 500_000, 60.0)},
        policy=replace(POLICY, max_replicas=5),
    ),
    Guard(
        "full caches add replicas that the work does not need", Reason.KV_CACHE, 5, "KV caches fill 4.71",
        rps=3.6, facts={"load": Load(replicas=4, active=10, kv_used_tokens=4_000_000, kv_max_tokens=4_000_000)},
    ),
    Guard(
        "replicas that should long be ready get replacements, two at most", Reason.STARTS_FAILED, 6, "2 failed to start",
        rps=22, supply=Supply(4, 1, (200.0, 200.0, 200.0), cold_starts_s=COLD_STARTS),
    ),
    Guard(
        "steps that take half as much again for three ticks: never down", Reason.MODEL_DRIFT, 4, "steps take 1.50 times",
        facts={"step_time_ratio": 1.5}, rps=3.6, ticks=4,
    ),
    Guard(
        "six starts within an hour that each took back a step down: nothing goes down", Reason.FLAPPING, 4, "6 starts in an hour",
        flaps=6,
    ),
    Guard(
        "replicas without a node do not", Reason.DEMAND_STEADY, 4, "forecast 3.00",
        rps=27, supply=Supply(4, 1, unschedulable=3, cold_starts_s=COLD_STARTS),
    ),
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.story)
def test_guards(guard):
    now, state = T0, None
    demand = DemandTotals()
    if not guard.fresh:
        points = []
        for i in range(121):
            n = guard.rps * TICK_S * i
            demand = DemandTotals(arrivals=n, prompt_tokens=n * 100, output_tokens=n * 10)
            points.append(DemandPoint(now + i * TICK_S, demand))
        now += 120 * TICK_S
        state = remember(points, now)
        # The hold is over, so that only the guard can keep the target.
        state = replace(state, wishes=(), flaps=tuple(T0 + 60.0 * i for i in range(guard.flaps)))
    supply = guard.supply
    facts = {"demand": demand, "served": ServedTotals()} | guard.facts
    # Two ticks, a hold apart: the first seeds the hold with the present target.
    decision = None
    for at in (now + 35.0 * i for i in range(guard.ticks)):
        n = guard.rps * (at - now)
        if facts["demand"] is not None:
            facts["demand"] = replace(
                demand,
                arrivals=demand.arrivals + n,
                prompt_tokens=demand.prompt_tokens + n * 100,
                output_tokens=demand.output_tokens + n * 10,
            )
        at_once = Sample(policy=guard.policy, supply=supply, **facts)
        decision = decide(state, at_once, at)
        state = decision.state
        if guard.fresh:
            break
    assert (decision.reason, decision.replicas) == (guard.reason, guard.replicas), decision.message
    assert guard.says in decision.message
    assert faults(decision.message) == [], decision.message


def test_the_same_fleet_without_a_guard_goes_down():
    """The control of the guards' table: with everything known and nothing to do, four become three."""
    fleet = Fleet(target=4)
    fleet.run(40)
    decision = next(d for d in (fleet.tick() for _ in range(20)) if d.replicas < 4)
    assert (decision.replicas, decision.reason) == (3, Reason.DEMAND_FELL)


def test_traffic_past_the_gateways_is_counted_at_the_replicas():
    fleet = Fleet(served=ServedTotals())
    decision = None
    for _ in range(60):
        s = fleet.served
        # Gateways see 1.8 requests/s, replicas 18.
        fleet.served = ServedTotals(s.admitted + 90, s.prompt_tokens + 9000, 0, s.output_tokens + 900)
        decision = fleet.tick(1.8)
    assert (decision.replicas, decision.reason) == (3, Reason.BYPASS_TRAFFIC)
    assert "more than the gateways sent" in decision.message


def test_answering_a_queue_is_not_traffic_past_the_gateways():
    fleet = Fleet(target=3, served=ServedTotals())
    waiting = 0
    for i in range(60):
        # Held for two minutes, then let go all at once.
        waiting = waiting + 50 if i < 24 else max(waiting - 400, 0)
        admitted = fleet.demand.arrivals + 50 - waiting
        fleet.served = ServedTotals(admitted, admitted * 100, 0, admitted * 10)
        decision = fleet.tick(10, queue=Queue(waiting, waiting * 100, 1.0 if waiting else 0.0))
        assert decision.terms.bypass == 0


def test_a_burst_that_replicas_tell_of_before_the_gateways_do_is_not_traffic_past_them():
    """Seen in the demo: 20 requests/s begin, the replicas' counts are a sample ahead of the gateways'."""
    fleet = Fleet(served=ServedTotals())
    ahead = 0.0
    for i in range(24):
        rate = 20.0 if i >= 12 else 0.0
        ahead += rate * 5
        fleet.served = ServedTotals(ahead + rate * 5, ahead * 100, 0, ahead * 10)
        decision = fleet.tick(rate)
        assert decision.terms.bypass == 0


def test_a_fleet_that_nobody_calls_sleeps_when_it_may_and_wakes_with_the_first_request():
    fleet = Fleet(target=2, policy=replace(POLICY, min_replicas=2, scale_to_zero_after_s=300.0))
    assert fleet.run(120, 1.0).replicas == 2
    assert fleet.run(295).reason == Reason.AT_MINIMUM
    decision = fleet.run(60)
    assert (decision.replicas, decision.reason) == (0, Reason.IDLE)
    # Silence does not wake it, and does not put minReplicas back.
    assert fleet.tick(demand=None, silent_gateways=1).replicas == 0
    decision = fleet.tick(queue=Queue(1, 100, 0.1))
    assert (decision.replicas, decision.reason) == (2, Reason.WAKING)


def test_a_fleet_with_a_long_stream_does_not_sleep():
    fleet = Fleet(policy=replace(POLICY, scale_to_zero_after_s=60.0))
    fleet.run(20, 1.0)
    assert fleet.run(600, load=Load(replicas=1, active=1)).replicas == 1


@pytest.mark.parametrize(
    ("cold_starts_s", "hold_s"),
    [((), 144.0), ((5.0,), 30.0), ((240.0,) * 3, 144.0), ((60.0,) * 2 + (400.0,) * 8, 240.0)],
)
def test_the_hold_follows_the_measured_cold_start(cold_starts_s, hold_s):
    decision = Fleet(cold_starts_s=cold_starts_s).tick()
    assert decision.terms.hold_s == pytest.approx(hold_s)


def test_a_restart_with_replay_knows_at_once_what_it_takes():
    fleet = Fleet(target=3)
    fleet.run(600, 18)
    points = [
        DemandPoint(T0 + i * TICK_S, DemandTotals(i * 90.0, 0.0 + i * 9000.0, 0.0, i * 900.0))
        for i in range(121)
    ]
    fleet.state = remember(points, fleet.now)
    # A standby that has listened for hours has other totals than the replayed hour: no burst may come of it.
    fleet.demand = DemandTotals(10**9, 10**11, 0.0, 10**10)
    decision = fleet.tick(18)
    assert (decision.replicas, decision.reason) == (3, Reason.DEMAND_STEADY)
    assert decision.terms.forecast == pytest.approx(2.0, rel=0.05)


def test_the_sentence_has_the_numbers():
    decision = Fleet().run(600, 18)
    assert decision.message == (
        "work for 2.00 replicas arrives (prefill 1.00, decode 1.00), forecast 2.00,"
        " each carries 9 requests/s (limit TPOT), headroom 35 %"
    )
    assert decision.terms.as_dict()["bound"] == "TPOT"


def test_every_reason_is_documented_and_reachable_here():
    assert set(REASONS) == set(Reason)
    tested = {g.reason for g in GUARDS} | {
        Reason.IDLE, Reason.WAKING, Reason.DEMAND_FELL, Reason.HOLDING_BEFORE_SCALE_DOWN, Reason.BYPASS_TRAFFIC,
    }  # fmt: skip
    assert tested == set(Reason)


def test_replicas_that_are_slower_than_calibrated_are_found_by_their_steps():
    steps = StepTotals()
    slow = CALIBRATION.step
    for i in range(2000):
        p, n = (i % 5) * 100, i % 40
        steps = steps.with_step(slow.a_s + 2 * slow.b_s * p + 2 * slow.c_s * n, p, n, n * 100)
    as_calibrated = Fleet().run(600, 18)
    slower = Fleet().run(600, 18, steps=steps)
    assert as_calibrated.terms.capacity_rps == pytest.approx(9.0)
    assert slower.terms.capacity_rps == pytest.approx(4.5, rel=0.03)
    assert (as_calibrated.terms.wanted, slower.terms.wanted) == (3, 6)


def test_a_need_next_to_a_whole_number_does_not_flap():
    """Poisson arrivals of 7.2 requests/s: 0.8 of work, 1.0 with headroom, by turns above and below one replica."""
    chance = random.Random(5)
    fleet = Fleet(target=2)
    targets = []
    for _ in range(720):
        n, at_s = 0, chance.expovariate(7.2)
        while at_s < TICK_S:
            n, at_s = n + 1, at_s + chance.expovariate(7.2)
        targets.append(fleet.tick(n / TICK_S).replicas)
    changes = sum(a != b for a, b in pairwise(targets))
    assert set(targets) <= {1, 2}
    # Following `wanted` alone changes 9 times in this hour.
    assert changes <= 6
