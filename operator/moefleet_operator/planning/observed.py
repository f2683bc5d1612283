"""One fleet as it is seen at one moment: everything that `plan` may look at, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moefleet_operator import names
from moefleet_operator.api import MoEFleet, parse_duration_s
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .facts import Condition, PodFacts, unix_seconds
from .nodes import NodeSeen
from .reported import GatewayView, ReplicaLoad
from .revisions import PastRevision, Watch

Json = Mapping[str, Any]
Phase = Literal["Pending", "Starting", "Ready", "Draining", "Drained", "Failed", "Terminating"]
Mode = Literal["Automatic", "External", "Advisory"]
Strategy = Literal["Auto", "Surge", "InPlace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The fleet's wishes, as numbers."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: float
    deleting: bool
    model_name: str
    mode: Mode
    min_replicas: int
    max_replicas: int
    # spec.replicas: counts in External mode only.
    replicas: int | None
    # scaling.idle is set: the decision may put the fleet to sleep.
    may_sleep: bool
    strategy: Strategy
    max_unavailable: int
    drain_timeout_s: float
    stream_duration_s: float
    # How long the first replica of a new revision is compared, and with how many requests; 0: not at all.
    canary_window_s: float = 0.0
    canary_requests: int = 1
    # What the last status says, as the API server has it.
    status: Json = field(default_factory=dict)


def fleet_of(resource: MoEFleet, status: Json) -> Fleet:
    """The numbers of a spec. `status` is the raw one: what is absent there stays absent."""
    meta, spec = resource.metadata, resource.spec
    idle = spec.scaling.idle
    return Fleet(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        created_at=unix_seconds(meta.creation_timestamp),
        deleting=meta.deletion_timestamp is not None,
        model_name=spec.model.name,
        mode=spec.scaling.mode,
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        replicas=spec.replicas,
        may_sleep=idle is not None and idle.scale_to_zero_after is not None,
        strategy=spec.rollout.strategy,
        max_unavailable=spec.rollout.max_unavailable,
        drain_timeout_s=parse_duration_s(spec.rollout.drain_timeout),
        stream_duration_s=parse_duration_s(spec.limits.stream_duration),
        canary_window_s=parse_duration_s(spec.rollout.canary.window),
        canary_requests=spec.rollout.canary.requests,
        status=status,
    )


@dataclass(frozen=True, slots=True)
class DrainSeen:
    """How much of a drain this process has seen, by a clock that nobody can set."""

    seconds: float
    # From its beginning on; otherwise it may have lasted for longer.
    whole: bool


@dataclass(frozen=True, slots=True)
class Replica:
    pod: PodFacts
    load: ReplicaLoad | None
    # None: it has none yet, or nodes cannot be seen here.
    node: NodeSeen | None = None
    drain_seen: DrainSeen | None = None

    @property
    def name(self) -> str:
        return self.pod.name

    @property
    def uid(self) -> str:
        return self.pod.uid

    @property
    def phase(self) -> Phase:
        pod = self.pod
        if pod.terminating:
            return "Terminating"
        if pod.finished:
            return "Failed"
        if self.draining:
            return "Drained" if self.load is not None and self.load.state == "DRAINED" else "Draining"
        if not pod.node:
            return "Pending"
        return "Ready" if pod.is_true("Ready") else "Starting"

    @property
    def draining(self) -> bool:
        return self.pod.draining

    @property
    def drain(self) -> Condition | None:
        return self.pod.conditions.get(names.CONDITION_DRAINING) if self.draining else None

    @property
    def live(self) -> bool:
        """Serves, or will: it counts as supply."""
        return self.pod.live

    @property
    def ready(self) -> bool:
        return self.pod.ready

    @property
    def serving(self) -> bool:
        """Ready, or it says that it serves: one whose gate was just opened again is ready in a moment."""
        return self.ready or (self.load is not None and self.load.state == "SERVING")

    @property
    def may_have_streams(self) -> bool:
        """A process that has been Serving runs in it. One that has not passed its startup probe has served nobody."""
        container = self.pod.container
        return container is not None and container.state == "running" and container.started

    @property
    def unschedulable_since(self) -> float | None:
        scheduled = self.pod.conditions.get("PodScheduled")
        if self.pod.node or scheduled is None or scheduled.status != "False":
            return None
        return scheduled.at if scheduled.reason == "Unschedulable" else None

    @property
    def outstanding_tokens(self) -> int:
        return self.load.outstanding_tokens if self.load is not None else 0


@dataclass(frozen=True, slots=True)
class Gateway:
    uid: str
    name: str
    # Its pod is Ready and not terminating: only such a gateway is waited for.
    ready: bool
    # None: the operator has no stream to it, so what it thinks is unknown.
    view: GatewayView | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What scaling says. replicas None: it does not know."""

    replicas: int | None
    reason: str
    message: str
    # What the load needs, where maxReplicas or the size of a step did not let `replicas` be it; None: it is what is needed.
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many more replicas the nodes can take, counted by the scheduler's rules."""

    # None: not known (no right to see nodes, or only our own pods).
    fits: int | None
    # Nodes that match the pod's selectors and tolerations, and those of them that are large enough when empty.
    nodes_matching: int = 0
    nodes_large_enough: int = 0
    # The ResourceQuota that leaves fewer than the nodes do; empty: none does.
    quota: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    fleet: Fleet
    # The object itself, for rendering Service and PDB; None in tests that do not look at them.
    resource: MoEFleet | None = None
    # The spec as the API server has it.
    spec: Json = field(default_factory=dict)
    # Problem: the spec cannot be rendered (unknown engine argument, bad source): nothing of it is created.
    rendered: RenderedPod | Problem
    # Oldest first; None: ControllerRevisions cannot be seen here, so nothing is compared or undone.
    history: tuple[PastRevision, ...] | None = None
    # The newest revision of the history that proved itself and is not the one that the spec wants; None: there is none
    # that can still be made.
    good: RenderedPod | None = None
    # The comparison of a new revision's first replica that is under way.
    watch: Watch | None = None
    replicas: tuple[Replica, ...] = ()
    # Pods of this fleet's name that nobody owns (left by a deletion with --cascade=orphan).
    orphans: tuple[PodFacts, ...] = ()
    # Pod names that cannot be used, whoever has them.
    taken: frozenset[str] = frozenset()
    gateways: tuple[Gateway, ...] = ()
    # A moefleet gateway belongs to this installation.
    gateway_expected: bool = True
    decision: Decision | None = None
    capacity: Capacity = Capacity(None)
    node_autoscaler: bool = False
    # So many nodes at once do not answer that it is more likely the control plane that does not hear them.
    nodes_unheard: bool = False
    # The older fleet (namespace/name) that has our model name; empty: we have it.
    name_owner: str = ""
    # Live objects; None: absent. Their kind cannot be watched here: `children_known` is False.
    service: Json | None = None
    pdb: Json | None = None
    # Writes that the API server refused lately, by what they were about ("create", "service", ...).
    refused: Mapping[str, Problem] = field(default_factory=dict)
    # Replicas that did not take Resume: not worth asking again.
    unresumable: frozenset[str] = frozenset()
    # throughput, objective, economics, coldStart: for people.
    numbers: Json = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        return self.rendered.revision if isinstance(self.rendered, RenderedPod) else None
