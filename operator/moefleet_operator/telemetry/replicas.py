"""What replicas carry, from LoadSamples: the newest of each, and per fleet what they admitted, made, and how long steps took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from moefleet.replica.v1 import replica_pb2
from moefleet_perf import StepModel, StepTotals, StepWatch, fed

from moefleet_operator.core.events import Key, ReplicaLoad
from moefleet_operator.planning.reported import Outcomes, ReplicaState, StartReport
from moefleet_operator.scaling.types import Load, ServedTotals
from moefleet_operator.telemetry.counters import Counts, Ledger
from moefleet_operator.telemetry.targets import ReplicaTarget

# Between LoadSamples when nothing changes; changes of state come at once. 1,000 replicas make 200 messages a second of it.
LOAD_INTERVAL_S = 5.0
LOAD_STALE_S = 3 * LOAD_INTERVAL_S

SERVED_WIDTH = 4
_STEP_FIELDS = tuple(f.name for f in fields(StepTotals))
_STATES: dict[int, ReplicaState] = {
    replica_pb2.REPLICA_STATE_UNSPECIFIED: "UNSPECIFIED",
    replica_pb2.REPLICA_STATE_STARTING: "STARTING",
    replica_pb2.REPLICA_STATE_LOADING: "LOADING",
    replica_pb2.REPLICA_STATE_WARMING: "WARMING",
    replica_pb2.REPLICA_STATE_SERVING: "SERVING",
    replica_pb2.REPLICA_STATE_DRAINING: "DRAINING",
    replica_pb2.REPLICA_STATE_DRAINED: "DRAINED",
    replica_pb2.REPLICA_STATE_FAILED: "FAILED",
    replica_pb2.REPLICA_STATE_FETCHING: "FETCHING",
}


@dataclass(slots=True)
class _Heard:
    target: ReplicaTarget
    # None: the stream is broken or has not said anything yet.
    sample: replica_pb2.LoadSample | None = None
    at_s: float = 0.0
    # Steps since the last tick.
    new_steps: Counts = (0.0,) * len(_STEP_FIELDS)


@dataclass(slots=True)
class _Fleet:
    served: Ledger = field(default_factory=lambda: Ledger(SERVED_WIDTH))
    steps: Ledger = field(default_factory=lambda: Ledger(len(_STEP_FIELDS)))
    watch: StepWatch = field(default_factory=StepWatch)
    spoke: bool = False


class ReplicaBook:
    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._by_fleet: dict[Key, list[_Heard]] = {}
        self._fleets: dict[Key, _Fleet] = {}

    def expect(self, targets: Iterable[ReplicaTarget]) -> None:
        by_uid = {t.uid: t for t in targets}
        for uid, target in by_uid.items():
            if heard := self._heard.get(uid):
                heard.target = target
            else:
                self._heard[uid] = _Heard(target)
        for uid in self._heard.keys() - by_uid.keys():
            gone = self._heard.pop(uid)
            if fleet := self._fleets.get(gone.target.fleet):
                fleet.served.drop(uid)
                fleet.steps.drop(uid)
        self._by_fleet = {}
        for heard in self._heard.values():
            self._by_fleet.setdefault(heard.target.fleet, []).append(heard)

    def put(self, uid: str, sample: replica_pb2.LoadSample, now: float) -> bool:
        """False: not counted, because it is older than what we have or another pod answers at that address."""
        heard = self._heard.get(uid)
        if heard is None or (sample.pod_uid and sample.pod_uid != uid):
            return False
        before = heard.sample
        if before is not None and before.incarnation == sample.incarnation and sample.seq < before.seq:
            return False
        heard.sample, heard.at_s = sample, now
        self._count(heard, sample)
        return True

    def lost(self, uid: str) -> None:
        if heard := self._heard.get(uid):
            heard.sample = None

    def load(self, uid: str, now: float) -> ReplicaLoad | None:
        """None: unknown, because nothing was heard, the stream is broken, or it is stale."""
        heard = self._heard.get(uid)
        if heard is None or heard.sample is None or now - heard.at_s > LOAD_STALE_S:
            return None
        said = heard.sample
        return ReplicaLoad(
            state=_STATES.get(said.state, "UNSPECIFIED"),
            active=said.active,
            queued=said.queued,
            outstanding_tokens=said.outstanding_prefill_tokens + said.outstanding_decode_tokens,
            oldest_active_s=said.oldest_active_s,
            incarnation=said.incarnation,
            message=said.message,
            start=_start(said),
            outcomes=_outcomes(said),
            reusable_tokens=_reusable_tokens(said),
            hit_share=said.cached_tokens_total / said.prompt_tokens_total
            if said.prompt_tokens_total
            else 0.0,
        )

    def loads(self, now: float) -> dict[str, ReplicaLoad | None]:
        return {uid: self.load(uid, now) for uid in self._heard}

    def fleet_load(self, key: Key, now: float) -> Load:
        """Sum over the replicas that serve: what drains needs no supply, what starts has none."""
        serving = [
            h.sample
            for h in self._by_fleet.get(key, ())
            if h.sample is not None
            and now - h.at_s <= LOAD_STALE_S
            and h.sample.state == replica_pb2.REPLICA_STATE_SERVING
        ]
        return Load(
            replicas=len(serving),
            active=sum(s.active for s in serving),
            queued=sum(s.queued for s in serving),
            outstanding_prefill_tokens=sum(s.outstanding_prefill_tokens for s in serving),
            outstanding_decode_tokens=sum(s.outstanding_decode_tokens for s in serving),
            kv_used_tokens=sum(s.kv_used_tokens for s in serving),
            kv_max_tokens=sum(s.kv_max_tokens for s in serving),
        )

    def silent(self, key: Key, now: float) -> int:
        """Ready replicas of whom nothing is known."""
        return sum(
            h.target.ready and (h.sample is None or now - h.at_s > LOAD_STALE_S)
            for h in self._by_fleet.get(key, ())
        )

    def served(self, key: Key) -> ServedTotals | None:
        fleet = self._fleets.get(key)
        return ServedTotals(*fleet.served.totals()) if fleet and fleet.spoke else None

    def steps(self, key: Key, prior: StepModel | None, now: float) -> tuple[StepTotals | None, float | None]:
        """Steps that the fit believes, and measured over predicted time of those since the last call; call it once a tick.

        `prior`: of the fleet's calibration; None: nobody knows what a step should take, and nothing is learnt."""
        fleet = self._fleets.get(key)
        if fleet is None or prior is None:
            return None, None
        reports = []
        for heard in self._by_fleet.get(key, ()):
            if heard.new_steps[0] > 0:
                reports.append(StepTotals(*heard.new_steps))
                heard.new_steps = (0.0,) * len(_STEP_FIELDS)
        fleet.watch = fed(fleet.watch, reports, prior, now)
        total = fleet.watch.totals
        return (total if total.count > 0 else None), fleet.watch.ratio

    def context_tokens(self, key: Key) -> float | None:
        """Mean context in which replicas made their tokens of late, as of the last call of `steps`; None: too few were made."""
        fleet = self._fleets.get(key)
        return fleet.watch.context_tokens if fleet else None

    def starts_s(self, key: Key) -> dict[str, float]:
        """Seconds from the start of the process to Serving, by pod uid, for those that got there."""
        return {
            h.target.uid: h.sample.start_s
            for h in self._by_fleet.get(key, ())
            if h.sample is not None and h.sample.start_s > 0
        }

    def forget(self, key: Key) -> None:
        self._fleets.pop(key, None)

    def _count(self, heard: _Heard, said: replica_pb2.LoadSample) -> None:
        uid = heard.target.uid
        fleet = self._fleets.setdefault(heard.target.fleet, _Fleet())
        fleet.spoke = True
        served: Counts = (
            said.admitted_total,
            said.prompt_tokens_total,
            said.cached_tokens_total,
            said.output_tokens_total,
        )
        fleet.served.put(uid, said.incarnation, served, from_start=said.seq <= 1)
        sums = tuple(float(getattr(said.steps, name)) for name in _STEP_FIELDS)
        new = fleet.steps.put(uid, said.incarnation, sums, from_start=True)
        if new[0] > 0:
            heard.new_steps = tuple(old + more for old, more in zip(heard.new_steps, new, strict=True))


def _start(said: replica_pb2.LoadSample) -> StartReport | None:
    if said.start_s <= 0 or said.load_s <= 0:
        return None
    tune_s = said.tune_s if said.HasField("tune_s") else None
    return StartReport(said.fetch_s, said.load_s, tune_s, said.start_s)


def _outcomes(said: replica_pb2.LoadSample) -> Outcomes | None:
    if not said.HasField("outcomes"):
        return None
    found = said.outcomes
    return Outcomes(
        ended=found.ended,
        failed=found.failed,
        first_tokens=found.first_tokens,
        ttft_s=found.ttft_s,
        ttft_s_squared=found.ttft_s_squared,
        paced=found.paced,
        tpot_s=found.tpot_s,
        tpot_s_squared=found.tpot_s_squared,
        computed_tokens=said.prompt_tokens_total - said.cached_tokens_total,
    )


def _reusable_tokens(said: replica_pb2.LoadSample) -> int:
    """As the replica tells; of one that does not: what was ever found again, as far as the cache can still hold it."""
    if said.HasField("kv_reusable_tokens"):
        return said.kv_reusable_tokens
    return min(said.cached_tokens_total, max(0, said.kv_max_tokens - said.kv_used_tokens))
