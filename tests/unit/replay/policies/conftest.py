"""A fleet on paper: what a policy sees, written down by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from moefleet_perf import Calibration, StepTotals, load_calibration
from moefleet_replay.observation import Foresight, Objective, Observation, ReplicaView, Signal


@dataclass
class PaperSeries:
    """Seconds of each signal: a list, oldest first, or one number for `length_s` equal seconds."""

    by_signal: Mapping[Signal, float | list[float]] = field(default_factory=dict)
    length_s: int = 7200

    def values(self, signal: Signal, window_s: float) -> list[float]:
        given = self.by_signal.get(signal, 0.0)
        whole = list(given) if isinstance(given, list) else [float(given)] * self.length_s
        return whole[-max(1, int(window_s)) :]

    def mean(self, signal: Signal, window_s: float) -> float:
        values = self.values(signal, window_s)
        return sum(values) / len(values) if values else 0.0

    def total(self, signal: Signal, window_s: float) -> float:
        return float(sum(self.values(signal, window_s)))

    def highest(self, signal: Signal, window_s: float) -> float:
        return float(max(self.values(signal, window_s), default=0.0))

    def last(self, signal: Signal) -> float:
        return sum(self.values(signal, 1))


Observe = Callable[..., Observation]


@pytest.fixture
def observe() -> Observe:
    def observe(
        signals: Mapping[Signal, float | list[float]] | None = None,
        *,
        ready: int = 1,
        pending: tuple[float, ...] = (),
        target: int | None = None,
        now_s: float = 7200.0,
        replicas: tuple[ReplicaView, ...] = (),
        calibration: Calibration | None = None,
        objective: Objective | None = None,
        foresight: Foresight | None = None,
        metrics_lost: bool = False,
        cold_starts_s: tuple[float, ...] = (),
        max_replicas: int = 200,
        oldest_wait_s: float = 0.0,
        length_s: int = 7200,
    ) -> Observation:
        return Observation(
            now_s=now_s,
            objective=objective or Objective(),
            calibration=calibration or load_calibration("deepseek-v2-8xh800"),
            min_replicas=1,
            max_replicas=max_replicas,
            target=ready + len(pending) if target is None else target,
            ready=ready,
            pending_ages_s=pending,
            draining=0,
            cold_starts_s=cold_starts_s,
            series=PaperSeries(signals or {}, length_s),
            replicas=replicas,
            steps=StepTotals(),
            oldest_wait_s=oldest_wait_s,
            foresight=foresight,
            metrics_lost=metrics_lost,
        )

    return observe
