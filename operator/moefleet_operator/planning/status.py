"""The status of a fleet, all of it, from what is observed: conditions with reasons, counts, the last decision.

Text is stable while nothing changes (absolute times, no countdowns), so that a status that is equal is not written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .asleep import at_zero, cold_start
from .changes import Shape
from .children import foreign
from .failing import failing
from .observed import Json, Observed, Replica
from .steps import Target
from .timestamps import rfc3339
from .wording import are, count, count_are, share_are, there_are

# What no amount of waiting mends: somebody has to change the spec, the cluster or the weights.
STALLING = frozenset(
    {
        reasons.MODEL_NAME_TAKEN,
        reasons.SPEC_INVALID,
        reasons.ENGINE_ARGUMENT_UNKNOWN,
        reasons.ENGINE_ARGUMENT_INVALID,
        reasons.MODEL_SOURCE_MISSING,
        reasons.MODEL_SOURCE_FORBIDDEN,
        reasons.MODEL_MISMATCH,
        reasons.MODEL_CHECKSUM_MISMATCH,
        reasons.MODEL_CACHE_FULL,
        reasons.MODEL_CACHE_UNUSABLE,
        reasons.MODEL_UNREADABLE,
        reasons.MODEL_UNSUPPORTED,
        reasons.OUT_OF_MEMORY,
        reasons.CONFIG_INVALID,
        reasons.ENGINE_UNAVAILABLE,
        reasons.IMAGE_PULL_FAILED,
        reasons.CRASH_LOOP,
        reasons.POD_REFUSED,
        reasons.PERMISSION_MISSING,
        reasons.NAME_IN_USE,
        reasons.NAMESPACE_TERMINATING,
        reasons.NO_NODE_FITS,
        reasons.CANARY_CRASHES,
        reasons.CANARY_NOT_READY,
        reasons.CANARY_ERRORS,
        reasons.CANARY_SLOWER,
    }
)
# Reasons that say something about the weights rather than about the pod.
MODEL_REASONS = frozenset(
    {
        reasons.ENGINE_ARGUMENT_UNKNOWN,
        reasons.ENGINE_ARGUMENT_INVALID,
        reasons.MODEL_SOURCE_MISSING,
        reasons.MODEL_SOURCE_FORBIDDEN,
        reasons.MODEL_MISMATCH,
        reasons.MODEL_CHECKSUM_MISMATCH,
        reasons.MODEL_CACHE_FULL,
        reasons.MODEL_CACHE_UNUSABLE,
        reasons.MODEL_SOURCE_UNREACHABLE,
        reasons.MODEL_FETCH_FAILED,
        reasons.MODEL_UNREADABLE,
        reasons.MODEL_UNSUPPORTED,
        reasons.OUT_OF_MEMORY,
        reasons.ENGINE_UNAVAILABLE,
        reasons.ENGINE_START_FAILED,
        reasons.ENGINE_FAILED,
        reasons.CANARY_FAILED,
        reasons.CONFIG_INVALID,
        reasons.IMAGE_PULL_FAILED,
        reasons.CRASH_LOOP,
        reasons.CONTAINER_FAILED,
    }
)
# The API takes 4096; what a person reads is shorter, and a scheduler's message can name a thousand nodes.
MESSAGE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Work:
    """What the plan found."""

    target: Target
    shape: Shape
    waits: tuple[str, ...]
    has_steps: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    type: str
    status: str
    reason: str
    message: str


def status(observed: Observed, work: Work, now: float) -> Json:
    fleet = observed.fleet
    live = [r for r in observed.replicas if r.live]
    ready = sum(1 for r in live if r.ready)
    out: dict[str, Any] = {
        "observedGeneration": fleet.generation,
        "replicas": len(live),
        "readyReplicas": ready,
        "desiredReplicas": work.target.replicas,
        "replicasSummary": f"{ready}/{work.target.replicas}",
        "selector": names.active_selector(fleet.name),
        "conditions": _conditions(observed, verdicts(observed, work), now),
    }
    if observed.revision is not None:
        out["revision"] = observed.revision
    stand = work.shape.stand
    if stand is not None:
        out["rollout"] = {"step": stand.step, "message": stand.message[:MESSAGE_MAX]}
    decision = _last_decision(observed, work.target, now)
    if decision is not None:
        out["scaling"] = {"lastDecision": decision}
    for key in ("throughput", "objective", "economics"):
        if observed.numbers.get(key):
            out[key] = observed.numbers[key]
    if found := cold_start(observed):
        out["coldStart"] = found
    return out


def invalid_status(generation: int, live: Json, problem: Problem, now: float) -> Json:
    """For an object that we cannot even read: everything else stays as it was."""
    found = [
        Verdict(reasons.READY, "False", problem.reason, problem.message),
        Verdict(reasons.RECONCILING, "False", problem.reason, problem.message),
        Verdict(reasons.STALLED, "True", problem.reason, problem.message),
    ]
    kept = [c for c in live.get("conditions") or () if c.get("type") not in {v.type for v in found}]
    return {
        **live,
        "observedGeneration": generation,
        "conditions": [*kept, *_conditions_of(live, generation, found, now)],
    }


def verdicts(observed: Observed, work: Work) -> list[Verdict]:
    facts = _Facts(observed, work)
    stalled = facts.stalled
    working = facts.working
    if stalled is not None:
        progressing = Verdict(reasons.PROGRESSING, "False", stalled.reason, stalled.message)
        reconciling = Verdict(reasons.RECONCILING, "False", stalled.reason, stalled.message)
    elif working is not None:
        progressing = Verdict(reasons.PROGRESSING, "True", working.reason, working.message)
        reconciling = Verdict(reasons.RECONCILING, "True", working.reason, working.message)
    else:
        progressing = Verdict(reasons.PROGRESSING, "False", reasons.UP_TO_DATE, "nothing is left to do")
        reconciling = Verdict(reasons.RECONCILING, "False", reasons.UP_TO_DATE, "nothing is left to do")
    return [
        facts.ready(),
        facts.available(),
        progressing,
        reconciling,
        Verdict(reasons.STALLED, "True", stalled.reason, stalled.message)
        if stalled is not None
        else Verdict(reasons.STALLED, "False", reasons.NOT_STALLED, ""),
        facts.model_ready(),
        _limit(reasons.CAPACITY_LIMITED, _capacity(observed, work), reasons.CAPACITY_SUFFICIENT),
        _limit(reasons.SCALING_LIMITED, work.target.limited, reasons.NOT_LIMITED),
        _limit(reasons.ROLLOUT_HELD, work.shape.held, reasons.NOT_HELD),
        _limit(reasons.DISRUPTED, work.shape.disrupted, reasons.NOT_DISRUPTED),
    ]


def _capacity(observed: Observed, work: Work) -> Problem | None:
    """A quota that refuses is known only by its refusal where it cannot be counted, and that one has the numbers."""
    refused = observed.refused.get("create")
    if refused is not None and refused.reason == reasons.QUOTA_EXCEEDED:
        return refused
    return work.shape.limited


class _Facts:
    def __init__(self, observed: Observed, work: Work) -> None:
        self.observed = observed
        self.work = work
        self.wanted = work.target.replicas
        self.live = [r for r in observed.replicas if r.live]
        self.ready_count = sum(1 for r in self.live if r.ready)
        revision = observed.revision
        self.new = [r for r in self.live if revision is None or r.pod.revision == revision]
        self.old = [r for r in self.live if revision is not None and r.pod.revision != revision]
        self.new_ready = sum(1 for r in self.new if r.ready)
        self.draining = [r for r in observed.replicas if r.draining and not r.pod.terminating]
        self.broken = self._broken()
        self.stalled = self._stalled()
        self.working = self._working()

    def ready(self) -> Verdict:
        observed, wanted = self.observed, self.wanted
        if isinstance(self.stalled, Problem) and self.new_ready < max(1, wanted):
            return Verdict(reasons.READY, "False", self.stalled.reason, self.stalled.message)
        if wanted == 0:
            zero = at_zero(observed)
            return Verdict(reasons.READY, "True", zero.reason, zero.message)
        share = share_are(self.new_ready, wanted, "replica", f"of revision {observed.revision}")
        counts = f"{share} ready"
        if self.old:
            reason = self.work.shape.held.reason if self.work.shape.held else reasons.ROLLOUT_IN_PROGRESS
            return Verdict(
                reasons.READY,
                "False",
                reason,
                f"{counts}, {len(self.old)} {are(len(self.old))} of an older revision",
            )
        if self.new_ready >= wanted:
            return Verdict(reasons.READY, "True", reasons.ALL_REPLICAS_READY, counts)
        if observed.fleet.mode == "Automatic" and self.new_ready >= max(1, observed.fleet.min_replicas):
            return Verdict(reasons.READY, "True", reasons.MINIMUM_REPLICAS_READY, counts)
        if self.broken is not None:
            return Verdict(reasons.READY, "False", self.broken.reason, f"{counts}: {self.broken.message}")
        if self.work.shape.limited is not None:
            limited = self.work.shape.limited
            return Verdict(reasons.READY, "False", limited.reason, f"{counts}: {limited.message}")
        unregistered = [r for r in self.live if r.pod.is_true("ContainersReady") and not r.ready]
        if unregistered and observed.gateway_expected:
            if not any(g.ready for g in observed.gateways):
                return Verdict(
                    reasons.READY, "False", reasons.NO_GATEWAY, f"{counts}: no gateway pod is ready"
                )
            return Verdict(
                reasons.READY,
                "False",
                reasons.NOT_REGISTERED,
                f"{counts}: {unregistered[0].name} serves, but the gateways have not taken it up yet",
            )
        served_before = any(
            r.pod.conditions.get("Ready") and r.may_have_streams and not r.ready for r in self.live
        )
        reason = reasons.REPLICAS_NOT_READY if served_before else reasons.REPLICAS_STARTING
        if not self.live:
            reason = reasons.NO_REPLICAS
        return Verdict(reasons.READY, "False", reason, counts)

    def available(self) -> Verdict:
        if self.wanted == 0 and not self.ready_count:
            if self.observed.name_owner:
                return Verdict(reasons.AVAILABLE, "False", reasons.MODEL_NAME_TAKEN, self.work.target.message)
            zero = at_zero(self.observed)
            return Verdict(reasons.AVAILABLE, "False", zero.reason, zero.message)
        need = max(1, min(self.wanted, self.observed.fleet.min_replicas))
        said = f"{count_are(self.ready_count, 'replica')} ready, minReplicas is {self.observed.fleet.min_replicas}"
        if self.ready_count >= need:
            return Verdict(reasons.AVAILABLE, "True", reasons.MINIMUM_REPLICAS_READY, said)
        reason = reasons.NO_REPLICAS if not self.ready_count else reasons.REPLICAS_NOT_READY
        return Verdict(reasons.AVAILABLE, "False", reason, said)

    def model_ready(self) -> Verdict:
        serving = [r for r in self.live if r.serving]
        if (
            self.broken is not None
            and self.broken.reason in MODEL_REASONS
            and not any(r.serving for r in self.new)
        ):
            return Verdict(reasons.MODEL_READY, "False", self.broken.reason, self.broken.message)
        if serving:
            return Verdict(
                reasons.MODEL_READY,
                "True",
                reasons.MODEL_LOADED,
                f"{count(len(serving), 'replica')} {'has' if len(serving) == 1 else 'have'} loaded the model",
            )
        loading = next((r for r in self.live if r.pod.container and r.pod.container.state == "running"), None)
        if loading is not None:
            said = loading.load.message if loading.load is not None else ""
            fetches = loading.load is not None and loading.load.state == "FETCHING"
            return Verdict(
                reasons.MODEL_READY,
                "False",
                reasons.MODEL_FETCHING if fetches else reasons.MODEL_LOADING,
                f"{loading.name}: {said or 'the engine starts'}",
            )
        return Verdict(
            reasons.MODEL_READY, "Unknown", reasons.MODEL_UNKNOWN, "no replica has tried to load the model"
        )

    def _broken(self) -> Problem | None:
        if isinstance(self.observed.rendered, Problem):
            return self.observed.rendered
        if "create" in self.observed.refused:
            return self.observed.refused["create"]
        for replica in sorted(self.new, key=lambda r: r.pod.slot):
            if not replica.ready and (problem := failing(replica)) is not None:
                return problem
        lost: list[Replica] = [r for r in self.observed.replicas if r.pod.finished and not r.pod.terminating]
        if len(lost) >= 2 and self.new_ready < self.wanted:
            return failing(max(lost, key=lambda r: r.pod.created_at))
        return None

    def _stalled(self) -> Problem | None:
        if self.observed.name_owner:
            return Problem(
                reasons.MODEL_NAME_TAKEN,
                f"{self.work.target.message}; choose another spec.model.name or delete that fleet",
            )
        seen = self.observed
        taken = (
            foreign("Service", seen.service, seen.fleet.uid),
            foreign("PodDisruptionBudget", seen.pdb, seen.fleet.uid),
        )
        for problem in (self.broken, *taken, *seen.refused.values()):
            if problem is not None and problem.reason in STALLING:
                return problem
        for problem in (self.work.shape.held, self.work.shape.limited):
            if problem is not None and problem.reason in STALLING:
                return problem
        return None

    def _working(self) -> Problem | None:
        """What is going on, for Progressing and Reconciling."""
        if self.old:
            said = f"{share_are(len(self.old), len(self.live), 'replica')} of an older revision"
            held = self.work.shape.held
            return Problem(reasons.ROLLOUT_IN_PROGRESS, f"{said}; {held.message}" if held else said)
        if len(self.live) < self.wanted or self.new_ready < self.wanted:
            if (
                self.new_ready == 0
                and self.observed.decision is not None
                and self.observed.decision.reason == reasons.WAKING
            ):
                return Problem(reasons.WAKING, self.observed.decision.message)
            return Problem(reasons.SCALING_UP, f"{share_are(self.ready_count, self.wanted, 'replica')} ready")
        if self.draining:
            until = (
                max(r.drain.at for r in self.draining if r.drain is not None)
                + self.observed.fleet.drain_timeout_s
            )
            return Problem(
                reasons.WAITING_FOR_DRAIN,
                f"{_finish(len(self.draining))} streams, until {rfc3339(until)} at the latest",
            )
        if len(self.live) > self.wanted:
            return Problem(
                reasons.SCALING_DOWN,
                f"{count_are(self.wanted, 'replica')} wanted and {there_are(len(self.live))}",
            )
        return None


def _finish(draining: int) -> str:
    return "1 replica finishes its" if draining == 1 else f"{draining} replicas finish their"


def _limit(type_: str, problem: Problem | None, fine: str) -> Verdict:
    if problem is None:
        return Verdict(type_, "False", fine, "")
    return Verdict(type_, "True", problem.reason, problem.message)


def _conditions(observed: Observed, found: list[Verdict], now: float) -> list[Json]:
    return _conditions_of(observed.fleet.status, observed.fleet.generation, found, now)


def _conditions_of(live: Json, generation: int, found: list[Verdict], now: float) -> list[Json]:
    before = {c.get("type"): c for c in live.get("conditions") or ()}
    out: list[Json] = []
    for verdict in found:
        was = before.get(verdict.type) or {}
        same = was.get("status") == verdict.status and was.get("lastTransitionTime")
        message = verdict.message
        if len(message) > MESSAGE_MAX:
            message = message[: MESSAGE_MAX - 3] + "..."
        out.append(
            {
                "type": verdict.type,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": message,
                "lastTransitionTime": was["lastTransitionTime"] if same else rfc3339(now),
                "observedGeneration": generation,
            }
        )
    return out


def _last_decision(observed: Observed, target: Target, now: float) -> Json | None:
    """Kept as it is until the number or the reason changes: its message is of the moment of the change."""
    last = (observed.fleet.status.get("scaling") or {}).get("lastDecision")
    if not target.reason:
        return last if isinstance(last, dict) else None
    to = (
        target.advised
        if observed.fleet.mode == "Advisory" and target.advised is not None
        else target.replicas
    )
    if isinstance(last, dict) and last.get("to") == to and last.get("reason") == target.reason:
        return last
    before = observed.fleet.status.get("desiredReplicas")
    came_from = before if isinstance(before, int) else sum(1 for r in observed.replicas if r.live)
    return {
        "time": rfc3339(now),
        "from": came_from,
        "to": to,
        "reason": target.reason,
        "message": target.message[:MESSAGE_MAX],
    }
