"""The scaling tick: who decides, what is told once, what is forgotten, and whom the hub listens to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

from moefleet_operator.core.events import DecisionMade, Event, Json, Key, NumbersMeasured
from moefleet_operator.handlers.sizing import Sizing
from moefleet_operator.metrics import Metrics
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.scaling import DemandTotals, Policy, Sample, Supply
from moefleet_operator.telemetry import Figures, GatewayTarget, ReplicaTarget, TelemetryHub
from moefleet_testing.builders import NOW, a_container, a_pod, true

CHAT = Key("models", "chat")


class Clock:
    wall_s = NOW

    def now(self) -> float:
        return self.wall_s - NOW

    def wall(self) -> float:
        return self.wall_s

    async def sleep(self, seconds: float) -> None:
        self.wall_s += seconds


class World:
    """The core's view."""

    errors: Mapping[Key, str] = {}

    def __init__(self) -> None:
        self.leads = True
        self.raw: dict[Key, Json] = {CHAT: fleet()}
        self.pods = [a_pod(0, conditions={"Ready": true()}, gates=())]
        self.gateway_pods: list[PodFacts] = []
        self.wanted: int | None = 1
        self.remembered = True

    def leading(self, now: float) -> bool:
        return self.leads

    def fleets(self) -> Mapping[Key, Json]:
        return self.raw

    def remembers(self, fleet: Key) -> bool:
        return self.remembered

    def target(self, fleet: Key) -> int | None:
        return self.wanted

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        return [Replica(pod, None) for pod in self.pods]

    def gateways(self) -> Sequence[PodFacts]:
        return self.gateway_pods


class Hub(TelemetryHub):
    """Answers what a test sets, instead of what streams say."""

    def __init__(self) -> None:
        self.demand: DemandTotals | None = DemandTotals()
        self.silent = 0
        self.forgotten: list[Key] = []
        self.gateways: set[GatewayTarget] | None = None
        self.replicas: set[ReplicaTarget] | None = None
        self.told = 0
        self.broken: set[Key] = set()

    def sample(self, fleet: Key, policy: Policy, supply: Supply, now: float) -> Sample:
        if fleet in self.broken:
            raise ValueError("a defect")
        return Sample(policy=policy, supply=supply, demand=self.demand, silent_gateways=self.silent)

    def history(self, fleet: Key, now: float) -> list[Any]:
        return []

    def figures(self, fleet: Key, *, ttft_limit_s: float, tpot_limit_s: float) -> Figures:
        return Figures()

    def forget(self, fleet: Key) -> None:
        self.forgotten.append(fleet)

    def set_gateways(self, gateways: Any) -> None:
        self.gateways = set(gateways)

    def set_replicas(self, replicas: Any) -> None:
        self.replicas = set(replicas)
        self.told += 1


def fleet(mode: str = "Automatic", uid: str = "fleet-uid", **scaling: Any) -> Json:
    return {
        "metadata": {"namespace": "models", "name": "chat", "uid": uid},
        "spec": {
            "model": {"name": "tiny", "source": "file:///models/tiny"},
            "engine": {"type": "Simulated", "image": "runtime:1"},
            "scaling": {"mode": mode, "minReplicas": 1, "maxReplicas": 4, **scaling},
        },
    }


class Desk:
    def __init__(self) -> None:
        self.world, self.hub, self.clock, self.metrics = World(), Hub(), Clock(), Metrics()
        self.told: list[Event] = []
        self.sightings = 0
        self.sizing = Sizing(
            view=self.world,
            hub=self.hub,
            emit=self.told.append,
            clock=self.clock,
            metrics=self.metrics,
            sightings=lambda: self.sightings,
        )

    def tick(self) -> list[DecisionMade]:
        before = len(self.told)
        self.clock.wall_s += 5.0
        self.sizing.tick()
        return [event for event in self.told[before:] if isinstance(event, DecisionMade)]


