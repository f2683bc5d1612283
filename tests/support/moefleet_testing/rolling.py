"""A world as small as a rollout needs: some places for replicas, revisions that behave as told, and time in steps.

`plan` is driven against it again and again; what it wrote (pods, ControllerRevisions, conditions) is all that it has the
next time, and `forget` takes away even what an operator process remembers. Here belong revisions and how they behave.
Not here: late watches, several leaders, gateways (the simulator), and what a plan should do (the tests).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moefleet_operator import names
from moefleet_operator.planning.canary import watched
from moefleet_operator.planning.facts import Condition, ContainerFacts, PodFacts
from moefleet_operator.planning.history import history_of, last_good
from moefleet_operator.planning.observed import Capacity, Fleet, Observed
from moefleet_operator.planning.observed import Replica as Seen
from moefleet_operator.planning.plan import plan
from moefleet_operator.planning.quotas import within_quotas
from moefleet_operator.planning.reported import Outcomes, ReplicaLoad, ReplicaState
from moefleet_operator.planning.revisions import Watch
from moefleet_operator.planning.steps import (
    AnyStep,
    ApplyChild,
    CallDrain,
    CallResume,
    CreateReplica,
    DeleteReplica,
    ForgetRevision,
    MarkActive,
    MarkConditions,
    Plan,
    RecordRevision,
)
from moefleet_operator.rendering.pod import RenderedPod
from moefleet_operator.rendering.problem import Problem

from .builders import NOW, a_fleet, a_pod, a_resource

STEP_S = 5.0
# Plans made at one moment, until nothing is left to do: more is a plan that never rests.
PASSES_MAX = 25


@dataclass(frozen=True)
class Behaviour:
    """How replicas of a revision are."""

    start_s: float = 20.0
    # Its process ends again and again; or it runs and never serves; or its image is not there.
    crashes: bool = False
    never_ready: bool = False
    # With never_ready: it says that it loads all the while.
    loads: bool = False
    no_image: bool = False
    failed_share: float = 0.0
    ttft_s: float = 0.2
    tpot_s: float = 0.05
    # Of an older release: it does not tell what became of requests.
    silent: bool = False
    # The API server takes no pod of it.
    forbidden: bool = False


@dataclass
class Pod:
    name: str
    uid: str
    revision: str
    slot: int
    created_at: float
    node_at: float | None = None
    # The scheduler has looked and found no place.
    unschedulable_at: float | None = None
    marks: dict[str, Condition] = field(default_factory=dict)
    active_label: bool = True
    state: ReplicaState = "STARTING"
    ready_at: float | None = None
    restarts: int = 0
    outcomes: Outcomes = field(default_factory=Outcomes)
    streams: int = 0
    terminating: bool = False

    @property
    def draining(self) -> bool:
        found = self.marks.get(names.CONDITION_DRAINING)
        return found is not None and found.status == "True"

    @property
    def ready(self) -> bool:
        return self.ready_at is not None and not self.draining and not self.terminating


class World:
    def __init__(
        self, revision: str, *, places: int, wanted: int = 3, requests_per_step: int = 5, **fleet: Any
    ) -> None:
        self.now = NOW
        self.places = places
        # Places that others have taken.
        self.others = 0
        self.revision = revision
        self.unrenderable = False
        self.requests_per_step = requests_per_step
        self.quotas: list[dict[str, Any]] = []
        self.behaviours: dict[str, Behaviour] = {}
        self.fleet: Fleet = a_fleet(
            replicas=wanted, canary_window_s=60.0, canary_requests=20, **{"max_replicas": 8, **fleet}
        )
        self.pods: dict[str, Pod] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.children: dict[str, Mapping[str, Any]] = {}
        self.status: Mapping[str, Any] = {}
        # What the API server refused last.
        self.refused: dict[str, Problem] = {}
        self.steps: list[AnyStep] = []
        # All that status.rollout has said.
        self.stands: set[tuple[str, str]] = set()
        self.least_ready = 0
        self.created: list[str] = []
        self.deleted: list[str] = []
        self._watch: Watch | None = None
        self._uids = 0

    # --- what happens ---------------------------------------------------------------------------------------

    def change(self, revision: str) -> None:
        """The spec wants this revision now."""
        self.revision = revision
        self.fleet = replace(self.fleet, generation=self.fleet.generation + 1)

    def scale(self, wanted: int) -> None:
        self.fleet = replace(self.fleet, replicas=wanted, generation=self.fleet.generation + 1)

    def forget(self) -> None:
        """Another operator process leads."""
        self._watch = None

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        end = self.now + seconds
        while self.now < end and not (until is not None and until()):
            self.now += STEP_S
            self._live()
            self._settle()
            self.least_ready = min(self.least_ready, self.ready())

    def steady(self, seconds: float = 600.0) -> World:
        """Until it is as wanted; counts begin here."""
        self.run(seconds)
        assert self.ready() == self.fleet.replicas, self.tell()
        self.least_ready, self.created, self.deleted = self.ready(), [], []
        return self

    # --- what is ----------------------------------------------------------------------------------------------

    def ready(self, revision: str | None = None) -> int:
        return sum(1 for p in self.pods.values() if p.ready and revision in (None, p.revision))

    def live(self, revision: str) -> int:
        return sum(1 for p in self.pods.values() if not p.draining and p.revision == revision)

    def condition(self, type_: str) -> str:
        found = next((c for c in self.status.get("conditions", ()) if c["type"] == type_), {})
        return f"{found.get('status')}/{found.get('reason')}: {found.get('message')}"

    def step(self) -> str:
        return str((self.status.get("rollout") or {}).get("step", ""))

    def why(self) -> str:
        return str((self.status.get("rollout") or {}).get("message", ""))

    def verdict(self, revision: str) -> str:
        found = self.history.get(names.revision_name("chat", revision), {})
        labels: Mapping[str, str] = found.get("metadata", {}).get("labels", {})
        return labels.get(names.LABEL_VERDICT, "") if found else "unknown"

    def tell(self) -> str:
        pods = [
            (p.name, "ready" if p.ready else "draining" if p.draining else p.state)
            for p in self.pods.values()
        ]
        return f"{pods}; {self.step()}: {self.why()}; {self.condition('Ready')}"

    # --- inside -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        used = self.others + sum(1 for p in self.pods.values() if p.node_at is not None)
        for pod in self.pods.values():
            how = self.behaviours.get(pod.revision, Behaviour())
            if pod.node_at is None and used < self.places:
                pod.node_at, used = self.now, used + 1
            if pod.node_at is None:
                pod.unschedulable_at = pod.unschedulable_at or self.now
                continue
            if how.crashes:
                pod.ready_at, pod.restarts = None, int((self.now - pod.node_at) // 10)
            elif (
                pod.ready_at is None
                and not (how.never_ready or how.no_image or pod.draining)
                and self.now >= pod.node_at + how.start_s
            ):
                pod.ready_at, pod.state = self.now, "SERVING"
            if pod.ready:
                pod.outcomes += _served(self.requests_per_step, how)

    def _settle(self) -> None:
        for _ in range(PASSES_MAX):
            made = self._plan()
            if made.status is not None:
                self.status = copy.deepcopy(made.status)
                self.stands.add((self.step(), self.why()))
            if not made.steps:
                return
            for step in made.steps:
                self.steps.append(step)
                self._carry_out(step)
        raise AssertionError(f"a plan never rests: {[(type(s).__name__, s.name) for s in self.steps[-6:]]}")

    def _plan(self) -> Plan:
        observed = self.observe()
        self._watch = watched(observed, self._watch, self.now)
        return plan(replace(observed, watch=self._watch), self.now)

    def observe(self) -> Observed:
        pods = list(self.pods.values())
        history = history_of(self.history.values(), self.fleet.uid)
        current = None if self.unrenderable else self.revision
        past = last_good(history, current)
        free = max(0, self.places - self.others - len(pods))
        capacity = Capacity(free, self.places, self.places)
        capacity = within_quotas(capacity, {"nvidia.com/gpu": 8000}, self.quotas, 0)
        return Observed(
            fleet=replace(self.fleet, status=self.status),
            resource=a_resource(),
            spec={"model": {"name": self.revision}, "engine": {}, "replica": {}},
            rendered=Problem("EngineArgumentUnknown", "no such argument")
            if self.unrenderable
            else _rendered(self.revision),
            history=history,
            good=_rendered(past.revision) if past is not None else None,
            replicas=tuple(Seen(self._facts(p), self._load(p)) for p in pods),
            taken=frozenset(self.pods),
            refused=self.refused,
            gateway_expected=False,
            service=self.children.get("Service"),
            pdb=self.children.get("PodDisruptionBudget"),
            capacity=capacity,
        )

    def _facts(self, pod: Pod) -> PodFacts:
        how = self.behaviours.get(pod.revision, Behaviour())
        conditions = dict(pod.marks)
        if pod.node_at is not None:
            conditions["PodScheduled"] = Condition("True", "", "", pod.node_at)
        elif pod.unschedulable_at is not None:
            conditions["PodScheduled"] = Condition(
                "False", "Unschedulable", "0 nodes are available", pod.unschedulable_at
            )
        if pod.ready_at is not None:
            status = "True" if pod.ready else "False"
            conditions["Ready"] = conditions["ContainersReady"] = Condition(status, "", "", pod.ready_at)
        served = pod.ready_at is not None
        waits = how.crashes or how.no_image
        container = ContainerFacts(
            ready=pod.ready,
            started=served,
            state="waiting" if waits and not served else "running",
            reason="CrashLoopBackOff" if how.crashes else "ErrImagePull" if how.no_image else "",
            message="",
            restarts=pod.restarts,
            last_message="Error with code 1" if how.crashes else "",
        )
        return a_pod(
            pod.slot,
            pod.revision,
            conditions,
            uid=pod.uid,
            created_at=pod.created_at,
            node=f"node-{pod.name}" if pod.node_at is not None else "",
            container=container if pod.node_at is not None else None,
            active=pod.active_label,
            gates=(),
        )

    def _load(self, pod: Pod) -> ReplicaLoad | None:
        how = self.behaviours.get(pod.revision, Behaviour())
        if pod.ready_at is None:
            return ReplicaLoad("LOADING") if how.loads and pod.node_at is not None else None
        told = None if how.silent else pod.outcomes
        return ReplicaLoad(pod.state, active=pod.streams, incarnation=str(pod.restarts), outcomes=told)

    def _carry_out(self, step: AnyStep) -> None:
        match step:
            case CreateReplica():
                revision = step.name.split("-")[1]
                assert step.name not in self.pods, f"{step.name} is there already"
                if self.behaviours.get(revision, Behaviour()).forbidden:
                    said = f"CreateReplica {step.name}: 403 Forbidden: violates PodSecurity"
                    self.refused = {"create": Problem("PodRefused", said)}
                    return
                self.refused = {}
                self._uids += 1
                self.pods[step.name] = Pod(step.name, f"uid-{self._uids}", revision, step.slot, self.now)
                self.created.append(revision)
            case DeleteReplica():
                gone = self.pods.pop(step.name)
                assert not gone.streams, f"{step.name} is deleted with {gone.streams} streams"
                self.deleted.append(gone.revision)
            case MarkConditions():
                for mark in step.marks:
                    found = Condition(mark.status, mark.reason, mark.message, self.now)
                    self.pods[step.name].marks[mark.type] = found
            case MarkActive():
                self.pods[step.name].active_label = step.active
            case CallDrain():
                pod = self.pods[step.name]
                pod.state = "DRAINING" if pod.streams else "DRAINED"
            case CallResume():
                self.pods[step.name].state = "SERVING"
            case RecordRevision():
                if not step.uid:
                    assert step.name not in self.history, f"{step.name} is there already"
                    made = copy.deepcopy(dict(step.body))
                    made["metadata"]["uid"] = f"uid-{step.name}"
                    self.history[step.name] = made
                    return
                found = self.history[step.name]
                assert step.uid == found["metadata"]["uid"]
                found["revision"] = step.body["revision"]
                for part in ("labels", "annotations"):
                    merged = {**found["metadata"].get(part, {}), **step.body["metadata"][part]}
                    found["metadata"][part] = {k: v for k, v in merged.items() if v is not None}
            case ForgetRevision():
                del self.history[step.name]
            case ApplyChild():
                self.children[step.kind] = step.body
            case _:
                raise AssertionError(f"not expected here: {step}")


def _rendered(revision: str) -> RenderedPod:
    body = {
        "metadata": {
            "namespace": "models",
            "labels": {},
            "ownerReferences": [{"uid": "fleet-uid", "controller": True}],
        },
        "spec": {
            "containers": [{"startupProbe": {"failureThreshold": 600, "periodSeconds": 1}}],
        },
    }
    return RenderedPod("chat", revision, body, "")


def _served(requests: int, how: Behaviour) -> Outcomes:
    """Times vary by a quarter, as a fifth of the requests is twice as long as the others."""
    failed = round(requests * how.failed_share)
    ttft = [how.ttft_s * (2.0 if n % 5 == 0 else 0.75) for n in range(requests)]
    tpot = [how.tpot_s * (1.1 if n % 2 == 0 else 0.9) for n in range(requests)]
    return Outcomes(
        ended=requests,
        failed=failed,
        first_tokens=requests,
        ttft_s=sum(ttft),
        ttft_s_squared=sum(t * t for t in ttft),
        paced=requests,
        tpot_s=sum(tpot),
        tpot_s_squared=sum(t * t for t in tpot),
        computed_tokens=100 * requests,
    )
