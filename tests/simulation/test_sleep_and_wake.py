"""A day in the life of a fleet that sleeps: two real pickers, the real book of demand, decide and plan, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet_gateway.picking.core import Ask, Core, Pick, Ticket
from moefleet_gateway.picking.facts import ColdStart, Limits, Load
from moefleet_gateway.picking.facts import Fleet as PickerFleet
from moefleet_gateway.picking.facts import Replica as PickerReplica
from moefleet_operator import names
from moefleet_operator.core.events import Key
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Capacity, Decision, Replica
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.steps import CreateReplica, DeleteReplica, MarkConditions
from moefleet_operator.scaling import Policy, Sample, State, Supply, decide
from moefleet_operator.telemetry.demand import DemandBook
from moefleet_perf import EIGHT_H800, load_calibration
from moefleet_testing.builders import NOW, a_fleet, a_pod, observed, true

FLEET = Key("models", "chat")
COLD_S = 240.0
TICK_S = 5.0
POLICY = Policy(1, 4, 0.1, 2.0, load_calibration(EIGHT_H800), scale_to_zero_after_s=1800.0)


@dataclass
class World:
    now: float = NOW
    pods: dict[str, PodFacts] = field(default_factory=dict)
    gateways: list[Core] = field(default_factory=lambda: [Core(600.0, turn=n) for n in range(2)])
    book: DemandBook = field(default_factory=DemandBook)
    state: State | None = None
    status: dict[str, object] = field(default_factory=lambda: {"desiredReplicas": 0})
    seq: int = 0
    created: list[float] = field(default_factory=list)
    # Seconds that each answered request waited.
    held_s: list[float] = field(default_factory=list)
    refused: int = 0
    waiting: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        self.book.expect(["g0", "g1"])
        fleet = PickerFleet(
            "models", "chat", "fu", "", "tiny", limits=Limits(1000, 600.0, 900.0),
            ready_replicas=0, cold_start=ColdStart(COLD_S, COLD_S),
        )  # fmt: skip
        for gateway in self.gateways:
            gateway.set_fleets([fleet], self.now)
        self.fleet = fleet

    # --- what happens ---

    def call(self, count: int) -> None:
        for _ in range(count):
            self.asked += 1
            gateway = self.gateways[self.asked % 2]
            answer = gateway.arrive(self.fleet, Ask(f"r{self.asked}", ids=500, max_tokens=100), self.now)
            if isinstance(answer, Pick):
                self.held_s.append(0.0)
            elif isinstance(answer, Ticket):
                self.waiting += 1
            else:
                self.refused += 1
        if any(gateway.newly_called() for gateway in self.gateways):
            # The picker tells it at once, and the operator looks every half second.
            self.tell()
            self.now += 0.5
            self.decide()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            self.kubelet()
            self.tell()
            self.decide()

    # --- the parts ---

    def tell(self) -> None:
        self.seq += 1
        for n, gateway in enumerate(self.gateways):
            lane = gateway.lanes["models/chat"]
            queue = lane.queue_now(self.now)
            said = gw.FleetDemand(
                namespace="models", fleet="chat", arrivals=lane.demand.arrivals, shed=lane.demand.shed,
                prompt_tokens=lane.demand.prompt_tokens,
                predicted_output_tokens=lane.demand.predicted_output_tokens,
                queue_requests=queue.requests, queue_prompt_tokens=queue.prompt_tokens,
                queue_oldest_s=queue.oldest_s,
            )  # fmt: skip
            sample = gw.DemandSample(incarnation="1", seq=self.seq, time_s=self.now, fleets=[said])
            self.book.put(f"g{n}", sample, self.now)

    def decide(self) -> None:
        live = [r for r in self.replicas() if r.live]
        supply = Supply(
            target=int(str(self.status["desiredReplicas"])),
            ready=sum(r.ready for r in live),
            pending_ages_s=tuple(self.now - r.pod.created_at for r in live if not r.ready),
            cold_starts_s=(COLD_S,) * 5,
        )
        sample = Sample(
            POLICY,
            supply,
            self.book.totals(FLEET),
            self.book.silent(self.now),
            self.book.queue(FLEET),
        )
        said = decide(self.state, sample, self.now)
        self.state = said.state
        self.plan(Decision(said.replicas, str(said.reason), said.message))

    def plan(self, decision: Decision) -> None:
        for _ in range(6):
            seen = observed(
                *self.replicas(),
                fleet=a_fleet(
                    mode="Automatic", replicas=None, may_sleep=True, max_replicas=4, status=self.status
                ),
                decision=decision,
                capacity=Capacity(4, 8, 8),
                gateways=(),
                gateway_expected=False,
            )
            made = plan(seen, self.now)
            assert made.status is not None
            self.status = dict(made.status)
            if not made.steps:
                return
            for step in made.steps:
                match step:
                    case CreateReplica():
                        self.created.append(self.now)
                        self.pods[step.name] = a_pod(
                            step.slot, uid=f"{step.name}-{len(self.created)}", created_at=self.now,
                            conditions={"PodScheduled": true()}, container=None, gates=(),
                        )  # fmt: skip
                    case DeleteReplica():
                        del self.pods[step.name]
                    case MarkConditions():
                        pod = self.pods[step.name]
                        marks = {m.type: true(m.reason, self.now) for m in step.marks if m.status == "True"}
                        self.pods[step.name] = replace(pod, conditions={**pod.conditions, **marks})
                    case _:
                        pass
            self.kubelet()

    def replicas(self) -> list[Replica]:
        out = []
        for pod in self.pods.values():
            drains = pod.is_true(names.CONDITION_DRAINING)
            load = ReplicaLoad("DRAINED" if drains else "SERVING") if pod.is_true("Ready") else None
            out.append(Replica(replace(pod, active=not drains), load))
        return out

    def kubelet(self) -> None:
        for name, seen in self.pods.items():
            pod = seen
            drains = pod.is_true(names.CONDITION_DRAINING)
            if self.now >= pod.created_at + COLD_S and not pod.is_true("Ready"):
                ready = {"ContainersReady": true(at=self.now), "Ready": true(at=self.now)}
                container = a_pod(0).container
                pod = replace(pod, conditions={**pod.conditions, **ready}, container=container)
                self.pods[name] = pod
            for gateway in self.gateways:
                if pod.is_true("Ready"):
                    gateway.set_replica(
                        PickerReplica(pod.uid, name, "models/chat", "fu", pod.ip, "c", True, drains), self.now
                    )
                    gateway.set_load(pod.uid, Load(pod.uid, not drains, "SERVING", self.now), self.now)
                    gateway.endpoints.acknowledge(gateway.endpoints.version)
        for gateway in self.gateways:
            for uid in set(gateway._replicas) - {p.uid for p in self.pods.values()}:
                gateway.drop_replica(uid, self.now)
            for _, answer in gateway.pump(self.now):
                self.waiting -= 1
                if isinstance(answer, Pick):
                    self.held_s.append(answer.held_s)
                else:
                    self.refused += 1

    def condition(self, type_: str) -> tuple[str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == type_)  # type: ignore[attr-defined]
        return found["status"], found["reason"]


def test_two_gateways_wake_it_once_and_hold_all_two_hundred_requests() -> None:
    world = World()
    world.run(3600)
    assert world.created == []
    assert (world.condition("Ready"), world.condition("Available")) == (
        ("True", "Asleep"),
        ("False", "Asleep"),
    )
    world.call(200)
    assert len(world.created) == 1, f"made at {world.created}"
    assert world.condition("Progressing") == ("True", "Waking")
    world.run(COLD_S + 30)
    assert (world.waiting, world.refused, len(world.held_s)) == (0, 0, 200)
    assert max(world.held_s) <= 1.1 * COLD_S
    assert world.condition("Ready")[0] == "True"
    assert len(world.created) == 1, (
        "200 that wait are no reason for a second one that comes after they are served"
    )


def test_a_whole_day_of_naps_wakes_it_once_for_each_call_and_never_flaps() -> None:
    world = World()
    for _ in range(8):
        world.call(3)
        world.run(3 * 3600)
        assert world.status["desiredReplicas"] == 0
        assert world.pods == {}
    assert len(world.created) == 8
    assert (world.refused, world.waiting) == (0, 0)
    assert max(world.held_s) <= 1.1 * COLD_S
