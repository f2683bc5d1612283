"""One story: fleets are made, scaled, changed, disturbed; operators die; then all is quiet and must settle, again and again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from moefleet_operator.core.events import DecisionMade, Key

from .api import Api, Object, condition, uid_of
from .coverage import Pairs, states
from .faults import Faults
from .fleets import NAMESPACE, FleetStory, Users, body_of
from .gateways import Gateway, Request
from .nodes import START_S, Nodes
from .operators import OperatorProcess
from .replicas import Replica
from .rules import Rules, lately
from .schedule import LENGTH_S, Act, Episode, FleetPlan, Schedule, draw
from .settled import nameless, unsettled
from .world import World

# When faults have ended, everything is known again after a LIST, a backoff of a minute and a Lease that expires.
SETTLE_S = 200.0
# What is looked at to know that all has settled, so often.
LOOK_S = 10.0
# Without any change nothing is written for so long.
SILENT_S = 90.0
# A process may keep an API server's connection, and a Deployment needs its time to start another.
OPERATOR_START_S = (1.0, 20.0)


class Scenario:
    def __init__(self, schedule: Schedule | int) -> None:
        self.schedule = draw(schedule) if isinstance(schedule, int) else schedule
        self.world = world = World(self.schedule.seed)
        self.api = Api(world)
        self.nodes = Nodes(world, self.api, self._replica_changed)
        self.gateways: list[Gateway] = []
        self.operators: list[OperatorProcess] = []
        self.rules = Rules(world, self.api, self.nodes, self.gateways, self.operators)
        self.fleets: list[FleetStory] = []
        self.users = Users(world, self.api, self.rules, self.fleets)
        self.faults = Faults(self)
        self.pairs: Pairs = Counter()
        self.rival: Key | None = None
        self.requests = 0
        # Requests that nobody answered and that a fault excuses.
        self.lost = 0
        self.acts_done: set[int] = set()
        self._rng = world.stream("traffic")
        self._made = 0
        self._told: dict[tuple[str, Key], tuple[str, int | None]] = {}
        self._traffic_until = 0.0
        # Whoever asks for several things one after the other has done so by then.
        self._asked_until = 0.0
        # What an episode began has happened by then, whatever its length.
        self._lasts_until = 0.0

    @property
    def served(self) -> int:
        return sum(g.served for g in self.rules.all_gateways)

    def run(self) -> None:
        for _ in range(2):
            self.new_gateway()
        for _ in range(self._nodes_needed() - 1 + self.schedule.spare_nodes):
            self.nodes.add()
        for _ in range(2):
            self._new_operator()
        for index, plan in enumerate(self.schedule.fleets):
            self.users.make(index, plan)
        if self.schedule.rival:
            self.world.after(30.0, self._claim_a_taken_name)
        for episode in (Episode(30.0, (), False), *self.schedule.episodes):
            self._play(episode)
        if self.schedule.episodes:
            # What is left of two hours is idle.
            self.world.run(max(self.world.now, LENGTH_S - 300.0))
            self._check_settled()
        self._end()

    def _nodes_needed(self) -> int:
        """Everything that is wanted at most, one to surge, and one for another surge."""
        return sum(p.high for p in self.schedule.fleets) + 2

    # --- one episode ----------------------------------------------------------------------------------------------

    def _play(self, episode: Episode) -> None:
        world = self.world
        for act in episode.acts:
            world.after(act.at_s, lambda a=act: self._act(a))  # type: ignore[misc]
        self._traffic_until = world.now + episode.active_s + 20.0
        for story in self.fleets:
            world.after(self._rng.uniform(0.0, 20.0), lambda s=story: self._traffic(s))  # type: ignore[misc]
        world.run(world.now + episode.active_s)
        # The owners of the fleets apply them again a little after a restore.
        world.run(max(world.now, self._lasts_until))
        world.tell("quiet from here on")
        self.faults.heal()
        for story in self.fleets:
            self.users.mend(story)
            if story.mode == "Automatic" and story.advice is None:
                story.advice = story.bounded(story.low)
                self.rules.aim(story.uid, story.advice)
        while len(self.api.all("Node")) < self._nodes_needed():
            self.nodes.add()
        self._settle()
        if episode.silence:
            self._be_silent()

    def _act(self, act: Act) -> None:
        self.acts_done.add(act.number)
        story = self.fleets[int(act.who * len(self.fleets))]
        for state in states(self.api, story, self.operators):
            self.pairs[act.kind, state] += 1
        if act.kind in self.faults.kinds:
            self.faults.kinds[act.kind](story, act)
        elif act.kind == "node-added":
            self.nodes.add()
        elif act.kind in ("traffic-burst", "traffic-long"):
            self._burst(story, act)
        elif act.kind == "down-and-up" and not story.gone:
            self._down_and_up(story, act)
        elif not story.gone and not (
            self.rival is not None and act.kind in ("recreate", "delete-foreground")
        ):
            # With a rival, a fleet that goes loses its model name for good.
            self.users.acts[act.kind](story, act)

    def _down_and_up(self, story: FleetStory, act: Act) -> None:
        """All are wanted; fewer while long streams run; and all again before these have ended."""
        self._asked_until = self.world.now + 100.0
        for after_s, share in ((0.0, 0.999), (60.0, 0.0), (80.0 + 20.0 * act.what, 0.999)):
            scale = replace(act, kind="scale", what=share, long=1.0)
            self.world.after(after_s, lambda a=scale: self._scale(story, a))  # type: ignore[misc]
        long = replace(act, kind="traffic-long", what=1.0)
        self.world.after(40.0, lambda: self._burst(story, long))

    def _settle(self) -> None:
        """Until all is as it should be, and not longer than it may take."""
        bound_s = SETTLE_S + max(
            (2 + s.plan.high) * (START_S[1] + s.plan.drain_s + 10.0) + 2 * s.plan.canary_s
            for s in self.fleets
        )
        self.world.run(max(self.world.now, self._asked_until))
        until = self.world.now + bound_s
        while wrong := self._wrong():
            if self.world.now >= until:
                self.world.broken("a fleet settles", f"within {bound_s:.0f} s after the last fault: {wrong}")
            self._help_refused()
            self.world.run(self.world.now + LOOK_S)
        self._check_requests()
        for story in self.fleets:
            story.disturbed = False

    def _scale(self, story: FleetStory, act: Act) -> None:
        if not story.gone:
            self.users.scale(story, act)

    def _help_refused(self) -> None:
        """A revision that the fault of a moment ruined stays refused until its user asks for another one."""
        for story in self.fleets:
            fleet = self.api.get("MoEFleet", story.key)
            held = condition(fleet, "RolloutHeld") if fleet is not None and not story.gone else {}
            if held.get("status") == "True" and "is refused" in held.get("message", ""):
                self.users.edit(story)

    def _check_settled(self) -> None:
        if wrong := self._wrong():
            self.world.broken("a fleet settles", f"and stays so: {wrong}")

    def _wrong(self) -> dict[str, Any]:
        wrong: dict[str, Any] = {}
        if not any(o.leading() for o in self.operators):
            wrong["operators"] = "none leads"
        if len(self.gateways) < 2:
            wrong["gateways"] = len(self.gateways)
        for story in self.fleets:
            fleet = self.api.get("MoEFleet", story.key)
            if fleet is None or uid_of(fleet) != story.uid:
                wrong[str(story.key)] = "absent"
                continue
            desired = (fleet.get("status") or {}).get("desiredReplicas")
            target = story.target if story.target is not None else desired
            if not isinstance(target, int) or (story.target is None and target not in range(story.high + 1)):
                wrong[str(story.key)] = f"no target: {desired}"
            elif found := unsettled(self.api, fleet, target):
                wrong[str(story.key)] = {"wanted": target, **found}
        rival = self.api.get("MoEFleet", self.rival) if self.rival is not None else None
        if rival is not None and (found := nameless(self.api, rival)):
            wrong[str(self.rival)] = found
        return wrong

    def _be_silent(self) -> None:
        self._traffic_until = 0.0
        self.world.run(self.world.now + 65.0)
        if any(p["status"]["phase"] == "Failed" for p in self.api.all("Pod")):
            # Those are forgotten when their time has come.
            return
        before = self.api.writes
        self.world.run(self.world.now + SILENT_S)
        if self.api.writes != before:
            last = self.world.story[-3:]
            self.world.broken(
                "nothing is written when nothing changes",
                f"{self.api.writes - before} writes in {SILENT_S:.0f} s, the last: {last}",
            )

    def _check_requests(self) -> None:
        """Whatever happens to operators and the API server: requests of a fleet that nothing was taken from are answered."""
        for gateway in self.rules.all_gateways:
            for request in gateway.failed:
                story = next((s for s in self.fleets if s.uid == request.fleet_uid), None)
                if story is None or story.disturbed or story.strategy == "InPlace":
                    continue
                told = self.rules.of(story.uid)
                if 0 in lately(told.targets, request.arrived - 120.0):
                    continue
                self.world.broken(
                    "no request is lost", f"of {story.key} through {gateway.name}, at {request.arrived:.1f}"
                )
            self.lost += len(gateway.failed)
            gateway.failed.clear()

    def _end(self) -> None:
        """All fleets are deleted, and nothing of them is left."""
        for story in self.fleets:
            story.gone = True
            self.api.remove("MoEFleet", story.key)
        if self.rival is not None:
            self.api.remove("MoEFleet", self.rival)
        longest_s = max(p.drain_s for p in self.schedule.fleets)
        self.world.run(max(LENGTH_S if self.schedule.episodes else 0.0, self.world.now + longest_s + 60.0))
        left = [p["metadata"]["name"] for p in self.api.all("Pod")]
        if left:
            self.world.broken("a deleted fleet leaves nothing", f"{left}")

    # --- traffic ----------------------------------------------------------------------------------------------------

    def _traffic(self, story: FleetStory) -> None:
        if self.world.now < self._traffic_until:
            self._request(story, self._rng.expovariate(1 / 4.0) + 0.2)
            self.world.after(self._rng.expovariate(1 / 8.0), lambda: self._traffic(story))

    def _burst(self, story: FleetStory, act: Act) -> None:
        long = act.kind == "traffic-long"
        for _ in range(3 + int(act.what * (6 if long else 25))):
            took_s = story.plan.stream_s * self._rng.uniform(0.5, 1.0) if long else self._rng.expovariate(0.2)
            self.world.after(
                self._rng.uniform(0.0, 15.0 * act.long),
                lambda s=took_s: self._request(story, s),  # type: ignore[misc]
            )

    def _request(self, story: FleetStory, duration_s: float) -> None:
        if story.gone or not self.gateways:
            return
        if story.advice == 0:
            self.world.after(self._rng.uniform(0.0, 5.0), lambda: self.users.wake(story))
        self.requests += 1
        gateway = self._rng.choice(self.gateways)
        gateway.request(
            Request(self.requests, story.uid, self.world.now, min(story.plan.stream_s - 1.0, duration_s))
        )

    # --- for the faults -----------------------------------------------------------------------------------------------

    def new_gateway(self) -> None:
        name = f"gateway-{len(self.rules.all_gateways)}"
        gateway = Gateway(self.world, self.api, self.nodes, name, self._gateway_changed)
        self.gateways.append(gateway)
        self.rules.all_gateways.append(gateway)

    def rewrite(self, story: FleetStory, engine: dict[str, Any]) -> None:
        def write(o: Object) -> None:
            o["spec"] = {**o["spec"], "engine": engine}

        self.api.update("MoEFleet", story.key, write)

    def disturb_all(self) -> None:
        for story in self.fleets:
            story.disturbed = True

    def all_there(self) -> bool:
        return all(not s.gone and self.api.get("MoEFleet", s.key) is not None for s in self.fleets)

    def last_until(self, at: float) -> None:
        self._lasts_until = max(self._lasts_until, at)

    def apply_again(self) -> None:
        """Whoever keeps the fleets' specs applies them to what the backup knew."""
        for story in self.fleets:
            fleet = self.api.get("MoEFleet", story.key)
            if fleet is None:
                self.world.after(3.0, lambda s=story: self.users.make_again(s))  # type: ignore[misc]
            else:
                story.uid = uid_of(fleet)
                self.world.after(3.0, lambda s=story: self.users.apply(s))  # type: ignore[misc]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _claim_a_taken_name(self) -> None:
        """A younger fleet wants the model name of the first one: it gets a condition and no replica."""
        key = Key(NAMESPACE, "rival")
        plan = FleetPlan("Automatic", 1, 2, "Auto", 20, 25, False, 4)
        body = body_of(FleetStory(key, plan, "", "Automatic", 1, 2, 1, 1, "Auto"))
        body["spec"]["model"]["name"] = f"model-{self.fleets[0].key.name}"
        self.api.create("MoEFleet", body)
        self.world.tell(f"{key} claims the model name of {self.fleets[0].key}")
        self.rival = key

    def _new_operator(self, clock_error_s: float = 0.0) -> None:
        name = f"operator-{self._made}"
        self._made += 1
        self.operators.append(
            OperatorProcess(
                self.world,
                self.api,
                self.nodes,
                gateways=self.gateways,
                name=name,
                decide=self._decide,
                check=self.rules.check,
                died=self._operator_died,
                clock_error_s=clock_error_s,
            )
        )

    def _operator_died(self, operator: OperatorProcess) -> None:
        self.operators.remove(operator)
        self.rules.trouble(self.world.now + 45.0)
        # On the same machine, so by its clock.
        delay_s, error_s = self._rng.uniform(*OPERATOR_START_S), operator.clock_error_s
        self.world.after(delay_s, lambda: self._new_operator(error_s))

    def _decide(self, operator: OperatorProcess) -> list[DecisionMade]:
        """As the real sizing: the leader is told what is new, and all of it when it begins to lead."""
        if not operator.leading():
            for told in [t for t in self._told if t[0] == operator.name]:
                del self._told[told]
            return []
        out = []
        known = {key: uid_of(raw) for key, raw in operator.core.fleets().items()}
        for story in self.fleets:
            # It decides on the fleets that the core knows; one that was made a moment ago may not be known yet.
            if story.mode == "External" or known.get(story.key) != story.uid:
                continue
            news = (story.uid, story.advice)
            if self._told.get((operator.name, story.key)) != news or not operator.core.remembers(story.key):
                self._told[operator.name, story.key] = news
                out.append(story.decision())
        return out

    def _replica_changed(self, replica: Replica) -> None:
        for gateway in self.gateways:
            gateway.replica_changed(replica)
        for operator in self.operators:
            operator.replica_changed(replica)

    def _gateway_changed(self, gateway: Gateway) -> None:
        for operator in self.operators:
            operator.gateway_changed(gateway)
