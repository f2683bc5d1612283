"""The replicas of a fleet from creation to the end of their drain, and the state that the kernel moves requests in."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from moefleet_perf import StepTotals

from moefleet_replay.arrivals import Arrivals, ArrivalSource
from moefleet_replay.engine import Engine
from moefleet_replay.fleet_setup import FleetSetup
from moefleet_replay.need import NeedBlocks
from moefleet_replay.observation import Foresight, Observation, ReplicaView, Signal
from moefleet_replay.planned import Moves, PodSeen, plain, planned
from moefleet_replay.policy import ScalingPolicy
from moefleet_replay.result import DecisionLine
from moefleet_replay.series import FleetSeries

COLD_STARTS_KEPT = 64
# Rows beyond max_replicas, for those that drain while others have come; more are made when there are more.
SPARE_ROWS = 64


@dataclass(slots=True)
class Replica:
    uid: int
    created_s: int
    ready_s: int
    # In the name of its pod: the lowest that was free.
    slot: int
    row: int = -1
    drained_from_s: int = 0


class Fleet:
    def __init__(
        self,
        source: ArrivalSource,
        policy: ScalingPolicy,
        setup: FleetSetup,
        engine_of: Callable[[FleetSetup, int, int], Engine],
    ) -> None:
        self.source, self.policy, self.setup = source, policy, setup
        self.duration_s = math.ceil(source.duration_s)
        rows = setup.max_replicas + SPARE_ROWS
        self.engine = engine_of(setup, rows, self.duration_s)
        self.series = FleetSeries(self.duration_s + 600)
        # The lowest comes first, so that the kernel looks at few rows. In order, it is a heap.
        self.free_rows = list(range(rows))
        self.rows = rows
        self.pending: list[Replica] = []
        self.ready: list[Replica] = []
        self.draining: list[Replica] = []
        self.cold_starts: deque[float] = deque(maxlen=COLD_STARTS_KEPT)
        self.starts = self.peak = self.actions = 0
        self.billed_s = 0.0
        self.target = 0
        self.decisions: list[DecisionLine] = []
        self.need = NeedBlocks(self.duration_s)
        self.steps = 0
        self.seen: Observation | None = None
        # Replica-seconds by what they are kept for, of a policy that says so.
        self.kept_s: dict[str, float] = {}

    # --- replicas ---------------------------------------------------------------------------------------------

    def create(self, now: int, *, at_once: bool = False) -> None:
        number = self.starts
        self.starts += 1
        took = 0 if at_once else max(1, math.ceil(self.setup.cold_start.draw_s(self.setup.seed, number)))
        taken = {r.slot for r in (*self.pending, *self.ready, *self.draining)}
        slot = next(s for s in range(len(taken) + 1) if s not in taken)
        self.pending.append(Replica(number, now, now + took, slot))

    def start_ready(self, now: int) -> None:
        came = [r for r in self.pending if r.ready_s <= now]
        if not came:
            return
        self.pending = [r for r in self.pending if r.ready_s > now]
        for replica in came:
            row = replica.row = self.take_row()
            # Those of the start have been at work for long.
            self.engine.open(row, now, warm=replica.ready_s == replica.created_s)
            self.ready.append(replica)
            if replica.ready_s > replica.created_s:
                self.cold_starts.append(float(replica.ready_s - replica.created_s))
        self.engine.pump(now)

    def take_row(self) -> int:
        if not self.free_rows:
            self.engine.widen(SPARE_ROWS)
            self.free_rows = list(range(self.rows, self.rows + SPARE_ROWS))
            self.rows += SPARE_ROWS
        return heapq.heappop(self.free_rows)

    def work(self, replica: Replica) -> float:
        return self.engine.work(replica.row)

    def remove(self, replica: Replica, at_s: float) -> None:
        """Billed until `at_s`."""
        self.billed_s += at_s - replica.created_s
        if replica.row >= 0:
            self.engine.clear(replica.row)
            heapq.heappush(self.free_rows, replica.row)

    def end_drained(self, now: int) -> None:
        """Those whose last request has ended, billed until then and while their pod ends."""
        left: list[Replica] = []
        for replica in self.draining:
            idle_s = self.engine.idle_since_s(replica.row)
            gone_s = (
                math.inf if idle_s is None else max(idle_s, replica.drained_from_s) + self.setup.pod_end_s
            )
            if gone_s <= now:
                self.remove(replica, gone_s)
            else:
                left.append(replica)
        self.draining = left

    def scale(self, wanted: int, reason: str, now: int) -> None:
        wanted = min(max(wanted, self.setup.min_replicas), self.setup.max_replicas)
        if wanted != self.target:
            self.actions += 1
            self.decisions.append(DecisionLine(float(now), self.target, wanted, reason))
            self.target = wanted
        if len(self.pending) + len(self.ready) != wanted:
            seen = self._pods()
            resumes = getattr(self.policy, "resumes_draining", False)
            self._move(planned(seen, wanted, float(now)) if resumes else plain(seen, wanted), now)
        self.peak = max(self.peak, len(self.pending) + len(self.ready))

    def _pods(self) -> list[PodSeen]:
        seen = [PodSeen(r.uid, r.slot, float(r.created_s)) for r in self.pending]
        for replicas, draining in ((self.ready, False), (self.draining, True)):
            for replica in replicas:
                load = self.engine.load(replica.row, 0)
                tokens = load.outstanding_prefill_tokens + load.outstanding_decode_tokens
                pod = PodSeen(
                    replica.uid,
                    replica.slot,
                    float(replica.created_s),
                    tokens,
                    load.running,
                    load.queued,
                    draining,
                )
                seen.append(pod)
        return seen

    def _move(self, moves: Moves, now: int) -> None:
        leave, back = set(moves.leave), set(moves.resume)
        for replica in [r for r in self.pending if r.uid in leave]:
            self.pending.remove(replica)
            self.remove(replica, now)
        for replica in [r for r in self.ready if r.uid in leave]:
            self.ready.remove(replica)
            self.engine.offer(replica.row, False)
            replica.drained_from_s = now
            self.draining.append(replica)
        self.end_drained(now)
        for replica in [r for r in self.draining if r.uid in back]:
            self.draining.remove(replica)
            self.engine.offer(replica.row, True)
            self.ready.append(replica)
        if back:
            self.engine.pump(now)
        for _ in range(moves.create):
            self.create(now)

    def die(self, now: int, count: int) -> None:
        for replica in sorted(self.ready, key=self.work, reverse=True)[:count]:
            self.ready.remove(replica)
            self.engine.kill(replica.row)
            self.remove(replica, now)
            # Its controller makes another at once, for every policy.
            self.create(now)
        self.engine.pump(now)

    # --- time -------------------------------------------------------------------------------------------------

    def advance(self, start: int, end: int, arrivals: Arrivals) -> None:
        self.series.reserve(end)
        rows = self.series.rows
        rows[start:end, Signal.READY] = len(self.ready)
        rows[start:end, Signal.PENDING] = len(self.pending)
        rows[start:end, Signal.DRAINING] = len(self.draining)
        self.steps += self.engine.advance(start, end, arrivals, rows)
        self.series.grow_to(end)

    def observation(self, now: int, foresight: Foresight | None = None) -> Observation:
        lost = any(a <= now < b for a, b in self.setup.lost)
        stale = self.seen if lost else None
        if stale is None:
            self.series.now = max(0, now - self.setup.sample_lag_s)
        oldest_s = self.engine.oldest_arrival_s()
        self.seen = Observation(
            now_s=float(now),
            objective=self.setup.objective,
            calibration=self.setup.calibration,
            min_replicas=self.setup.min_replicas,
            max_replicas=self.setup.max_replicas,
            target=self.target,
            ready=len(self.ready),
            pending_ages_s=tuple(
                float(now - r.created_s) for r in sorted(self.pending, key=lambda r: r.created_s)
            ),
            draining=len(self.draining),
            cold_starts_s=tuple(self.cold_starts),
            series=self.series,
            replicas=self._views(now) if stale is None else stale.replicas,
            steps=StepTotals(*self.engine.sums.tolist()) if stale is None else stale.steps,
            oldest_wait_s=(0.0 if oldest_s is None else now - oldest_s)
            if stale is None
            else stale.oldest_wait_s,
            foresight=foresight,
            metrics_lost=lost,
        )
        return self.seen

    def _views(self, now: int) -> tuple[ReplicaView, ...]:
        views = []
        for replica in self.ready:
            load = self.engine.load(replica.row, now)
            views.append(ReplicaView(replica.uid, float(replica.ready_s), *load))
        return tuple(views)
