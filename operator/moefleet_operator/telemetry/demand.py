"""What gateways took, fleet by fleet, from DemandSamples of any number of gateways.

Kept per fleet: totals (a Ledger over gateways and incarnations), the queue of each gateway, latency histograms, and what each
gateway had counted at which time, for the hour that is replayed after a restart of the operator. Times of a gateway's clock
are only used inside one incarnation: its smallest distance to our clock maps them to ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from moefleet.gateway.v1 import gateway_pb2

from moefleet_operator.core.events import Key
from moefleet_operator.scaling.types import DemandPoint, DemandTotals, Queue
from moefleet_operator.telemetry.counters import Counts, Ledger

# Gateways send every 5 s; three missed are no coincidence.
DEMAND_STALE_S = 15.0
# The hour that gateways keep, fine at its end: the windows of the law are at most 300 s long.
HISTORY_S = 3600.0
HISTORY_FINE_S = 600.0
HISTORY_COARSE_STEP_S = 60.0
HISTORY_STEP_S = 5.0
# Fleets in one sample: more is a broken gateway, and would eat our memory.
MAX_FLEETS = 10_000
# Buckets of one latency histogram.
MAX_LATENCY_BUCKETS = 64

DEMAND_WIDTH = 6
SERVED_WIDTH = 5


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative since we listen: counts[i] requests at most bounds_s[i], the last count is the rest."""

    bounds_s: tuple[float, ...]
    counts: Counts


@dataclass(slots=True)
class _Heard:
    """One gateway."""

    incarnation: str = ""
    seq: int = 0
    at_s: float | None = None
    # Ours minus theirs, the smallest seen: the message that travelled fastest.
    clock_offset_s: float = float("inf")
    fleets: set[Key] = field(default_factory=set)


@dataclass(slots=True)
class _Series:
    """What one incarnation of one gateway had counted for one fleet, at its own times."""

    incarnation: str
    times_s: list[float] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)


@dataclass(slots=True)
class _Fleet:
    demand: Ledger = field(default_factory=lambda: Ledger(DEMAND_WIDTH))
    served: Ledger = field(default_factory=lambda: Ledger(SERVED_WIDTH))
    ttft: Ledger | None = None
    tpot: Ledger | None = None
    ttft_bounds_s: tuple[float, ...] = ()
    tpot_bounds_s: tuple[float, ...] = ()
    queues: dict[str, Queue] = field(default_factory=dict)
    series: dict[str, list[_Series]] = field(default_factory=dict)


