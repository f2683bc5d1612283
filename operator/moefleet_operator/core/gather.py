"""From the store, the reports and the memory to one `Observed`: all that a plan may look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from moefleet_operator.api import MoEFleet
from moefleet_operator.planning.capacity import capacity
from moefleet_operator.planning.facts import pod_requests
from moefleet_operator.planning.observed import Fleet, Gateway, Observed, Replica
from moefleet_operator.planning.shape import wants_room
from moefleet_operator.planning.target import target
from moefleet_operator.rendering.credential import token_sha256
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.problem import Problem

from .events import Key, Kind
from .memory import Memory
from .reports import Reports
from .settings import CoreSettings
from .store import FleetRecord, Store


class Gatherer:
    def __init__(self, settings: CoreSettings, store: Store, reports: Reports, memory: Memory) -> None:
        self._settings = settings
        self._store = store
        self._reports = reports
        self._memory = memory

    def observe(
        self,
        key: Key,
        record: FleetRecord,
        parsed: tuple[MoEFleet, Fleet],
        *,
        unavailable: Collection[Kind],
        creating: int,
        now: float,
    ) -> Observed:
        """`creating`: pods of all fleets that are being created right now and are not in the store yet."""
        resource, fleet = parsed
        store, reports, memory = self._store, self._reports, self._memory
        memory.saw_generation(key, resource)
        replicas = self.replicas(key, record.uid)
        owner = store.name_owner(key)
        observed = Observed(
            fleet=fleet,
            resource=resource,
            rendered=self._render(key, record.uid, resource),
            replicas=tuple(replicas),
            orphans=tuple(store.orphans_of(key)),
            taken=frozenset(store.names_taken(key) | memory.collisions(key, now)),
            gateways=tuple(
                Gateway(g.uid, g.name, g.is_true("Ready") and not g.terminating, reports.views.get(g.uid))
                for g in store.gateways.values()
                if not g.finished
            ),
            gateway_expected=self._settings.gateway,
            decision=reports.decisions.get(key),
            node_autoscaler=self._settings.node_autoscaler,
            name_owner=str(owner) if owner is not None else "",
            service=store.children.get(("Service", key)),
            pdb=store.children.get(("PodDisruptionBudget", key)),
            refused=memory.refused(key, {r.uid for r in replicas}),
            unresumable=frozenset(memory.unresumable),
            numbers=reports.numbers.get(key, {}),
        )
        nodes_known = self._settings.pods_watched == "all" and not {"Node", "Pod"} & set(unavailable)
        if nodes_known and wants_room(observed, target(observed)):
            return self._with_room(observed, creating)
        return observed

    def replicas(self, key: Key, uid: str) -> Sequence[Replica]:
        return [Replica(pod, self._reports.loads.get(pod.uid)) for pod in self._store.pods_of(key, uid)]

    def _with_room(self, observed: Observed, creating: int) -> Observed:
        rendered = observed.rendered
        if not isinstance(rendered, RenderedPod):
            return observed
        spec = rendered.body["spec"]
        requests = pod_requests(spec)
        usage = self._store.usage
        coming = usage.waiting(requests) + creating
        room = capacity(spec, requests, self._store.nodes.values(), usage.by_node(), coming)
        return replace(observed, capacity=room)

    def _render(self, key: Key, uid: str, resource: MoEFleet) -> RenderedPod | Problem:
        """The same object for the same spec: rendering and hashing once per generation."""
        generation = resource.metadata.generation
        cached = self._memory.rendered.get(key)
        if cached is not None and cached[:2] == (uid, generation):
            return cached[2]
        digest = token_sha256(self._settings.control_key, uid)
        rendered = render_pod(resource, gateway=self._settings.gateway, token_sha256=digest)
        self._memory.rendered[key] = (uid, generation, rendered)
        return rendered
