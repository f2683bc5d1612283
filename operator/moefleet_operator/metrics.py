"""What the operator says about itself, for people and alerts: names, buckets, one registry for each process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

# From a plan without writes (under a millisecond) to the 60 s after which every fleet comes back anyway.
RECONCILE_BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)

# From the tiny checkpoint on a CPU to weights that come over a slow network.
COLD_START_BUCKETS_S: Final = (
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    240.0,
    480.0,
    900.0,
    1800.0,
    3600.0,
    7200.0,
    14400.0,
)

PREFIX: Final = "moefleet_operator"


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # CPU, resident memory and start time of this process, under their usual names.
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        registry = self.registry
        self.reconcile = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "From an event that made the core act on a fleet to the last answer to what it asked for.",
            buckets=RECONCILE_BUCKETS_S,
            registry=registry,
        )
        self.core = Histogram(
            f"{PREFIX}_core_seconds",
            "Time inside the core for one event: nothing else runs meanwhile.",
            ["event"],
            buckets=RECONCILE_BUCKETS_S[:10],
            registry=registry,
        )
        self.queue = Gauge(
            f"{PREFIX}_queue_depth",
            "What waits: inbox (events for the core), lanes (effects not started), running (effects under way).",
            ["queue"],
            registry=registry,
        )
        self.writes = Counter(
            f"{PREFIX}_writes_total",
            "Requests that change something, by verb, kind and what became of them; the Lease is kind Lease.",
            ["verb", "kind", "outcome"],
            registry=registry,
        )
        self.decisions = Counter(
            f"{PREFIX}_decisions_total",
            "Effects that the core asked for, by effect and reason.",
            ["effect", "reason"],
            registry=registry,
        )
        self.scaling = Counter(
            f"{PREFIX}_scaling_decisions_total",
            "Decisions about a size, by reason.",
            ["reason"],
            registry=registry,
        )
        self.size = Gauge(
            f"{PREFIX}_scaling_replicas",
            "What scaling would have now.",
            ["namespace", "fleet"],
            registry=registry,
        )
        self.term = Gauge(
            f"{PREFIX}_scaling_term",
            "The numbers behind that size, in replicas where the name says no unit.",
            ["namespace", "fleet", "term"],
            registry=registry,
        )
        self.cold_start = Histogram(
            f"{PREFIX}_cold_start_seconds",
            "From creating a pod to Ready, whole and by phase; a start that failed at first counts with all its attempts.",
            ["namespace", "fleet", "phase"],
            buckets=COLD_START_BUCKETS_S,
            registry=registry,
        )
        self._phases: dict[tuple[str, str], set[str]] = {}
        self._fleets: dict[tuple[str, str], set[str]] = {}
        self.leader = Gauge(f"{PREFIX}_leader", "1 while this process holds the Lease.", registry=registry)
        self.lease_renewed = Gauge(
            f"{PREFIX}_lease_renewed_timestamp_seconds",
            "Unix time of the last renewal that succeeded.",
            registry=registry,
        )
        self.clock_ahead = Gauge(
            f"{PREFIX}_clock_ahead_seconds",
            "This machine's clock against the API server's, which is the one that is used.",
            registry=registry,
        )
        self.watch_event = Gauge(
            f"{PREFIX}_watch_last_event_timestamp_seconds",
            "Unix time of the last event that a watch delivered; quiet kinds are old and well.",
            ["kind"],
            registry=registry,
        )
        self.watch_behind = Gauge(
            f"{PREFIX}_watch_behind_seconds",
            "For how long a LIST has known something that the watch has not delivered; 0 is well.",
            ["kind"],
            registry=registry,
        )
        self.listed = Gauge(
            f"{PREFIX}_last_list_timestamp_seconds",
            "Unix time of the last full LIST.",
            ["kind"],
            registry=registry,
        )
        self.objects = Gauge(
            f"{PREFIX}_objects", "Objects in the last full LIST.", ["kind"], registry=registry
        )
        self.list_failures = Counter(
            f"{PREFIX}_list_failures_total",
            "LISTs that failed after all attempts.",
            ["kind"],
            registry=registry,
        )
        self.failing = Gauge(
            f"{PREFIX}_failing_fleets",
            "Fleets whose last plan ended in an internal error.",
            registry=registry,
        )
        self.missing_right = Gauge(
            f"{PREFIX}_missing_right",
            "1 for each right that this release needs and lacks.",
            ["right"],
            registry=registry,
        )

    def relisted(self, kind: str, objects: int, wall: float) -> None:
        self.listed.labels(kind=kind).set(wall)
        self.objects.labels(kind=kind).set(objects)

    def decided(
        self, namespace: str, fleet: str, replicas: int, terms: Mapping[str, float | int | str]
    ) -> None:
        """Every tick, also when nothing changed: the numbers behind a size are read over time."""
        self.size.labels(namespace=namespace, fleet=fleet).set(replicas)
        known = self._fleets.setdefault((namespace, fleet), set())
        for term, value in terms.items():
            if isinstance(value, int | float):
                known.add(term)
                self.term.labels(namespace=namespace, fleet=fleet, term=term).set(value)

    def started(
        self, namespace: str, fleet: str, total_s: float, phases_s: Iterable[tuple[str, float]]
    ) -> None:
        """Once a replica."""
        for phase, seconds in (("total", total_s), *phases_s):
            self._phases.setdefault((namespace, fleet), set()).add(phase)
            self.cold_start.labels(namespace=namespace, fleet=fleet, phase=phase).observe(seconds)

    def forget(self, namespace: str, fleet: str) -> None:
        for phase in self._phases.pop((namespace, fleet), ()):
            self.cold_start.remove(namespace, fleet, phase)
        terms = self._fleets.pop((namespace, fleet), None)
        if terms is None:
            return
        self.size.remove(namespace, fleet)
        for term in terms:
            self.term.remove(namespace, fleet, term)

    def text(self) -> bytes:
        return generate_latest(self.registry)
