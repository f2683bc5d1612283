"""Scheduler, kubelets and the node controller: pods get a node, their process starts, becomes ready, is ended with a grace."""

from __future__ import annotations

from collections.abc import Callable

from moefleet_operator import names
from moefleet_operator.core.events import Key, Kind
from moefleet_operator.planning.timestamps import rfc3339

from .api import Api, Object, is_true, key_of, owner_of, set_condition, uid_of
from .replicas import Replica, Stream
from .world import World

GPU = "nvidia.com/gpu"
# As the node controller has it: a node that is silent for so long is Unknown, and its pods are deleted so long after.
NODE_GRACE_S = 40.0
UNREACHABLE_S = 300.0
# The liveness probe of a process that does not answer has failed often enough.
LIVENESS_S = 45.0
START_S = (3.0, 15.0)
CRASH_BACKOFF_MAX_S = 80.0


class Nodes:
    def __init__(self, world: World, api: Api, report: Callable[[Replica], None]) -> None:
        self.world, self.api, self.report = world, api, report
        self.rng = world.stream("nodes")
        self.replicas: dict[str, Replica] = {}
        # Streams that were cut although no fault did it there: (age, pod).
        self.cut: list[tuple[float, str]] = []
        # Pods whose process a fault ended or will end.
        self.excused: set[str] = set()
        # Nodes whose kubelet does nothing, and what it will do when it is back.
        self.still: dict[str, list[Callable[[], None]]] = {}
        # Until then (virtual time) processes start so many times slower, or end while they start.
        self.slow_starts: tuple[float, float] = (0.0, 1.0)
        self.crashing_until = 0.0
        self.added = 0
        api.hooks.append(self._hook)

    def add(self, gpus: int = 8) -> str:
        name = f"node-{self.added}"
        self.added += 1
        self.api.create(
            "Node",
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "spec": {},
                "status": {
                    "allocatable": {GPU: str(gpus), "cpu": "96", "memory": "1000Gi", "pods": "110"},
                    "conditions": [
                        {
                            "type": "Ready",
                            "status": "True",
                            "lastTransitionTime": rfc3339(self.world.wall),
                        }
                    ],
                },
            },
        )
        self.schedule_all()
        return name

    def pods_on(self, node: str) -> list[Object]:
        return [p for p in self.api.all("Pod") if p["spec"].get("nodeName") == node]

    def schedule_all(self) -> None:
        for pod in self.api.all("Pod"):
            if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                self._later(pod, 0.05, 0.4, self._schedule)

    # --- faults of processes ------------------------------------------------------------------------------------

    def crash(self, uid: str) -> None:
        """The process ends by itself; the kubelet starts it again."""
        replica, pod = self.replicas.get(uid), self.api.pod(uid)
        if replica is None or not replica.alive or replica.terminated or pod is None:
            return
        self.excused.add(uid)
        replica.die()
        self._change(pod, lambda o: self._container(o, running=False))
        restarts = int((pod["status"].get("containerStatuses") or [{}])[0].get("restartCount", 0))
        wait_s = min(CRASH_BACKOFF_MAX_S, 1.0 * 2.0**restarts)
        self._later(pod, wait_s, wait_s + 2.0, self._start)

    def hang(self, uid: str) -> None:
        replica, pod = self.replicas.get(uid), self.api.pod(uid)
        if replica is None or not replica.alive or pod is None:
            return
        self.excused.add(uid)
        replica.hang()
        self._later(pod, LIVENESS_S, LIVENESS_S + 15.0, lambda _p: self.crash(uid) if replica.hung else None)

    def evict(self, uid: str) -> None:
        """The kubelet ends the pod for lack of disk: phase Failed, no grace."""
        pod, replica = self.api.pod(uid), self.replicas.get(uid)
        if pod is None:
            return
        self.excused.add(uid)
        if replica is not None and replica.alive:
            replica.die()

        def fail(o: Object) -> None:
            o["status"].update(
                phase="Failed", reason="Evicted", message="The node was low on ephemeral-storage"
            )
            self._container(o, running=False)
            set_condition(o, "ContainersReady", "False", self.world.wall)
            set_condition(o, "Ready", "False", self.world.wall)

        self._change(pod, fail)
        self.schedule_all()

    def look_again(self) -> None:
        """The kubelets start anew after the API server forgot what happened since its backup."""
        for uid, replica in list(self.replicas.items()):
            pod = self.api.pod(uid)
            if pod is None or not pod["spec"].get("nodeName"):
                del self.replicas[uid]
                if replica.alive:
                    replica.die()
            elif replica.alive and replica.terminated and "deletionTimestamp" not in pod["metadata"]:
                replica.terminated = False
                self.crash(uid)
            elif replica.alive and "deletionTimestamp" in pod["metadata"]:
                self._later(pod, 0.0, 1.0, self._stop)
            elif replica.alive:
                self._change(pod, self._running)
                self._later(pod, 0.0, 1.0, self._probe)
                self._later(pod, 1.0, 2.0, self._sync_ready)
        for pod in self.api.all("Pod"):
            replica_of = self.replicas.get(uid_of(pod))
            # One that ended since the backup is begun again, too.
            ended = replica_of is None or not replica_of.alive
            if ended and pod["spec"].get("nodeName") and pod["status"]["phase"] != "Failed":
                self._later(
                    pod, 0.3, 2.0, self._stop if "deletionTimestamp" in pod["metadata"] else self._start
                )

    # --- faults of nodes ------------------------------------------------------------------------------------------

    def lose(self, node: str) -> None:
        """The machine is off: what ran on it has ended, and nobody says so."""
        if node in self.still:
            return
        self.still[node] = []
        for pod in self.pods_on(node):
            uid = uid_of(pod)
            self.excused.add(uid)
            if (replica := self.replicas.get(uid)) is not None and replica.alive:
                replica.die()
        self.world.after(NODE_GRACE_S, lambda: self._unknown(node))

    def freeze(self, node: str) -> None:
        """The machine stands still, and goes on where it was."""
        if node in self.still:
            return
        self.still[node] = []
        for pod in self.pods_on(node):
            if (replica := self.replicas.get(uid_of(pod))) is not None and replica.alive:
                self.excused.add(uid_of(pod))
                replica.hang()

    def wake(self, node: str) -> None:
        if node not in self.still:
            return
        parked = self.still.pop(node)
        self._node_ready(node, "True")
        for pod in self.pods_on(node):
            replica = self.replicas.get(uid_of(pod))
            if replica is not None and replica.alive:
                replica.unhang()
            elif "deletionTimestamp" in pod["metadata"]:
                self._later(pod, 0.0, 1.0, self._stop)
            elif replica is not None and pod["status"]["phase"] == "Running":
                self._change(pod, lambda o: self._container(o, running=False))
                self._later(pod, 1.0, 3.0, self._start)
        for act in parked:
            self.world.after(self.rng.uniform(0.0, 1.0), act)

    def remove(self, node: str) -> None:
        """The Node object goes, and its pods with it."""
        self.still.pop(node, None)
        self.api.remove("Node", Key("", node))
        for pod in self.pods_on(node):
            self.excused.add(uid_of(pod))
            self.api.remove("Pod", key_of(pod))

    def _unknown(self, node: str) -> None:
        if node not in self.still:
            return
        self._node_ready(node, "Unknown")
        for pod in self.pods_on(node):
            self._change(pod, lambda o: set_condition(o, "Ready", "False", self.world.wall))
        self.world.after(UNREACHABLE_S, lambda: self._end_unreachable(node))

    def _end_unreachable(self, node: str) -> None:
        if node in self.still:
            for pod in self.pods_on(node):
                self.api.delete_pod(key_of(pod), None)

    def _node_ready(self, node: str, status: str) -> None:
        def write(o: Object) -> None:
            set_condition(o, "Ready", status, self.world.wall)
            key = "node.kubernetes.io/unreachable"
            taints = [t for t in o["spec"].get("taints") or () if t["key"] != key]
            if status != "True":
                taints.append({"key": key, "effect": "NoExecute"})
            o["spec"] = {**o["spec"], "taints": taints}

        self.api.update("Node", Key("", node), write)

    # --- inside ---------------------------------------------------------------------------------------------

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if kind == "Node" and before is not None and after is not None and before["spec"] != after["spec"]:
            self.schedule_all()
        if kind != "Pod":
            return
        if after is None:
            assert before is not None
            replica = self.replicas.pop(uid_of(before), None)
            if replica is not None and replica.alive:
                self._note_cut(replica, replica.die())
            self.schedule_all()
            return
        if before is None:
            self._later(after, 0.02, 0.5, self._schedule)
            if after["spec"].get("nodeName"):
                # Back from a backup: its kubelet starts it as it would any other.
                self._later(after, 0.3, 2.0, self._start)
            return
        if (
            "deletionTimestamp" in after["metadata"] and "deletionTimestamp" not in before["metadata"]
        ) or after["metadata"].get("_ends") != before["metadata"].get("_ends"):
            self._later(after, 0.0, 0.3, self._stop)
        if after["status"].get("conditions") != before["status"].get("conditions"):
            self._later(after, 0.0, 0.3, self._sync_ready)

    def _later(self, pod: Object, low: float, high: float, act: Callable[[Object], None]) -> None:
        uid = uid_of(pod)

        def go() -> None:
            found = self.api.pod(uid)
            if found is None:
                return
            parked = self.still.get(found["spec"].get("nodeName") or "")
            if parked is not None:
                parked.append(go)
            else:
                act(found)

        self.world.after(self.rng.uniform(low, high), go)

    def _change(self, pod: Object, change: Callable[[Object], None]) -> None:
        self.api.update("Pod", key_of(pod), change)

    def _schedule(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        wanted = gpus_of(pod)
        used: dict[str, int] = {}
        for p in self.api.all("Pod"):
            if (on := p["spec"].get("nodeName")) and p["status"]["phase"] not in ("Failed", "Succeeded"):
                used[on] = used.get(on, 0) + gpus_of(p)
        tolerated = {t.get("key") for t in pod["spec"].get("tolerations") or ()}
        fitting = [
            node["metadata"]["name"]
            for node in self.api.all("Node")
            if schedulable(node, tolerated)
            and int(node["status"]["allocatable"][GPU]) - used.get(node["metadata"]["name"], 0) >= wanted
        ]
        if not fitting:
            self._change(
                pod,
                lambda o: set_condition(
                    o,
                    "PodScheduled",
                    "False",
                    self.world.wall,
                    reason="Unschedulable",
                    message="0/3 nodes: Insufficient nvidia.com/gpu",
                ),
            )
            return
        name = fitting[0] if self.rng.random() < 0.5 else self.rng.choice(fitting)

        def bind(o: Object) -> None:
            o["spec"] = {**o["spec"], "nodeName": name}
            set_condition(o, "PodScheduled", "True", self.world.wall)

        self._change(pod, bind)
        self._later(pod, 0.3, 2.0, self._start)

    def _start(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] == "Failed":
            return
        if not owner_of(pod):
            # Somebody else's pod: it only takes room.
            self._change(pod, lambda o: o["status"].update(phase="Running"))
            return
        uid = uid_of(pod)
        old = self.replicas.get(uid)
        if (old is not None and old.alive) or not pod["spec"].get("nodeName"):
            # It runs, or a restored API server does not know any more that it was bound.
            return
        image = pod["spec"]["containers"][0]["image"]
        if "missing" in image:
            waiting = {"reason": "ImagePullBackOff", "message": f"not found: {image}"}
            self._change(pod, lambda o: self._wait(o, waiting))
            return
        replica = Replica(self.world, uid, pod["metadata"]["name"], self._replica_changed)
        replica.incarnation = old.incarnation + 1 if old is not None else 0
        replica.turned_at = self.world.now
        self.excused.discard(uid)
        self.replicas[uid] = replica

        self._change(pod, self._running)
        self.report(replica)
        until, factor = self.slow_starts
        took_s = self.rng.uniform(*START_S) * (factor if self.world.now < until else 1.0)
        node = self.api.get("Node", Key("", pod["spec"]["nodeName"]))
        no_gpus = node is None or int(node["status"]["allocatable"][GPU]) < gpus_of(pod)
        if self.world.now < self.crashing_until or no_gpus:
            self.world.after(
                took_s / 2, lambda: self.crash(uid) if self.replicas.get(uid) is replica else None
            )
        else:
            self.world.after(took_s, replica.serve)

    def _running(self, o: Object) -> None:
        number = int(uid_of(o)[4:])
        o["status"]["phase"] = "Running"
        o["status"]["podIP"] = f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
        self._container(o, running=True)
        set_condition(o, "ContainersReady", "False", self.world.wall)
        set_condition(o, "Ready", "False", self.world.wall)

    def _wait(self, o: Object, waiting: dict[str, str]) -> None:
        o["status"]["containerStatuses"] = [
            {
                "name": names.RUNTIME_CONTAINER,
                "ready": False,
                "started": False,
                "restartCount": 0,
                "state": {"waiting": waiting},
            }
        ]

    def _container(self, o: Object, *, running: bool) -> None:
        last = (o["status"].get("containerStatuses") or [{}])[0]
        restarts = int(last.get("restartCount", -1)) + (1 if running else 0)
        o["status"]["containerStatuses"] = [
            {
                "name": names.RUNTIME_CONTAINER,
                "ready": False,
                "started": False,
                "restartCount": max(0, restarts),
                "state": {"running": {}} if running else {"terminated": {"reason": "Error", "exitCode": 1}},
            }
        ]

    def _replica_changed(self, replica: Replica) -> None:
        self.report(replica)
        pod = self.api.pod(replica.uid)
        ready = replica.answers and replica.state == "SERVING"
        # A stream more or less changes nothing here.
        if pod is not None and ready != is_true(pod, "ContainersReady"):
            self._later(pod, 0.0, 1.0, self._probe)

    def _probe(self, pod: Object) -> None:
        replica = self.replicas.get(uid_of(pod))
        if replica is None or pod["status"]["phase"] == "Failed":
            return
        ready = replica.answers and replica.state == "SERVING"
        if ready == is_true(pod, "ContainersReady"):
            return

        def write(o: Object) -> None:
            for container in o["status"].get("containerStatuses") or ():
                container["ready"] = ready
                container["started"] = container["started"] or ready
            set_condition(o, "ContainersReady", "True" if ready else "False", self.world.wall)

        self._change(pod, write)

    def _sync_ready(self, pod: Object) -> None:
        gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or ()]
        ready = is_true(pod, "ContainersReady") and all(is_true(pod, g) for g in gates)
        self._change(pod, lambda o: set_condition(o, "Ready", "True" if ready else "False", self.world.wall))

    def _stop(self, pod: Object) -> None:
        replica = self.replicas.get(uid_of(pod))
        if replica is None or not replica.alive:
            self.api.remove("Pod", key_of(pod))
            return
        if not replica.terminated:
            replica.terminate()
        self._await_end(pod)

    def _await_end(self, pod: Object) -> None:
        replica = self.replicas.get(uid_of(pod))
        if (
            replica is None
            or not replica.alive
            or replica.state == "DRAINED"
            or self.world.wall >= pod["metadata"].get("_ends", 0.0)
        ):
            self.api.remove("Pod", key_of(pod))
            return
        self._later(pod, 0.4, 0.6, self._await_end)

    def _note_cut(self, replica: Replica, streams: list[Stream]) -> None:
        if replica.uid not in self.excused:
            self.cut += [(self.world.now - s.began, replica.name) for s in streams]


def gpus_of(pod: Object) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["requests"].get(GPU, "0"))


def schedulable(node: Object, tolerated: set[str | None]) -> bool:
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
    return (
        ready
        and not node["spec"].get("unschedulable")
        and all(
            t["key"] in tolerated
            for t in node["spec"].get("taints") or ()
            if t["effect"] in ("NoSchedule", "NoExecute")
        )
    )