class DemandBook:
    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._fleets: dict[Key, _Fleet] = {}
        self._listed = False

    def expect(self, gateways: Iterable[str]) -> None:
        """The gateways that exist now. One that is gone leaves its counts, but no queue and no silence."""
        uids = set(gateways)
        self._listed = True
        for uid in uids - self._heard.keys():
            self._heard[uid] = _Heard()
        for uid in self._heard.keys() - uids:
            del self._heard[uid]
            for fleet in self._fleets.values():
                fleet.queues.pop(uid, None)
                fleet.series.pop(uid, None)
                for ledger in (fleet.demand, fleet.served, fleet.ttft, fleet.tpot):
                    if ledger is not None:
                        ledger.drop(uid)

    def resume_from(self, gateway_uid: str) -> tuple[str, int]:
        """Incarnation and number of the last sample, for WatchDemandRequest."""
        heard = self._heard.get(gateway_uid)
        return (heard.incarnation, heard.seq) if heard else ("", 0)

    def put(self, gateway_uid: str, sample: gateway_pb2.DemandSample, now: float) -> None:
        """`gateway_uid` is whom we called; a pod that answers for another uid has a stranger's address and is not counted."""
        heard = self._heard.get(gateway_uid)
        if heard is None or (sample.gateway_uid and sample.gateway_uid != gateway_uid):
            return
        restarted = sample.incarnation != heard.incarnation
        if not restarted and sample.seq <= heard.seq:
            heard.at_s = now
            return
        # Its first words ever, or the first of a process whose predecessor we followed: all that it counted is new.
        first_of_life = restarted and (sample.seq <= 1 or bool(heard.incarnation))
        if restarted:
            heard.clock_offset_s = float("inf")
        heard.incarnation, heard.seq, heard.at_s = sample.incarnation, sample.seq, now
        heard.clock_offset_s = min(heard.clock_offset_s, now - sample.time_s)
        present: set[Key] = set()
        for said in sample.fleets[:MAX_FLEETS]:
            key = Key(said.namespace, said.fleet)
            present.add(key)
            # A fleet that appears in a gateway that we already follow began just now, with all that it has.
            from_start = first_of_life or (not restarted and key not in heard.fleets)
            self._put_fleet(gateway_uid, sample, said, key, from_start=from_start)
        for key in heard.fleets - present:
            # Not listed any more: nothing waits. What it counted stays.
            if fleet := self._fleets.get(key):
                fleet.queues.pop(gateway_uid, None)
        heard.fleets = present

    def silent(self, now: float) -> int:
        return sum(h.at_s is None or now - h.at_s > DEMAND_STALE_S for h in self._heard.values())

    def known(self) -> bool:
        """We were told which gateways there are, and there are none or at least one has spoken."""
        return self._listed and (not self._heard or any(h.at_s is not None for h in self._heard.values()))

    def totals(self, key: Key) -> DemandTotals:
        fleet = self._fleets.get(key)
        return DemandTotals(*fleet.demand.totals()) if fleet else DemandTotals()

    def served(self, key: Key) -> Counts:
        """Requests, prompt, cached and output tokens of requests that ended, and failed ones."""
        fleet = self._fleets.get(key)
        return fleet.served.totals() if fleet else (0.0,) * SERVED_WIDTH

    def queue(self, key: Key) -> Queue:
        fleet = self._fleets.get(key)
        queues = list(fleet.queues.values()) if fleet else []
        return Queue(
            requests=sum(q.requests for q in queues),
            prompt_tokens=sum(q.prompt_tokens for q in queues),
            oldest_s=max((q.oldest_s for q in queues), default=0.0),
        )

    def latencies(self, key: Key) -> tuple[Histogram | None, Histogram | None]:
        """TTFT and TPOT."""
        fleet = self._fleets.get(key)
        if fleet is None:
            return None, None
        ttft = Histogram(fleet.ttft_bounds_s, fleet.ttft.totals()) if fleet.ttft else None
        tpot = Histogram(fleet.tpot_bounds_s, fleet.tpot.totals()) if fleet.tpot else None
        return ttft, tpot

    def history(self, key: Key, now: float) -> list[DemandPoint]:
        """Totals of the last hour every 5 s (60 s beyond ten minutes), relative to its beginning, up to the last that all had said."""
        fleet = self._fleets.get(key)
        if fleet is None:
            return []
        # Per incarnation: our times, what was new since its first report.
        lines: list[tuple[list[float], list[Counts]]] = []
        for uid, all_series in fleet.series.items():
            heard = self._heard.get(uid)
            for series in all_series:
                if heard is None or series.incarnation != heard.incarnation:
                    continue
                lines.append(([t + heard.clock_offset_s for t in series.times_s], series.counts))
        if not lines:
            return []
        # One that has just started is no reason to have no history; before its first report it had counted nothing.
        begin, end = min(times[0] for times, _ in lines), min(now, *(times[-1] for times, _ in lines))
        points = []
        at = end
        while at >= max(begin, now - HISTORY_S):
            total = (0.0,) * (DEMAND_WIDTH + 1)
            for times, counts in lines:
                i = bisect_right(times, at) - 1
                if i >= 0:
                    first, then = counts[0], counts[i]
                    new = (*(b - a for a, b in zip(first[:-1], then[:-1], strict=True)), then[-1])
                    total = tuple(a + b for a, b in zip(total, new, strict=True))
            points.append(DemandPoint(at, DemandTotals(*total[:DEMAND_WIDTH]), queue_requests=int(total[-1])))
            at -= HISTORY_STEP_S if at > now - HISTORY_FINE_S else HISTORY_COARSE_STEP_S
        return points[::-1]

    def forget(self, key: Key) -> None:
        """The fleet is gone."""
        self._fleets.pop(key, None)
        for heard in self._heard.values():
            heard.fleets.discard(key)

    def _put_fleet(
        self,
        uid: str,
        sample: gateway_pb2.DemandSample,
        said: gateway_pb2.FleetDemand,
        key: Key,
        *,
        from_start: bool,
    ) -> None:
        fleet = self._fleets.setdefault(key, _Fleet())
        # A fleet that was made again under its name counts from zero in a gateway that still runs.
        incarnation = f"{sample.incarnation}/{said.fleet_uid}"
        demand: Counts = (
            said.arrivals,
            said.prompt_tokens,
            said.predicted_cached_tokens,
            said.predicted_output_tokens,
            said.shed,
            said.retries,
        )
        served: Counts = (
            said.served_requests,
            said.served_prompt_tokens,
            said.served_cached_tokens,
            said.served_output_tokens,
            said.failed,
        )
        fleet.demand.put(uid, incarnation, demand, from_start=from_start)
        fleet.served.put(uid, incarnation, served, from_start=from_start)
        fleet.queues[uid] = Queue(said.queue_requests, said.queue_prompt_tokens, said.queue_oldest_s)
        _put_latencies(fleet, uid, incarnation, sample, said, from_start=from_start)
        _put_series(fleet, uid, sample, (*demand, said.queue_requests))


