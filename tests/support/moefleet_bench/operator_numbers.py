"""Pure: how big the operator's bench is, what a round found, and the rows that rounds become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

from .report import Row, ratio_of_pairs

NAMES = (
    "operator_ready",
    "operator_writes_per_replica",
    "operator_rss",
    "operator_idle_writes_per_min",
    "operator_reconcile_p99",
)


@dataclass(frozen=True, slots=True)
class Size:
    """BENCH_FLEETS fleets of together BENCH_REPLICAS replicas; BENCH_PAIRS rounds of each side."""

    fleets: int = 50
    replicas: int = 20
    pairs: int = 2

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """
        Raises:
            ValueError: when the replicas cannot be shared out evenly, or a number is none.
        """
        fleets, pods = int(environ.get("BENCH_FLEETS", "50")), int(environ.get("BENCH_REPLICAS", "1000"))
        pairs = int(environ.get("BENCH_PAIRS", "2"))
        if min(fleets, pods, pairs) < 1 or pods % fleets:
            raise ValueError(
                f"wanted BENCH_REPLICAS as a multiple of BENCH_FLEETS, found {pods} and {fleets}, {pairs} pairs"
            )
        return cls(fleets, pods // fleets, pairs)

    @property
    def pods(self) -> int:
        return self.fleets * self.replicas


@dataclass(frozen=True, slots=True)
class Round:
    """One side once. The numbers of the operator are None in a round of Deployments, idle writes in all rounds but one."""

    ready_s: float
    # Processor seconds by process, until ready.
    cpu_s: dict[str, float] = field(default_factory=dict)
    writes_per_replica: float | None = None
    rss_mib: float | None = None
    idle_writes_per_min: float | None = None
    reconcile_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class World:
    """Rounds in order; ours and the other of one index were measured one after the other."""

    ours: list[Round]
    # Deployments alike: the same pods with the same gate, a Service and a PDB.
    other: list[Round]
    # Deployments and nothing else.
    bare: list[Round]

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        return cls(*([Round(**r) for r in document[side]] for side in ("ours", "other", "bare")))


def rows(world: World, size: Size) -> list[Row]:
    ours, other = [r.ready_s for r in world.ours], [r.ready_s for r in world.other]
    bare = median(r.ready_s for r in world.bare)
    against = (
        f"{size.fleets} Deployments of the same {size.pods} pods, gate set by the stub registrar, "
        f"with Service and PDB: {median(other):.1f} s (without gate, Service and PDB: {bare:.1f} s)"
    )
    return [
        Row("operator_ready", median(ours), "s", against, ratio_of_pairs(ours, other), "at most 1.0"),
        Row(
            "operator_writes_per_replica",
            _median(world, "writes_per_replica"),
            "API writes",
            "",
            None,
            "at most 4",
        ),
        Row("operator_rss", max(_found(world, "rss_mib")), "MiB", "", None, "at most 250"),
        Row(
            "operator_idle_writes_per_min",
            _median(world, "idle_writes_per_min"),
            "API writes/min",
            "",
            None,
            "0",
        ),
        Row("operator_reconcile_p99", _median(world, "reconcile_p99_s"), "s"),
    ]


def quantile(text: str, histogram: str, q: float) -> float:
    """Of a histogram in Prometheus' text format, linear inside a bucket as Prometheus has it; NaN without observations."""
    pattern = re.compile(rf'^{re.escape(histogram)}_bucket{{le="([^"]+)"}} (\S+)$', re.MULTILINE)
    buckets = sorted((float(bound), float(count)) for bound, count in pattern.findall(text))
    if not buckets or not buckets[-1][1]:
        return float("nan")
    rank = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            # Above the last bound nothing is known but that.
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    raise AssertionError("the last bucket holds everything")


def _found(world: World, name: str) -> list[float]:
    return [value for r in world.ours if (value := getattr(r, name)) is not None]


def _median(world: World, name: str) -> float:
    return median(_found(world, name))
