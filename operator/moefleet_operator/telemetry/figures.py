"""Numbers for people: tokens/s, latency quantiles, attainment. Only `attained` is decided by."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from moefleet_operator.scaling.types import Attained
from moefleet_operator.telemetry.counters import Counts
from moefleet_operator.telemetry.demand import Histogram

# Tokens/s over a minute: shorter jumps with every long prompt.
THROUGHPUT_WINDOW_S = 60.0
# Latencies over ten minutes: p99 needs some hundred requests.
LATENCY_WINDOW_S = 600.0
# A p99 of fewer requests is their maximum by another name.
MIN_REQUESTS = 20
# Snapshots at most, whatever the caller's tick.
MAX_SNAPSHOTS = 256


@dataclass(frozen=True, slots=True)
class Figures:
    input_tok_s: float = 0.0
    cached_tok_s: float = 0.0
    output_tok_s: float = 0.0
    # None: too few requests ended in the window.
    ttft_p99_s: float | None = None
    tpot_p99_s: float | None = None
    # Share of requests inside both limits, at least: the two are only known apart, so requests outside one are taken to be
    # inside the other.
    attainment_percent: float | None = None
    requests: int = 0

    def as_status(self) -> dict[str, dict[str, int | str]]:
        """`status.throughput` and `status.objective` as far as they are measured."""
        objective: dict[str, int | str] = {}
        if self.attainment_percent is not None:
            objective["attainmentPercent"] = f"{self.attainment_percent:.2f}"
        if self.ttft_p99_s is not None:
            objective["ttftP99"] = f"{round(self.ttft_p99_s * 1000)}ms"
        if self.tpot_p99_s is not None:
            objective["tpotP99"] = f"{round(self.tpot_p99_s * 1000)}ms"
        throughput: dict[str, int | str] = {
            "inputTokensPerSecond": round(self.input_tok_s),
            "outputTokensPerSecond": round(self.output_tok_s),
        }
        return {"throughput": throughput, "objective": objective} if objective else {"throughput": throughput}


@dataclass(frozen=True, slots=True)
class Snapshot:
    at_s: float
    # Prompt, cached and output tokens, cumulative.
    tokens: Counts
    ttft: Histogram | None
    tpot: Histogram | None


class FigureBook:
    """Snapshots of one fleet's totals, and what happened between them."""

    def __init__(self) -> None:
        self._snapshots: deque[Snapshot] = deque(maxlen=MAX_SNAPSHOTS)

    def record(self, snapshot: Snapshot) -> None:
        self._snapshots.append(snapshot)
        while self._snapshots[0].at_s < snapshot.at_s - LATENCY_WINDOW_S:
            self._snapshots.popleft()

    def figures(self, ttft_limit_s: float, tpot_limit_s: float) -> Figures:
        if len(self._snapshots) < 2:
            return Figures()
        newest, oldest = self._snapshots[-1], self._snapshots[0]
        minute = next((s for s in self._snapshots if s.at_s >= newest.at_s - THROUGHPUT_WINDOW_S), oldest)
        span_s = newest.at_s - minute.at_s
        input_s, cached_s, output_s = (
            max(b - a, 0.0) / span_s if span_s > 0 else 0.0
            for a, b in zip(minute.tokens, newest.tokens, strict=True)
        )
        ttft, tpot = _between(oldest.ttft, newest.ttft), _between(oldest.tpot, newest.tpot)
        requests = int(sum(ttft.counts)) if ttft else 0
        inside = [
            share_within(h, limit)
            for h, limit in ((ttft, ttft_limit_s), (tpot, tpot_limit_s))
            if h is not None
        ]
        attained = (
            max(0.0, 1.0 - sum(1.0 - share for share in inside))
            if inside and requests >= MIN_REQUESTS
            else None
        )
        return Figures(
            input_tok_s=input_s,
            cached_tok_s=cached_s,
            output_tok_s=output_s,
            ttft_p99_s=quantile_s(ttft, 0.99) if ttft else None,
            tpot_p99_s=quantile_s(tpot, 0.99) if tpot else None,
            attainment_percent=None if attained is None else attained * 100,
            requests=requests,
        )


def quantile_s(histogram: Histogram, share: float) -> float | None:
    """Linear inside its bucket; beyond the last bound, the last bound: at least so much. None below MIN_REQUESTS."""
    total = sum(histogram.counts)
    if total < MIN_REQUESTS or not histogram.bounds_s:
        return None
    rank, seen, lower_s = share * total, 0.0, 0.0
    for upper_s, count in zip(histogram.bounds_s, histogram.counts, strict=False):
        if count and seen + count >= rank:
            return lower_s + (upper_s - lower_s) * (rank - seen) / count
        seen, lower_s = seen + count, upper_s
    return histogram.bounds_s[-1]


def share_within(histogram: Histogram, limit_s: float) -> float:
    """Share of requests at most `limit_s`, linear inside the bucket that holds the limit; 1 without requests."""
    total = sum(histogram.counts)
    if total <= 0:
        return 1.0
    inside, lower_s = 0.0, 0.0
    for upper_s, count in zip(histogram.bounds_s, histogram.counts, strict=False):
        if upper_s <= limit_s:
            inside += count
        elif lower_s < limit_s:
            inside += count * (limit_s - lower_s) / (upper_s - lower_s)
        lower_s = upper_s
    return inside / total


def attained(
    ttft: Histogram | None, tpot: Histogram | None, *, ttft_limit_s: float, tpot_limit_s: float
) -> Attained | None:
    """Requests that began to be answered, and at least how many of them inside both limits, since we listen; None: not measured.

    The limits are only known apart: a request outside one is taken to be inside the other. New buckets begin anew; who keeps
    differences sees a total that fell."""
    if ttft is None:
        return None
    requests = sum(ttft.counts)
    late = requests * (1.0 - share_within(ttft, ttft_limit_s))
    slow = sum(tpot.counts) * (1.0 - share_within(tpot, tpot_limit_s)) if tpot else 0.0
    return Attained(requests, max(requests - late - slow, 0.0))


def _between(before: Histogram | None, after: Histogram | None) -> Histogram | None:
    if after is None:
        return None
    if before is None or before.bounds_s != after.bounds_s:
        return after
    return Histogram(
        after.bounds_s, tuple(max(b - a, 0.0) for a, b in zip(before.counts, after.counts, strict=True))
    )
