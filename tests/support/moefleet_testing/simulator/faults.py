"""How each kind of fault begins, and how all of them end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from moefleet_operator import names
from moefleet_operator.core.events import Key

from .api import Api, Object, key_of, uid_of
from .fleets import FleetStory
from .gateways import Gateway
from .nodes import GPU, NODE_GRACE_S, Nodes
from .operators import OperatorProcess
from .rules import Rules
from .schedule import Act
from .world import World

FILLER = Key("other", "filler")


class Stage(Protocol):
    """What faults need of the scenario."""

    world: World
    api: Api
    nodes: Nodes
    rules: Rules
    gateways: list[Gateway]
    operators: list[OperatorProcess]

    def new_gateway(self) -> None: ...
    def rewrite(self, story: FleetStory, engine: dict[str, Any]) -> None: ...
    def disturb_all(self) -> None: ...
    def all_there(self) -> bool: ...
    def apply_again(self) -> None: ...
    def last_until(self, at: float) -> None: ...


class Faults:
    def __init__(self, stage: Stage) -> None:
        self.stage, self.world, self.api = stage, stage.world, stage.api
        self.nodes, self.rules = stage.nodes, stage.rules
        weather = self._weather
        self.kinds: dict[str, Callable[[FleetStory, Act], None]] = {
            "leader-killed": lambda _s, _a: self._leader(lambda o: o.kill()),
            "leader-killed-at-effect": self._kill_at_effect,
            "leader-stopped": lambda _s, _a: self._leader(lambda o: o.stop()),
            "leader-frozen": self._freeze_leader,
            "lease-cut": lambda _s, a: self._leader(
                lambda o: setattr(o.weather, "lease_cut_until", self._until(a, 5.0, 40.0))
            ),
            "clock-jump": self._jump_clock,
            "api-errors": self._errors,
            "api-slow": lambda _s, a: weather(a, "slow_until", 10.0, 90.0),
            "api-throttled": lambda _s, a: weather(a, "throttled_until", 10.0, 90.0),
            "api-away": lambda _s, a: weather(a, "away_until", 5.0, 120.0),
            "api-conflicts": lambda _s, a: weather(a, "conflicts_until", 10.0, 90.0),
            "watch-lost": lambda _s, a: weather(a, "watch_lossy_until", 5.0, 120.0),
            "watch-cut": lambda _s, a: weather(a, "watch_cut_until", 5.0, 120.0),
            "watch-twice": lambda _s, a: weather(a, "watch_twice_until", 5.0, 120.0),
            "watch-disordered": lambda _s, a: weather(a, "watch_disordered_until", 5.0, 120.0),
            "lists-stale": lambda _s, a: weather(a, "lists_stale_until", 60.0, 240.0),
            "load-unknown": self._forget_load,
            "telemetry-lost": self._lose_telemetry,
            "gateway-silent": self._silence_gateway,
            "gateway-slow": self._slow_gateway,
            "pod-deleted": self._delete_pod,
            "pod-forced": self._delete_pod,
            "label-edited": self._edit_label,
            "replica-crashed": lambda s, a: self._replica(s, a, self.nodes.crash, "crashes"),
            "replica-hung": lambda s, a: self._replica(s, a, self.nodes.hang, "hangs"),
            "replica-evicted": lambda s, a: self._replica(
                s, a, self.nodes.evict, "is evicted by its kubelet"
            ),
            "slow-start": self._slow_start,
            "crash-loop": self._crash_loop,
            "revision-broken": self._break_revision,
            "gateway-killed": self._kill_gateway,
            "node-cordoned": lambda s, a: self._node(s, a, self._cordon, "is cordoned"),
            "node-drained": lambda s, a: self._node(s, a, self._drain, "is drained"),
            "node-lost": lambda s, a: self._node(s, a, self._lose, "is lost"),
            "node-frozen": lambda s, a: self._node(s, a, self._freeze, "stands still"),
            "node-tainted": lambda s, a: self._node(s, a, self._taint, "is tainted"),
            "node-gpu-failed": lambda s, a: self._node(s, a, self._fail_gpu, "loses its GPUs"),
            "node-filled": self._fill_node,
            "api-restored": self._restore,
        }

    def heal(self) -> None:
        """Everything works again from now on."""
        for operator in self.stage.operators:
            operator.weather.clear()
            operator.frozen_until = 0.0
            operator.clock_error_s = 0.0
            operator.dies_at_effect = 0
            if operator.alive:
                operator.relist()
                operator.hear_again()
        for gateway in self.stage.gateways:
            gateway.silent_until, gateway.lag_s = 0.0, (0.05, 0.5)
        self.rules.troubled_until = min(self.rules.troubled_until, self.world.now + 5.0)
        self.nodes.slow_starts, self.nodes.crashing_until = (0.0, 1.0), 0.0
        for replica in list(self.nodes.replicas.values()):
            pod = self.api.pod(replica.uid)
            if replica.hung and pod is not None and pod["spec"]["nodeName"] not in self.nodes.still:
                self.nodes.excused.discard(replica.uid)
                replica.unhang()
        for name in list(self.nodes.still):
            self.nodes.wake(name)
        for node in self.api.all("Node"):
            self._mend_node(key_of(node))
        self.api.remove("Pod", FILLER)
        self.nodes.schedule_all()

    # --- operators ------------------------------------------------------------------------------------------------

    def _leader(self, act: Callable[[OperatorProcess], None]) -> None:
        self.rules.trouble(self.world.now + 45.0)
        for operator in list(self.stage.operators):
            if operator.leading():
                self.world.tell(f"{operator.name}: leads, and something happens to it")
                act(operator)

    def _kill_at_effect(self, _story: FleetStory, act: Act) -> None:
        self._leader(lambda o: setattr(o, "dies_at_effect", 1 + int(act.what * 12)))

    def _freeze_leader(self, _story: FleetStory, act: Act) -> None:
        self._leader(lambda o: setattr(o, "frozen_until", self._until(act, 5.0, 40.0)))

    def _jump_clock(self, _story: FleetStory, act: Act) -> None:
        share = 2.0 * act.what - 1.0
        error_s = share * 60.0 if act.long < 0.5 else share * 1700.0 + (100.0 if share > 0 else -100.0)

        def jump(operator: OperatorProcess) -> None:
            operator.clock_error_s = error_s
            self.world.tell(f"the clock of its machine is {error_s:.0f} s wrong")
            if act.who < 0.5:
                # One that begins by the wrong clock; one that runs already goes by what it was told, and by its own steps.
                operator.kill("started anew by that clock")

        self._leader(jump)

    def _weather(self, act: Act, name: str, low_s: float, high_s: float) -> None:
        """For all operators, or for the leader alone."""
        until = self._until(act, low_s, high_s)
        self.rules.trouble(until + 20.0)
        whom = [o for o in self.stage.operators if o.alive and (act.what < 0.5 or o.leading())]
        self.world.tell(f"{name} {until - self.world.now:.0f} s for {[o.name for o in whom]}")
        for operator in whom:
            setattr(operator.weather, name, until)
            if name in ("watch_cut_until", "away_until"):
                operator.be_deaf()
                self.world.after(until - self.world.now + 1.0, lambda o=operator: o.alive and o.relist(4.0))  # type: ignore[misc]

    def _errors(self, _story: FleetStory, act: Act) -> None:
        self._weather(act, "errors_until", 10.0, 180.0)
        for operator in self.stage.operators:
            operator.weather.error_rate = 0.05 if act.what < 0.25 else 0.4

    def _forget_load(self, story: FleetStory, _act: Act) -> None:
        if story.mode == "Automatic":
            self.world.tell(f"{story.key}: load unknown")
            story.advice = None

    def _lose_telemetry(self, _story: FleetStory, act: Act) -> None:
        until = self._until(act, 5.0, 90.0)
        self.rules.trouble(until)
        self._leader(lambda o: o.lose_telemetry(until, broken=act.what < 0.5))

    # --- gateways -------------------------------------------------------------------------------------------------

    def _silence_gateway(self, _story: FleetStory, act: Act) -> None:
        if not self.stage.gateways:
            return
        gateway = self._pick(self.stage.gateways, act.who)
        gateway.silent_until = self._until(act, 5.0, 90.0)
        self.rules.trouble(gateway.silent_until)
        self.world.tell(f"{gateway.name} tells the operators nothing")
        self.world.after(
            gateway.silent_until - self.world.now, lambda: gateway.alive and gateway.changed(gateway)
        )

    def _slow_gateway(self, _story: FleetStory, act: Act) -> None:
        if self.stage.gateways:
            gateway = self._pick(self.stage.gateways, act.who)
            gateway.lag_s = (0.05, 9.0)
            self.rules.trouble(self.world.now + 60.0)
            self.world.tell(f"{gateway.name} is slow to learn")

    def _kill_gateway(self, _story: FleetStory, act: Act) -> None:
        if not self.stage.gateways:
            return
        gateway = self._pick(self.stage.gateways, act.who)
        self.world.tell(f"{gateway.name} killed")
        self._disturb_all()
        self.stage.gateways.remove(gateway)
        gateway.kill()
        for operator in self.stage.operators:
            operator.gateway_changed(gateway)
        self.world.after(2.0 + 30.0 * act.what, self.stage.new_gateway)

    # --- pods and replicas ----------------------------------------------------------------------------------------

    def _delete_pod(self, story: FleetStory, act: Act) -> None:
        pods = [p for p in self.api.pods_of(story.uid) if "deletionTimestamp" not in p["metadata"]]
        if not pods:
            return
        pod = self._pick(pods, act.what)
        self._disturb(story)
        forced = act.kind == "pod-forced"
        self.world.tell(f"{pod['metadata']['name']} deleted by hand{', by force' if forced else ''}")
        if forced:
            self.nodes.excused.add(uid_of(pod))
        self.api.delete_pod(key_of(pod), 0 if forced else None)

    def _edit_label(self, story: FleetStory, act: Act) -> None:
        pods = self.api.pods_of(story.uid)
        if not pods:
            return
        pod = self._pick(pods, act.what)
        label = (names.LABEL_ACTIVE, names.LABEL_FLEET)[int(act.long * 2)]
        self._disturb(story)
        self.world.tell(f"label {label} of {pod['metadata']['name']} is taken off by hand")
        self.api.update("Pod", key_of(pod), lambda o: o["metadata"]["labels"].pop(label, None))

    def _replica(self, story: FleetStory, act: Act, do: Callable[[str], None], what: str) -> None:
        pods = [p for p in self.api.pods_of(story.uid) if p["spec"].get("nodeName")]
        if pods:
            pod = self._pick(pods, act.what)
            self._disturb(story)
            self.world.tell(f"{pod['metadata']['name']} {what}")
            do(uid_of(pod))

    def _slow_start(self, story: FleetStory, act: Act) -> None:
        self._disturb_all()
        self.nodes.slow_starts = (self._until(act, 30.0, 240.0), 4.0 + 12.0 * act.what)
        self.world.tell("replicas start slowly")

    def _crash_loop(self, story: FleetStory, act: Act) -> None:
        self._disturb_all()
        self.nodes.crashing_until = self._until(act, 20.0, 200.0)
        self.world.tell("replicas crash while they start")

    def _break_revision(self, story: FleetStory, act: Act) -> None:
        """Something that the world cannot serve; the cause goes after a while."""
        if story.gone:
            return
        fault = ("image missing", "pod forbidden", "argument unknown")[int(act.what * 3)]
        image = {"image missing": "missing:1", "pod forbidden": "forbidden:1"}.get(fault, "runtime:1")
        self._disturb(story)
        story.broken = True
        self.world.tell(f"{story.key}: spec breaks, {fault}")
        args = {"sped": 2} if fault == "argument unknown" else {"speed": story.speed}
        self.stage.rewrite(story, {"type": "Simulated", "image": image, "args": args})

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _node(self, story: FleetStory, act: Act, do: Callable[[str, Act], None], what: str) -> None:
        """A node where replicas of this fleet run, if there is one."""
        nodes = sorted(
            {p["spec"]["nodeName"] for p in self.api.pods_of(story.uid) if p["spec"].get("nodeName")}
        )
        nodes = nodes or sorted(n["metadata"]["name"] for n in self.api.all("Node"))
        if nodes:
            node = self._pick(nodes, act.what)
            self._disturb_all()
            self.world.tell(f"{node} {what}")
            do(node, act)

    def _cordon(self, node: str, act: Act) -> None:
        self._spec(node, unschedulable=True)
        self.world.after(10.0 + 200.0 * act.long, lambda: self._spec(node, unschedulable=False))

    def _drain(self, node: str, act: Act) -> None:
        """`kubectl drain`: cordon, then evict as the budgets allow."""
        self._cordon(node, act)
        self._evict_all(node, 60)

    def _evict_all(self, node: str, tries: int) -> None:
        left = [p for p in self.nodes.pods_on(node) if "deletionTimestamp" not in p["metadata"]]
        found = self.api.get("Node", Key("", node))
        if not left or not tries or found is None or not found["spec"].get("unschedulable"):
            return
        for pod in left:
            if self._may_evict(pod):
                self.world.tell(f"{pod['metadata']['name']} evicted")
                self._disturb_all()
                self.api.delete_pod(key_of(pod), None)
        self.world.after(5.0, lambda: self._evict_all(node, tries - 1))

    def _may_evict(self, pod: Object) -> bool:
        """As the disruption controller has it: not below minAvailable of the pods that the selector takes."""
        labels = pod["metadata"].get("labels") or {}
        for budget in self.api.all("PodDisruptionBudget"):
            wanted = budget["spec"]["selector"]["matchLabels"]
            if any(labels.get(k) != v for k, v in wanted.items()):
                continue
            ready = [
                p
                for p in self.api.all("Pod")
                if all((p["metadata"].get("labels") or {}).get(k) == v for k, v in wanted.items())
                and "deletionTimestamp" not in p["metadata"]
                and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"]["conditions"])
            ]
            if pod in ready and len(ready) - 1 < budget["spec"]["minAvailable"]:
                return False
        return True

    def _lose(self, node: str, act: Act) -> None:
        self.nodes.lose(node)
        # Its replicas are ready until the control plane has given up on its kubelet.
        self.world.after(NODE_GRACE_S, lambda: node in self.nodes.still and self.rules.disturb_all())
        self.world.after(20.0 + 500.0 * act.long, lambda: self.nodes.wake(node))

    def _freeze(self, node: str, act: Act) -> None:
        self.nodes.freeze(node)
        self.world.after(3.0 + 30.0 * act.long, lambda: self.nodes.wake(node))

    def _taint(self, node: str, act: Act) -> None:
        """A node autoscaler is about to take it away: taint, evict, and the machine is gone."""
        self._spec(node, taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])
        self._evict_tainted(node, 20)
        self.world.after(60.0 + 300.0 * act.long, lambda: self._take_node(node))

    def _evict_tainted(self, node: str, tries: int) -> None:
        found = self.api.get("Node", Key("", node))
        if found is None or not found["spec"].get("taints"):
            # It is needed again, so the autoscaler lets it be.
            return
        for pod in self.nodes.pods_on(node):
            if "deletionTimestamp" not in pod["metadata"] and self._may_evict(pod):
                self._disturb_all()
                self.api.delete_pod(key_of(pod), None)
        if tries:
            self.world.after(10.0, lambda: self._evict_tainted(node, tries - 1))

    def _take_node(self, node: str) -> None:
        found = self.api.get("Node", Key("", node))
        if found is not None and found["spec"].get("taints"):
            self.world.tell(f"{node} is gone, another takes its place")
            self._disturb_all()
            self.nodes.remove(node)
            self.nodes.add()

    def _fail_gpu(self, node: str, act: Act) -> None:
        def write(o: Object) -> None:
            o["status"]["allocatable"][GPU] = "0"

        self.api.update("Node", Key("", node), write)
        for pod in self.nodes.pods_on(node):
            self.nodes.crash(uid_of(pod))
        self.world.after(30.0 + 300.0 * act.long, lambda: self._mend_node(Key("", node)))

    def _mend_node(self, key: Key) -> None:
        def write(o: Object) -> None:
            o["status"]["allocatable"][GPU] = "8"
            o["spec"] = {k: v for k, v in o["spec"].items() if k not in ("unschedulable", "taints")}

        if key.name not in self.nodes.still:
            self.api.update("Node", key, write)

    def _spec(self, node: str, **changes: Any) -> None:
        def write(o: Object) -> None:
            o["spec"] = {**o["spec"], **changes}

        self.api.update("Node", Key("", node), write)

    def _fill_node(self, story: FleetStory, act: Act) -> None:
        """A pod of somebody else takes the room of one replica."""
        self._disturb_all()
        self.api.create(
            "Pod",
            {
                "metadata": {"namespace": FILLER.namespace, "name": FILLER.name, "labels": {}},
                "spec": {
                    "containers": [
                        {"name": "filler", "image": "x", "resources": {"requests": {GPU: "8"}}, "env": []}
                    ]
                },
            },
        )

    # --- etcd -------------------------------------------------------------------------------------------------------

    def _restore(self, story: FleetStory, act: Act) -> None:
        """A backup is made now and restored later; as the manual of Kubernetes asks, all controllers start anew then."""
        if self.stage.all_there():
            self.api.back_up()
            self.world.tell("etcd is backed up")
            # In this episode: what goes back after the quiet has begun takes away what was found settled.
            self.stage.last_until(self.world.now + 5.0 + 60.0 * act.long)
            self.world.after(5.0 + 60.0 * act.long, self._go_back)

    def _go_back(self) -> None:
        if not self.stage.all_there():
            return
        self.world.tell("etcd is restored from its backup")
        self.rules.restored_at = self.world.now
        self.rules.trouble(self.world.now + 60.0)
        self._disturb_all()
        for operator in list(self.stage.operators):
            operator.kill("ended for the restore")
        self.nodes.excused |= set(self.nodes.replicas)
        self.api.restore([k for k in self.api.objects if k not in ("Node", "GatewayPod")])
        self.nodes.look_again()
        self.stage.apply_again()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _disturb(self, story: FleetStory) -> None:
        story.disturbed = True
        self.rules.disturb(story.uid)

    def _disturb_all(self) -> None:
        self.rules.disturb_all()
        self.stage.disturb_all()

    def _until(self, act: Act, low_s: float, high_s: float) -> float:
        return self.world.now + low_s + (high_s - low_s) * act.long

    def _pick(self, found: list[Any], share: float) -> Any:
        return found[int(share * len(found))]