def test_a_decision_is_told_when_it_changes_and_not_every_tick() -> None:
    desk = Desk()
    first = desk.tick()
    assert [(d.fleet, d.replicas) for d in first] == [(CHAT, 1)]
    assert desk.tick() == []
    desk.hub.demand = None
    assert [(d.replicas, d.reason) for d in desk.tick()] == [(1, "DemandUnknown")]


def test_what_the_load_needs_is_told_when_a_bound_holds_it_and_only_then() -> None:
    desk = Desk()
    assert [d.needed for d in desk.tick()] == [None]
    # The fleet is older than our memory of it: for one cold start (default 240 s, p90 of those seen 300 s) it would move by one at most.
    for _ in range(61):
        desk.tick()
    # 200 requests a second of 2000 tokens each: more than four replicas carry.
    told: list[DecisionMade] = []
    for n in range(1, 9):
        arrivals = 1000.0 * n
        desk.hub.demand = DemandTotals(
            arrivals=arrivals, prompt_tokens=2000 * arrivals, output_tokens=300 * arrivals
        )
        told += desk.tick()
    last = told[-1]
    assert (last.replicas, last.reason) == (4, "AtMaximum")
    assert last.needed is not None
    assert last.needed > 4


def test_numbers_are_told_when_they_change() -> None:
    desk = Desk()
    for _ in range(3):
        desk.tick()
    assert len([event for event in desk.told if isinstance(event, NumbersMeasured)]) == 1


def test_a_standby_decides_nothing_and_a_new_leader_tells_everything_anew() -> None:
    desk = Desk()
    desk.tick()
    desk.world.leads = False
    assert desk.tick() == []
    assert "moefleet_operator_scaling_replicas{" not in desk.metrics.text().decode()
    desk.world.leads = True
    assert len(desk.tick()) == 1


def test_what_the_core_has_forgotten_in_a_moment_without_the_lease_is_told_again() -> None:
    desk = Desk()
    first = desk.tick()
    desk.world.remembered = False
    assert desk.tick() == first
    desk.world.remembered = True
    assert desk.tick() == []


def test_in_external_mode_the_number_is_measured_and_not_told() -> None:
    desk = Desk()
    desk.world.raw = {CHAT: fleet("External")}
    assert desk.tick() == []
    assert (
        'moefleet_operator_scaling_replicas{fleet="chat",namespace="models"} 1.0'
        in desk.metrics.text().decode()
    )


def test_a_fleet_that_is_gone_or_new_under_its_name_is_forgotten() -> None:
    desk = Desk()
    desk.tick()
    desk.world.raw = {CHAT: fleet(uid="another")}
    assert len(desk.tick()) == 1
    assert desk.hub.forgotten == [CHAT]
    desk.world.raw = {}
    desk.tick()
    assert desk.hub.forgotten == [CHAT, CHAT]


def test_a_silent_gateway_holds_the_memory_back_for_half_a_minute_only() -> None:
    desk = Desk()
    desk.hub.silent = 1
    reasons = [decision.reason for _ in range(9) for decision in desk.tick()]
    memory = desk.sizing._memories[CHAT]
    assert reasons, "nothing was decided"
    assert memory.state is not None


def test_a_fleet_that_cannot_be_read_does_not_stop_the_others() -> None:
    desk = Desk()
    broken = Key("models", "broken")
    desk.world.raw = {broken: {"metadata": {"uid": "b"}, "spec": {"engine": 7}}, CHAT: fleet()}
    assert [decision.fleet for decision in desk.tick()] == [CHAT]


def test_the_hub_hears_of_pods_when_they_change() -> None:
    desk = Desk()
    desk.world.gateway_pods = [a_pod(7, uid="g1", ip="fd00::1"), a_pod(8, uid="g2", ip="")]
    desk.sizing.listen()
    assert desk.hub.gateways == {GatewayTarget("g1", "[fd00::1]:8502")}
    assert desk.hub.replicas == {ReplicaTarget("uid-1-0", CHAT, "fleet-uid", "10.0.0.1:8501", ready=True)}
    desk.sizing.listen()
    desk.sightings += 1
    desk.sizing.listen()
    assert desk.hub.told == 1
    desk.world.pods = []
    desk.sightings += 1
    desk.sizing.listen()
    assert desk.hub.replicas == set()


