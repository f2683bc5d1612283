"""Chiron's global autoscaler for interactive requests: enough instances that a set share of them is busy.

Published: arXiv 2501.08090 (paper; no code of its authors is public) and its re-implementation in shashwatj07/SageServe at 0b95ca2,
arbiter.py:625-720 (ChironArbiter: above 0.6 up, else down, spin-up not waited for).

    IBP = instances that run interactive requests / all instances;  one more while IBP > 0.6, one less otherwise

At every request, so the count settles at ceil(busy / 0.6); decided here every 10 s in one step. All requests are interactive, so
the batch arm (backpressure from queue waiting time against deadlines) has nothing to do.
Deviations: Chiron's router packs interactive requests onto few instances up to the batch that its local autoscaler found; this
gateway spreads them, so every replica is busy at any load. Busy is therefore counted packed: requests that run or wait, over the
batch of the local autoscaler, which is the largest inside the TPOT limit (closed form for the mean request of the last 5 minutes;
upstream searches it by local backpressure). The paper's text was not at hand: 0.6 is the re-implementation's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moefleet_perf import capacity

from moefleet_replay.observation import Observation
from moefleet_replay.policies.signals import concurrency, mean_request
from moefleet_replay.policy import Knob, PolicySpec, Wanted

_MIX_WINDOW_S = 300.0


def instances_for(busy: float, threshold: float) -> int:
    """The fewest instances of which at most `threshold` are busy."""
    return max(1, math.ceil(busy / threshold - 1e-9))


class Chiron:
    interval_s = 10.0

    def __init__(self, knobs: Mapping[str, float]) -> None:
        self._threshold = knobs["threshold"]

    def decide(self, observation: Observation) -> Wanted:
        o = observation
        mix = mean_request(o, _MIX_WINDOW_S)
        if o.metrics_lost or mix is None:
            return Wanted(o.target, "no traffic")
        batch = capacity(o.calibration, mix, o.objective.tpot_s).sequences
        if batch <= 0:
            return Wanted(o.target, "no batch is inside the TPOT limit")
        busy = math.ceil(concurrency(o, 1.0) / batch - 1e-9)
        return Wanted(instances_for(busy, self._threshold), f"{busy} busy at a batch of {batch:.0f}")


SPECS = (
    PolicySpec(
        name="chiron",
        summary="Chiron: a set share of instances is busy with interactive requests.",
        source="arXiv 2501.08090; shashwatj07/SageServe 0b95ca2 arbiter.py:625-720 (re-implementation)",
        knobs=(Knob("threshold", 0.6, 0.05, 1, "share of instances that is busy (IBP)", tuned=True),),
        build=Chiron,
    ),
)
