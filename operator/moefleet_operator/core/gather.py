"""From the store, the reports and the memory to one `Observed`: all that a plan may look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from moefleet_operator.api import MoEFleet
from moefleet_operator.planning.capacity import capacity
from moefleet_operator.planning.facts import PodFacts, pod_requests
from moefleet_operator.planning.history import last_good, restored
from moefleet_operator.planning.nodes import NodeSeen, shortage
from moefleet_operator.planning.observed import Fleet, Gateway, Json, Observed, Replica
from moefleet_operator.planning.quotas import within_quotas
from moefleet_operator.planning.revisions import PastRevision
from moefleet_operator.planning.shape import wants_room
from moefleet_operator.planning.target import target
from moefleet_operator.rendering.credential import token_sha256
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.problem import Problem
from moefleet_operator.rendering.startup import slowest_start_s

from .events import Key, Kind
from .memory import Memory
from .reports import Reports
from .settings import CoreSettings
from .store import FleetRecord, Store

# As the control plane's own eviction: when so many nodes and such a share of them are silent at once, it is not the nodes.
UNHEARD_MIN = 3
UNHEARD_SHARE = 0.55


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
        nodes_seen = "Node" not in unavailable
        loads = reports.loads
        replicas = [
            Replica(
                pod,
                loads.get(pod.uid),
                self._node(pod, now) if nodes_seen else None,
                memory.drain_seen(pod, now),
            )
            for pod in store.pods_of(key, record.uid)
        ]
        owner = store.name_owner(key)
        taken = store.names_taken(key)
        memory.saw_pods(key, taken)
        rendered = self._render(key, record.uid, resource, fleet.status)
        history = None
        if "ControllerRevision" not in unavailable:
            history = store.history(key, record.uid)
        observed = Observed(
            fleet=fleet,
            resource=resource,
            spec=record.raw.get("spec") or {},
            rendered=rendered,
            history=history,
            good=self._good(key, record, resource, rendered, history or ()),
            replicas=tuple(replicas),
            orphans=tuple(store.orphans_of(key)),
            taken=frozenset(taken | memory.collisions(key, now)),
            gateways=tuple(
                Gateway(g.uid, g.name, g.is_true("Ready") and not g.terminating, reports.views.get(g.uid))
                for g in store.gateways.values()
                if not g.finished
            ),
            gateway_expected=self._settings.gateway,
            decision=reports.decisions.get(key),
            node_autoscaler=self._settings.node_autoscaler,
            nodes_unheard=self._unheard(replicas),
            name_owner=str(owner) if owner is not None else "",
            service=store.children.get(("Service", key)),
            pdb=store.children.get(("PodDisruptionBudget", key)),
            refused=memory.refused(key, {r.uid for r in replicas}),
            unresumable=frozenset(memory.unresumable),
            numbers=reports.numbers.get(key, {}),
        )
        nodes_known = nodes_seen and self._settings.pods_watched == "all" and "Pod" not in unavailable
        if not wants_room(observed, target(observed)):
            return observed
        if nodes_known:
            observed = self._with_room(key, observed, creating)
        return self._with_quotas(key, observed, creating)

    def replicas(self, key: Key, uid: str) -> Sequence[Replica]:
        return [Replica(pod, self._reports.loads.get(pod.uid)) for pod in self._store.pods_of(key, uid)]

    def _node(self, pod: PodFacts, now: float) -> NodeSeen | None:
        facts = self._store.nodes.get(Key("", pod.node)) if pod.node else None
        if facts is None or pod.finished:
            return None
        used = self._store.usage.by_node().get(pod.node, {})
        since = self._memory.short_since
        short = shortage(pod, facts, used, since.get(pod.uid), now)
        if short is None:
            since.pop(pod.uid, None)
        else:
            since.setdefault(pod.uid, now)
        return NodeSeen(facts, short)

    def _unheard(self, replicas: Sequence[Replica]) -> bool:
        """Counting all nodes is worth it only when one of ours does not answer."""
        if not any(r.node is not None and r.node.facts.unready_since is not None for r in replicas):
            return False
        nodes = self._store.nodes.values()
        silent = sum(1 for n in nodes if n.unready_since is not None)
        return silent >= UNHEARD_MIN and silent >= UNHEARD_SHARE * len(nodes)

    def _with_room(self, key: Key, observed: Observed, creating: int) -> Observed:
        rendered = observed.rendered
        if not isinstance(rendered, RenderedPod):
            return observed
        spec = rendered.body["spec"]
        requests = pod_requests(spec)
        store = self._store
        coming = store.usage.waiting(requests) + creating
        # Counting all nodes is dear where there are thousands, and between two passes often nothing about them has changed.
        at = (store.usage.version, store.nodes_version, coming)
        counted = self._memory.counted.get(key)
        if counted is None or counted[0] is not rendered or counted[1] != at:
            room = capacity(spec, requests, store.nodes.values(), store.usage.by_node(), coming)
            counted = self._memory.counted[key] = (rendered, at, room)
        return replace(observed, capacity=counted[2])

    def _with_quotas(self, key: Key, observed: Observed, creating: int) -> Observed:
        quotas = self._store.quotas.get(key.namespace)
        rendered = observed.rendered if isinstance(observed.rendered, RenderedPod) else observed.good
        if not quotas or rendered is None:
            return observed
        requests = pod_requests(rendered.body["spec"])
        return replace(
            observed, capacity=within_quotas(observed.capacity, requests, quotas.values(), creating)
        )

    def _good(
        self,
        key: Key,
        record: FleetRecord,
        resource: MoEFleet,
        rendered: RenderedPod | Problem,
        history: Sequence[PastRevision],
    ) -> RenderedPod | None:
        """The last good revision's pod, with everything else of the fleet as it is now."""
        current = rendered.revision if isinstance(rendered, RenderedPod) else None
        past = last_good(history, current)
        if past is None:
            self._memory.restored.pop(key, None)
            return None
        at = (record.uid, resource.metadata.generation, past.revision)
        cached = self._memory.restored.get(key)
        if cached is not None and cached[:3] == at:
            return cached[3]
        try:
            fleet = restored(record.raw, past)
            digest = token_sha256(self._settings.control_key, record.uid)
            again = render_pod(
                fleet,
                gateway=self._settings.gateway,
                token_sha256=digest,
                slowest_start_s=slowest_start_s(record.raw.get("status") or {}),
            )
        except ValueError:
            # Written by a release whose API was another.
            again = None
        # What would be made now must be what was made then.
        good = again if isinstance(again, RenderedPod) and again.revision == past.revision else None
        self._memory.restored[key] = (*at, good)
        return good

    def _render(self, key: Key, uid: str, resource: MoEFleet, status: Json) -> RenderedPod | Problem:
        """The same object for the same spec and the same starts: rendering and hashing once per generation."""
        at = (uid, resource.metadata.generation, slowest_start_s(status))
        cached = self._memory.rendered.get(key)
        if cached is not None and cached[:3] == at:
            return cached[3]
        digest = token_sha256(self._settings.control_key, uid)
        rendered = render_pod(
            resource, gateway=self._settings.gateway, token_sha256=digest, slowest_start_s=at[2]
        )
        self._memory.rendered[key] = (*at, rendered)
        return rendered
