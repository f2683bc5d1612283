"""Gateway pods and the requests through them: they watch pods and replicas themselves, register, withdraw, hold, retry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from moefleet_operator import names
from moefleet_operator.core.events import Key, Kind
from moefleet_operator.planning.reported import EndpointView, GatewayView

from .api import Api, Object, is_true, owner_of, uid_of
from .nodes import Nodes
from .replicas import Replica, Stream
from .world import World

GATEWAY_NAMESPACE = "moefleet-system"
# As limits.hold of the fleets here: longer than a cold start.
HOLD_S = 60.0


@dataclass(slots=True)
class Endpoint:
    fleet_uid: str
    registered: bool = False
    in_flight: int = 0


@dataclass(slots=True)
class Request:
    id: int
    fleet_uid: str
    arrived: float
    duration_s: float
    tried: set[str] = field(default_factory=set)
    done: bool = False


class Gateway:
    def __init__(
        self, world: World, api: Api, nodes: Nodes, name: str, changed: Callable[[Gateway], None]
    ) -> None:
        self.world, self.api, self.nodes = world, api, nodes
        self.name = name
        self.changed = changed
        self.rng = world.stream(name)
        self.alive = True
        # The operator's stream to it says nothing until then; the requests go on.
        self.silent_until = 0.0
        self.endpoints: dict[str, Endpoint] = {}
        # When it last knew a replica as registered.
        self.known_at: dict[str, float] = {}
        self.version = 0
        self.held: list[Request] = []
        self.failed: list[Request] = []
        self.served = 0
        self.refused = 0
        self._running: dict[int, Replica] = {}
        # Seconds from a change in the world to Envoy's acknowledgement of it.
        self.lag_s = (0.05, 0.5)
        made = api.create(
            "GatewayPod",
            {
                "metadata": {"namespace": GATEWAY_NAMESPACE, "name": name, "labels": names.gateway_labels()},
                "spec": {},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
            },
        )
        assert made is not None
        self.uid = uid_of(made)
        for replica in nodes.replicas.values():
            self.look(replica.uid)
        api.hooks.append(self._hook)

    def view(self) -> GatewayView:
        known = {uid: EndpointView(e.registered, e.in_flight) for uid, e in self.endpoints.items()}
        return GatewayView("1", self.version, known)

    def kill(self) -> None:
        """Envoy and picker are gone, and every stream and held request with them."""
        self.alive = False
        running, self._running = self._running, {}
        for request_id, replica in running.items():
            replica.cancel(request_id)
        self.held.clear()
        # What it has told a moment ago may still be acted upon.
        self.known_at |= {uid: self.world.now for uid, e in self.endpoints.items() if e.registered}
        self.endpoints.clear()
        self.api.hooks.remove(self._hook)
        self.api.remove("GatewayPod", Key(GATEWAY_NAMESPACE, self.name))

    def knew(self, uid: str, since: float) -> bool:
        endpoint = self.endpoints.get(uid)
        return (endpoint is not None and endpoint.registered) or self.known_at.get(uid, -1e9) >= since

    def look(self, uid: str) -> None:
        """Something about this replica changed: after a while the picker and its Envoy know."""
        self.world.after(self.rng.uniform(*self.lag_s), lambda: self._sync(uid))

    def request(self, request: Request) -> None:
        if request.done or not self.alive:
            return
        usable = [
            (e.in_flight, uid)
            for uid, e in self.endpoints.items()
            if e.registered and e.fleet_uid == request.fleet_uid and uid not in request.tried
        ]
        if usable:
            self._send(request, min(usable)[1])
        elif self.world.now - request.arrived >= HOLD_S:
            request.done = True
            self.failed.append(request)
        else:
            request.tried.clear()
            self.held.append(request)
            self.world.after(
                max(0.5, request.arrived + HOLD_S - self.world.now), lambda: self._expire(request)
            )

    # --- inside ---------------------------------------------------------------------------------------------

    def _send(self, request: Request, uid: str) -> None:
        endpoint = self.endpoints[uid]
        replica = self.nodes.replicas.get(uid)
        endpoint.in_flight += 1

        def ended(whole: bool) -> None:
            endpoint.in_flight -= 1
            request.done = True
            self._running.pop(request.id, None)
            self.served += whole
            self._tidy(uid)
            self._tell()

        stream = Stream(request.id, self.world.now, ended)
        if replica is not None and replica.admit(stream, request.duration_s):
            self._running[request.id] = replica
            self._tell()
            return
        endpoint.in_flight -= 1
        self.refused += 1
        request.tried.add(uid)
        self._tidy(uid)
        self.world.after(0.01, lambda: self.request(request))

    def _expire(self, request: Request) -> None:
        if request in self.held:
            self.held.remove(request)
            self.request(request)

    def _sync(self, uid: str) -> None:
        if not self.alive:
            return
        pod, replica = self.api.pod(uid), self.nodes.replicas.get(uid)
        good = (
            pod is not None
            and replica is not None
            and replica.answers
            and replica.state == "SERVING"
            and is_true(pod, "ContainersReady")
            and not is_true(pod, names.CONDITION_DRAINING)
            and "deletionTimestamp" not in pod["metadata"]
        )
        endpoint = self.endpoints.get(uid)
        if good and pod is not None and (endpoint is None or not endpoint.registered):
            if endpoint is None:
                endpoint = self.endpoints[uid] = Endpoint(owner_of(pod))
            endpoint.registered = True
            self._tell()
            waiting, self.held = self.held, []
            for request in waiting:
                self.request(request)
        elif not good and endpoint is not None and endpoint.registered:
            endpoint.registered = False
            self.known_at[uid] = self.world.now
            self._tidy(uid)
            self._tell()

    def _tidy(self, uid: str) -> None:
        endpoint = self.endpoints.get(uid)
        if endpoint is not None and not endpoint.registered and endpoint.in_flight == 0:
            del self.endpoints[uid]

    def _tell(self) -> None:
        self.version += 1
        if self.alive:
            self.changed(self)

    def _hook(self, kind: Kind, _key: Key, before: Object | None, after: Object | None) -> None:
        if kind == "Pod":
            pod = after or before
            if (pod is not None and uid_of(pod) in self.nodes.replicas) or (
                before is not None and after is None
            ):
                self.look(uid_of(pod))  # type: ignore[arg-type]

    def replica_changed(self, replica: Replica) -> None:
        endpoint = self.endpoints.get(replica.uid)
        registered = endpoint is not None and endpoint.registered
        if registered != (replica.answers and replica.state == "SERVING"):
            self.look(replica.uid)