def _put_latencies(
    fleet: _Fleet,
    uid: str,
    incarnation: str,
    sample: gateway_pb2.DemandSample,
    said: gateway_pb2.FleetDemand,
    *,
    from_start: bool,
) -> None:
    ttft_bounds_s, tpot_bounds_s = tuple(sample.ttft_bounds_s), tuple(sample.tpot_bounds_s)
    if len(said.ttft_counts) == len(ttft_bounds_s) + 1 <= MAX_LATENCY_BUCKETS:
        if fleet.ttft is None or fleet.ttft_bounds_s != ttft_bounds_s:
            # Gateways of two releases may differ for a minute; figures start again with the newest bounds.
            fleet.ttft, fleet.ttft_bounds_s = Ledger(len(said.ttft_counts)), ttft_bounds_s
        fleet.ttft.put(uid, incarnation, tuple(map(float, said.ttft_counts)), from_start=from_start)
    if len(said.tpot_counts) == len(tpot_bounds_s) + 1 <= MAX_LATENCY_BUCKETS:
        if fleet.tpot is None or fleet.tpot_bounds_s != tpot_bounds_s:
            fleet.tpot, fleet.tpot_bounds_s = Ledger(len(said.tpot_counts)), tpot_bounds_s
        fleet.tpot.put(uid, incarnation, tuple(map(float, said.tpot_counts)), from_start=from_start)


def _put_series(fleet: _Fleet, uid: str, sample: gateway_pb2.DemandSample, counts: Counts) -> None:
    all_series = fleet.series.setdefault(uid, [])
    if not all_series or all_series[-1].incarnation != sample.incarnation:
        # History is for a restart of the operator, when a gateway has one incarnation to replay.
        all_series[:] = [_Series(sample.incarnation)]
    series = all_series[-1]
    series.times_s.append(sample.time_s)
    series.counts.append(counts)
    _thin(series, sample.time_s)


def _thin(series: _Series, newest_s: float) -> None:
    """One point a minute beyond ten minutes, none beyond the hour. Only the front of the list changes."""
    times, counts = series.times_s, series.counts
    old = bisect_right(times, newest_s - HISTORY_S)
    if old:
        del times[:old], counts[:old]
    edge = bisect_right(times, newest_s - HISTORY_FINE_S)
    if edge >= 3 and times[edge - 1] - times[edge - 3] < HISTORY_COARSE_STEP_S:
        del times[edge - 2], counts[edge - 2]