BROKEN = Key("models", "broken")


def load(n: int) -> DemandTotals:
    return DemandTotals(arrivals=50.0 * n, prompt_tokens=50_000.0 * n, output_tokens=5_000.0 * n)


def test_a_speed_beyond_all_sense_harms_no_fleet() -> None:
    desk = Desk()
    absurd = fleet()
    absurd = {
        **absurd,
        "spec": {**absurd["spec"], "engine": {**absurd["spec"]["engine"], "args": {"speed": 1e308}}},
    }
    desk.world.raw = {BROKEN: absurd, CHAT: fleet()}
    decided: set[Key] = set()
    for n in range(1, 13):
        desk.hub.demand = load(n)
        decided |= {decision.fleet for decision in desk.tick()}
    assert decided == {BROKEN, CHAT}


def test_a_defect_at_one_fleet_is_said_once_and_the_others_are_decided() -> None:
    desk = Desk()
    desk.world.raw = {BROKEN: fleet(), CHAT: fleet()}
    desk.hub.broken = {BROKEN}
    first = desk.tick()
    assert [(d.fleet, d.replicas, d.reason) for d in first] == [
        (BROKEN, None, "InternalError"),
        (CHAT, 1, ANY),
    ]
    assert first[0].message == "ValueError: a defect"
    assert desk.tick() == [], "the same error is no news"
    desk.hub.broken = set()
    assert [d.fleet for d in desk.tick()] == [BROKEN], "it is decided on again as soon as it can be"


def test_a_defect_at_a_fleet_that_scaling_does_not_steer_is_not_its_decision() -> None:
    desk = Desk()
    desk.world.raw = {CHAT: fleet("External")}
    desk.hub.broken = {CHAT}
    assert desk.tick() == []


def test_a_cold_start_counts_once_and_with_the_attempts_that_failed() -> None:
    desk = Desk()
    born = desk.clock.wall() + 3.0
    crashed = a_container(restarts=1, ready=False, started=False, state="waiting", reason="CrashLoopBackOff")
    unready = a_pod(1, conditions={}, created_at=born, container=a_container(ready=False, started=False))
    desk.world.pods = [unready]
    desk.tick()
    desk.world.pods = [replace(unready, container=crashed)]
    for _ in range(3):
        desk.tick()
    ready_at = born + 18.0
    conditions = {"PodScheduled": true(at=born + 1), "Ready": true(at=ready_at)}
    up = a_container(restarts=1, started_at=born + 12)
    desk.world.pods = [replace(unready, conditions=conditions, container=up)]
    for _ in range(3):
        desk.tick()
    measured = [event.numbers for event in desk.told if isinstance(event, NumbersMeasured)][-1]
    assert measured["coldStart"]["starts"] == 1
    assert measured["coldStart"]["p99"] == "18s"
    assert measured["coldStart"]["slowestPhase"] == "restarting"
    labels = 'fleet="chat",namespace="models",phase='
    text = desk.metrics.text().decode()
    assert f'moefleet_operator_cold_start_seconds_count{{{labels}"total"}} 1.0' in text
    assert f'moefleet_operator_cold_start_seconds_sum{{{labels}"restarting"}} 11.0' in text
    # It crashes after it has served: that is no cold start.
    desk.world.pods = [replace(unready, container=crashed)]
    desk.tick()
    desk.world.pods = [
        replace(unready, conditions={"Ready": true(at=ready_at + 500)}, container=replace(up, restarts=2))
    ]
    desk.tick()
    assert (
        f'moefleet_operator_cold_start_seconds_count{{{labels}"total"}} 1.0' in desk.metrics.text().decode()
    )
    desk.world.raw = {}
    desk.tick()
    assert "moefleet_operator_cold_start_seconds_count{" not in desk.metrics.text().decode()
