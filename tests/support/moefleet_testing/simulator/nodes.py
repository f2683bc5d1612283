"""Scheduler and kubelets: pods get a node, their process starts, becomes ready, is ended with a grace."""

from __future__ import annotations

from collections.abc import Callable

from moefleet_operator import names
from moefleet_operator.core.events import Key, Kind

from .api import Api, Object, is_true, set_condition
from .replicas import Replica, Stream
from .world import World

GPU = "nvidia.com/gpu"


class Nodes:
    def __init__(self, world: World, api: Api, report: Callable[[Replica], None]) -> None:
        self.world = world
        self.api = api
        self.report = report
        self.replicas: dict[str, Replica] = {}
        # Streams that were cut although nobody injected a fault there: (age, pod).
        self.cut: list[tuple[float, str]] = []
        self._excused: set[str] = set()
        api.hooks.append(self._hook)

    def add(self, name: str, gpus: int) -> None:
        self.api.create(
            "Node",
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "spec": {},
                "status": {
                    "allocatable": {GPU: str(gpus), "cpu": "96", "memory": "1000Gi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )
        self.schedule_all()

    def schedule_all(self) -> None:
        for pod in self.api.all("Pod"):
            if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                self._later(pod, 0.05, 0.4, self._schedule)

    def crash(self, uid: str) -> None:
        """The process ends by itself; the kubelet starts it again."""
        replica = self.replicas.get(uid)
        if replica is None or not replica.alive or replica.terminated:
            return
        self._excused.add(uid)
        replica.die()
        pod = self._pod(uid)
        if pod is None:
            return
        self._change(pod, lambda o: self._container(o, running=False))
        self._later(pod, 1.0, 3.0, self._start)

    def evict(self, uid: str) -> None:
        """The kubelet ends the pod for lack of disk: phase Failed, no grace."""
        pod = self._pod(uid)
        replica = self.replicas.get(uid)
        if pod is None:
            return
        self._excused.add(uid)
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

    # --- inside ---------------------------------------------------------------------------------------------

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if kind != "Pod":
            return
        if after is None:
            assert before is not None
            replica = self.replicas.pop(before["metadata"]["uid"], None)
            if replica is not None and replica.alive:
                self._note_cut(replica, replica.die())
            self.schedule_all()
            return
        if before is None:
            self._later(after, 0.02, 0.5, self._schedule)
            return
        if (
            "deletionTimestamp" in after["metadata"] and "deletionTimestamp" not in before["metadata"]
        ) or after["metadata"].get("_ends") != before["metadata"].get("_ends"):
            self._later(after, 0.0, 0.3, self._stop)
        if after["status"].get("conditions") != before["status"].get("conditions"):
            self._later(after, 0.0, 0.3, self._sync_ready)

    def _later(self, pod: Object, low: float, high: float, act: Callable[[Object], None]) -> None:
        uid = pod["metadata"]["uid"]

        def go() -> None:
            found = self._pod(uid)
            if found is not None:
                act(found)

        self.world.after(self.world.between(low, high), go)

    def _pod(self, uid: str) -> Object | None:
        return next((p for p in self.api.all("Pod") if p["metadata"]["uid"] == uid), None)

    def _change(self, pod: Object, change: Callable[[Object], None]) -> None:
        self.api.update("Pod", _key(pod), change)

    def _schedule(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        wanted = int(pod["spec"]["containers"][0]["resources"]["requests"].get(GPU, "0"))
        for node in self.api.all("Node"):
            name = node["metadata"]["name"]
            used = sum(
                int(p["spec"]["containers"][0]["resources"]["requests"].get(GPU, "0"))
                for p in self.api.all("Pod")
                if p["spec"].get("nodeName") == name and p["status"]["phase"] not in ("Failed", "Succeeded")
            )
            if int(node["status"]["allocatable"][GPU]) - used >= wanted:
                break
        else:
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

        def bind(o: Object) -> None:
            o["spec"]["nodeName"] = name
            set_condition(o, "PodScheduled", "True", self.world.wall)

        self._change(pod, bind)
        self._later(pod, 0.3, 2.0, self._start)

    def _start(self, pod: Object) -> None:
        if "deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] == "Failed":
            return
        uid = pod["metadata"]["uid"]
        image = pod["spec"]["containers"][0]["image"]
        if "missing" in image:

            def wait(o: Object) -> None:
                o["status"]["containerStatuses"] = [
                    {
                        "name": names.RUNTIME_CONTAINER,
                        "ready": False,
                        "started": False,
                        "restartCount": 0,
                        "state": {
                            "waiting": {"reason": "ImagePullBackOff", "message": f"not found: {image}"}
                        },
                    }
                ]

            self._change(pod, wait)
            return
        old = self.replicas.get(uid)
        replica = Replica(self.world, uid, pod["metadata"]["name"], self._replica_changed)
        replica.incarnation = old.incarnation + 1 if old is not None else 0
        self._excused.discard(uid)
        self.replicas[uid] = replica

        def run(o: Object) -> None:
            o["status"]["phase"] = "Running"
            o["status"]["podIP"] = f"10.0.{int(uid[4:]) // 250}.{int(uid[4:]) % 250 + 1}"
            self._container(o, running=True)
            set_condition(o, "ContainersReady", "False", self.world.wall)
            set_condition(o, "Ready", "False", self.world.wall)

        self._change(pod, run)
        self.report(replica)
        self.world.after(self.world.between(3.0, 15.0), replica.serve)

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
        pod = self._pod(replica.uid)
        if pod is not None:
            self._later(pod, 0.0, 1.0, self._probe)

    def _probe(self, pod: Object) -> None:
        replica = self.replicas.get(pod["metadata"]["uid"])
        if replica is None or pod["status"]["phase"] == "Failed":
            return
        ready = replica.alive and replica.state == "SERVING"
        # A stream more or less changes nothing here.
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
        replica = self.replicas.get(pod["metadata"]["uid"])
        if replica is None or not replica.alive:
            self.api.remove("Pod", _key(pod))
            return
        replica.terminate()
        self._await_end(pod)

    def _await_end(self, pod: Object) -> None:
        replica = self.replicas.get(pod["metadata"]["uid"])
        if (
            replica is None
            or not replica.alive
            or replica.state == "DRAINED"
            or self.world.wall >= pod["metadata"]["_ends"]
        ):
            self.api.remove("Pod", _key(pod))
            return
        self._later(pod, 0.4, 0.6, self._await_end)

    def _note_cut(self, replica: Replica, streams: list[Stream]) -> None:
        if replica.uid in self._excused:
            return
        self.cut += [(self.world.now - s.began, replica.name) for s in streams]


def _key(pod: Object) -> Key:
    return Key(pod["metadata"]["namespace"], pod["metadata"]["name"])
