"""How a count that WVA wants becomes replicas: an HPA on the metric wva_desired_replicas.

Published: deanlorenz/llm-d-workload-variant-autoscaler at 2976e4e, config/samples/hpa/annotations/hpa.yaml: External metric with
averageValue 1, no stabilisation, 10 pods per 15 s up and down. The HPA's own tolerance of 10 % still applies: among 20 replicas a
wish for 21 or 19 changes nothing.
"""

from __future__ import annotations

from typing import Final

from moefleet_replay.observation import Observation
from moefleet_replay.policies.hpa import Behavior, Rules, external_metric_replicas
from moefleet_replay.policy import Wanted

_SAMPLE: Final = Rules(pods=10, percent=0)


class Actuation:
    def __init__(self) -> None:
        self._behavior = Behavior(_SAMPLE, _SAMPLE)

    def follow(self, o: Observation, desired: int, reason: str) -> Wanted:
        proposal = external_metric_replicas(
            desired, target=1.0, status_replicas=o.ready + len(o.pending_ages_s)
        )
        wanted = self._behavior.apply(o.now_s, o.target, proposal, o.min_replicas, o.max_replicas)
        return Wanted(wanted, f"{reason}: {desired}")
