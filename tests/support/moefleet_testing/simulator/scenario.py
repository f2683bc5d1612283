"""One story for a seed: fleets are made, scaled, changed, disturbed; operators die; then all is quiet and must settle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moefleet_operator.api import API_VERSION
from moefleet_operator.core.events import DecisionMade, Key

from .api import Api, Object
from .gateways import Gateway, Request
from .nodes import Nodes
from .operators import OperatorProcess
from .replicas import Replica
from .rules import Rules
from .world import World

NAMESPACE = "models"
# Things happen for so long, then nobody touches anything: drains, starts and backoffs end within the quiet time.
ACTIVE_S = 240.0
QUIET_S = 200.0
# Without any change nothing is written for so long.
SILENT_S = 90.0
STREAM_LIMIT_S = 20
DRAIN_TIMEOUT_S = 25
CANARY_WINDOW_S = 4


@dataclass(slots=True)
class FleetStory:
    key: Key
    uid: str
    mode: str
    low: int
    high: int
    # What scaling says; None: it does not know.
    advice: int | None
    # What the fleet should have when all is quiet.
    target: int
    disturbed: bool = False
    gone: bool = False


class Scenario:
    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.api = Api(world)
        self.nodes = Nodes(world, self.api, self._replica_changed)
        self.gateways: list[Gateway] = []
        self.operators: list[OperatorProcess] = []
        for index in range(2):
            self.gateways.append(
                Gateway(world, self.api, self.nodes, f"gateway-{index}", self._gateway_changed)
            )
        self.rules = Rules(world, self.api, self.nodes, self.gateways)
        self.fleets: list[FleetStory] = []
        self.rival: Key | None = None
        self.requests = 0
        self.acts = 0
        # Seeds without disturbances must not lose a single request.
        self.calm = seed % 3 == 0
        self.fault_rate = 0.0 if self.calm else world.random.choice((0.0, 0.02, 0.08))
        if world.chance(0.3):
            # A gateway that is slow to withdraw: the replica's own refusal has to cover for it.
            self.gateways[1].lag_s = (0.05, 9.0)

    def run(self) -> None:
        world = self.world
        count = world.random.choice((1, 2, 3))
        wanted = 0
        for index in range(count):
            high = world.random.choice((1, 2, 4, 6))
            wanted += high + 1
            world.after(world.between(0.0, 5.0), lambda i=index, h=high: self._make_fleet(i, h))  # type: ignore[misc]
        for index in range(wanted + 1):
            self.nodes.add(f"node-{index}", 8)
        for _ in range(2):
            self._new_operator()
        world.after(world.between(20.0, 40.0), self._act)
        if world.chance(0.3):
            world.after(world.between(10.0, ACTIVE_S), self._claim_a_taken_name)
        world.run(ACTIVE_S)
        world.tell("quiet from here on")
        for operator in self.operators:
            operator.fault_rate = 0.0
        self._settle_targets()
        world.run(ACTIVE_S + QUIET_S)
        self._check_settled()
        before = self.api.writes
        world.run(ACTIVE_S + QUIET_S + SILENT_S)
        if self.api.writes != before:
            world.broken(
                "nothing is written when nothing changes",
                f"{self.api.writes - before} writes in {SILENT_S:.0f} s",
            )
        self._delete_all()
        world.run(ACTIVE_S + QUIET_S + SILENT_S + 60.0)
        self._check_gone()

    # --- what happens -----------------------------------------------------------------------------------------

    def _make_fleet(self, index: int, high: int) -> None:
        world = self.world
        mode = world.random.choice(("Automatic", "Automatic", "External", "Advisory"))
        low = world.random.randint(1, high)
        key = Key(NAMESPACE, f"fleet-{index}")
        made = self.api.create(
            "MoEFleet",
            fleet_body(key, mode, low, high, world.random.choice(("Auto", "Auto", "Surge", "InPlace"))),
        )
        assert made is not None
        story = FleetStory(
            key, made["metadata"]["uid"], mode, low, high, low if mode == "Automatic" else None, low
        )
        self.fleets.append(story)
        self.rules.aim(story.uid, low)
        world.tell(f"fleet {key} made: {mode}, {low} to {high}")
        world.after(40.0, lambda: self._traffic(story))

    def _act(self) -> None:
        """One thing after the other, at any time, also while the one before is not digested."""
        if self.world.now > ACTIVE_S - 10.0:
            return
        self.acts += 1
        world, story = self.world, self.world.random.choice(self.fleets)
        acts: list[Callable[[FleetStory], None]] = []
        acts += [self._scale] * 4 + [self._change_spec] * 2
        if not self.calm:
            acts += [self._lose_pod, self._crash_pod, self._evict_pod, self._forget_load, self._break_spec]
        acts += [
            lambda _s: self._kill_leader(),
            lambda _s: self._stop_leader(),
            lambda _s: self._cut_leader_off(),
            lambda _s: self._freeze_leader(),
        ]
        act = world.random.choice(acts)
        act(story)
        world.after(world.random.choice((0.3, 3.0, 12.0, 25.0)) * world.between(0.5, 1.5), self._act)

    def _scale(self, story: FleetStory) -> None:
        target = self.world.random.randint(story.low, story.high)
        self.world.tell(f"{story.key}: {target} replicas wanted")
        if story.mode == "Advisory":
            story.advice = target
            return
        story.target = target
        self.rules.aim(story.uid, target)
        if story.mode == "External":

            def write(o: Object) -> None:
                o["spec"]["replicas"] = target

            self.api.update("MoEFleet", story.key, write)
        else:
            story.advice = target

    def _change_spec(self, story: FleetStory) -> None:
        speed = self.world.random.randint(1, 3)
        self.world.tell(f"{story.key}: spec changes to speed {speed}")

        def write(o: Object) -> None:
            o["spec"]["engine"]["args"] = {"speed": speed}

        self.api.update("MoEFleet", story.key, write)

    def _break_spec(self, story: FleetStory) -> None:
        """Something that the world cannot serve; the cause goes after a while."""
        fault = self.world.random.choice(("image missing", "pod forbidden", "argument unknown"))
        story.disturbed = True
        self.world.tell(f"{story.key}: spec breaks, {fault}")

        def spoil(o: Object) -> None:
            engine = o["spec"]["engine"]
            engine["image"] = {"image missing": "missing:1", "pod forbidden": "forbidden:1"}.get(
                fault, "runtime:1"
            )
            engine["args"] = {"sped": 2} if fault == "argument unknown" else {"speed": 7}

        def fix(o: Object) -> None:
            o["spec"]["engine"].update(image="runtime:1", args={"speed": 4})

        def heal() -> None:
            self.world.tell(f"{story.key}: spec is put right")
            self.api.update("MoEFleet", story.key, fix)

        self.api.update("MoEFleet", story.key, spoil)
        self.world.after(
            min(self.world.between(10.0, 50.0), ACTIVE_S - self.world.now),
            heal,
        )

    def _claim_a_taken_name(self) -> None:
        """A younger fleet wants the model name of the first one: it gets a condition and no replica."""
        if not self.fleets or self.api.get("MoEFleet", self.fleets[0].key) is None:
            return
        key = Key(NAMESPACE, "rival")
        body = fleet_body(key, "Automatic", 1, 2, "Auto")
        body["spec"]["model"]["name"] = f"model-{self.fleets[0].key.name}"
        made = self.api.create("MoEFleet", body)
        assert made is not None
        self.world.tell(f"{key} claims the model name of {self.fleets[0].key}")
        self.rival = key

    def _lose_pod(self, story: FleetStory) -> None:
        pods = [p for p in self.api.pods_of(story.uid) if "deletionTimestamp" not in p["metadata"]]
        if not pods:
            return
        pod = self.world.random.choice(pods)
        story.disturbed = True
        self.rules.disturb(story.uid)
        self.world.tell(f"{pod['metadata']['name']} deleted by hand")
        self.api.delete_pod(Key(NAMESPACE, pod["metadata"]["name"]), None)

    def _crash_pod(self, story: FleetStory) -> None:
        pods = self.api.pods_of(story.uid)
        if pods:
            pod = self.world.random.choice(pods)
            story.disturbed = True
            self.rules.disturb(story.uid)
            self.world.tell(f"{pod['metadata']['name']} crashes")
            self.nodes.crash(pod["metadata"]["uid"])

    def _evict_pod(self, story: FleetStory) -> None:
        pods = [p for p in self.api.pods_of(story.uid) if p["spec"].get("nodeName")]
        if pods:
            pod = self.world.random.choice(pods)
            story.disturbed = True
            self.rules.disturb(story.uid)
            self.world.tell(f"{pod['metadata']['name']} evicted by its kubelet")
            self.nodes.evict(pod["metadata"]["uid"])

    def _forget_load(self, story: FleetStory) -> None:
        if story.mode == "Automatic":
            self.world.tell(f"{story.key}: load unknown")
            story.advice = None

    def _kill_leader(self) -> None:
        for operator in self.operators:
            if operator.leading():
                operator.kill()
                self.world.after(self.world.between(1.0, 20.0), self._new_operator)

    def _stop_leader(self) -> None:
        for operator in self.operators:
            if operator.leading():
                operator.stop()
                self.world.after(self.world.between(1.0, 5.0), self._new_operator)

    def _cut_leader_off(self) -> None:
        for operator in self.operators:
            if operator.leading():
                self.world.tell(f"{operator.name}: its requests for the Lease fail")
                operator.lease_cut_until = self.world.now + self.world.between(5.0, 30.0)

    def _freeze_leader(self) -> None:
        for operator in self.operators:
            if operator.leading():
                self.world.tell(f"{operator.name}: stands still")
                operator.frozen_until = self.world.now + self.world.between(5.0, 30.0)

    def _new_operator(self) -> None:
        name = f"operator-{len(self.operators)}"
        operator = OperatorProcess(
            self.world, self.api, self.nodes, gateways=self.gateways, name=name, decide=self._decide
        )
        operator.fault_rate = self.fault_rate if self.world.now < ACTIVE_S else 0.0
        self.operators.append(operator)

    def _traffic(self, story: FleetStory) -> None:
        if self.world.now > ACTIVE_S + QUIET_S / 2 or story.gone:
            return
        self.requests += 1
        gateway = self.world.random.choice(self.gateways)
        duration_s = min(STREAM_LIMIT_S - 1.0, self.world.random.expovariate(1 / 4.0) + 0.2)
        gateway.request(Request(self.requests, story.uid, self.world.now, duration_s))
        self.world.after(self.world.random.expovariate(0.7), lambda: self._traffic(story))

    def _decide(self) -> list[DecisionMade]:
        return [
            DecisionMade(
                s.key,
                s.advice,
                "DemandSteady" if s.advice is not None else "DemandUnknown",
                "as the story has it",
            )
            for s in self.fleets
            if s.mode != "External"
        ]

    def _replica_changed(self, replica: Replica) -> None:
        for gateway in self.gateways:
            gateway.replica_changed(replica)
        for operator in self.operators:
            if operator.alive:
                operator.replica_changed(replica)

    def _gateway_changed(self, gateway: Gateway) -> None:
        for operator in self.operators:
            if operator.alive:
                operator.gateway_changed(gateway)

    # --- how it ends ------------------------------------------------------------------------------------------

    def _settle_targets(self) -> None:
        for story in self.fleets:
            if story.mode == "Automatic" and story.advice is None:
                story.advice = story.target

    def _check_settled(self) -> None:
        for story in self.fleets:
            fleet = self.api.get("MoEFleet", story.key)
            assert fleet is not None
            self.rules.settled(fleet, story.target)
        if self.rival is not None:
            rival = self.api.get("MoEFleet", self.rival)
            assert rival is not None
            self.rules.nameless(rival)
        for gateway in self.gateways:
            undisturbed = {s.uid for s in self.fleets if not s.disturbed}
            lost = [r for r in gateway.failed if r.fleet_uid in undisturbed]
            if lost and self.calm:
                self.world.broken(
                    "no request is lost",
                    f"{len(lost)} through {gateway.name}, the first at {lost[0].arrived:.1f}",
                )

    def _delete_all(self) -> None:
        for story in self.fleets:
            story.gone = True
            self.api.remove("MoEFleet", story.key)
        if self.rival is not None:
            self.api.remove("MoEFleet", self.rival)

    def _check_gone(self) -> None:
        left = [p["metadata"]["name"] for p in self.api.all("Pod")]
        if left:
            self.world.broken("a deleted fleet leaves nothing", f"{left}")


def fleet_body(key: Key, mode: str, low: int, high: int, strategy: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "MoEFleet",
        "metadata": {"namespace": key.namespace, "name": key.name},
        "spec": {
            "model": {"name": f"model-{key.name}", "source": "file:///models/tiny", "contextLength": 4096},
            "engine": {"type": "Simulated", "image": "runtime:1", "args": {"speed": 1}},
            "replica": {"gpus": 8},
            "scaling": {"mode": mode, "minReplicas": low, "maxReplicas": high},
            **({"replicas": low} if mode == "External" else {}),
            "limits": {"streamDuration": f"{STREAM_LIMIT_S}s"},
            "rollout": {
                "strategy": strategy,
                "maxUnavailable": 1,
                "canary": {"window": f"{CANARY_WINDOW_S}s"},
                "drainTimeout": f"{DRAIN_TIMEOUT_S}s",
            },
        },
        "status": {},
    }
