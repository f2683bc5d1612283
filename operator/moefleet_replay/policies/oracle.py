"""The oracle: sees the arrivals of one cold start and one drain ahead, and nothing of chance in the starts.

It is a bar, not a bound: replicas that it asks for may start late or fail, and it does not know the best `rho`; the tuned knob
finds that. Rule at every tick, with need(t) from the arrivals themselves:

    up      the largest need from now to one slow cold start later, over rho: it is asked for just in time, all the time
    down    never below the largest need of the next cold start + drain: taking away what is wanted again sooner
            costs a drain and a start, which is dearer than keeping it
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moefleet_replay.observation import Foresight, Observation
from moefleet_replay.policy import Knob, PolicyError, PolicySpec, Wanted

# Need is read in blocks of this length: shorter ones show single requests, longer ones hide surges.
BLOCK_S = 30.0


class Oracle:
    interval_s = 15.0

    def __init__(self, rho: float, lead_s: float, drain_s: float) -> None:
        self._rho, self._lead_s, self._drain_s = rho, lead_s, drain_s
        self._needs: dict[int, float] = {}

    def decide(self, observation: Observation) -> Wanted:
        foresight = observation.foresight
        if foresight is None:
            raise PolicyError("policy oracle: needs the arrivals of one cold start ahead, found no foresight")
        now = observation.now_s
        ahead = self._highest(foresight, now, now + self._lead_s + self.interval_s)
        kept = max(ahead, self._highest(foresight, now, now + self._lead_s + self._drain_s + self.interval_s))
        up = max(1, math.ceil(ahead / self._rho - 1e-9))
        down = max(1, math.ceil(kept / self._rho - 1e-9))
        wanted = max(up, min(observation.target, down))
        return Wanted(wanted, f"need {ahead:.2f} within a start, {kept:.2f} within a start and a drain")

    def _highest(self, foresight: Foresight, from_s: float, to_s: float) -> float:
        first, last = int(from_s // BLOCK_S), int(to_s // BLOCK_S)
        highest = 0.0
        for block in range(first, last + 1):
            need = self._needs.get(block)
            if need is None:
                start_s, end_s = block * BLOCK_S, min((block + 1) * BLOCK_S, foresight.until_s)
                need = self._needs[block] = foresight.work_at(start_s, end_s) if start_s < end_s else 0.0
            highest = max(highest, need)
        self._needs.pop(first - 1, None)
        return highest


def _oracle(knobs: Mapping[str, float]) -> Oracle:
    return Oracle(knobs["rho"], knobs["lead_s"], knobs["drain_s"])


SPECS = (
    PolicySpec(
        name="oracle",
        summary="Knows the arrivals of one cold start ahead; no real policy can.",
        source="Own definition: policies/oracle.py. Need = arrivals over closed-form capacity at 0.85 of the TPOT limit.",
        knobs=(
            Knob("rho", 0.9, 0.3, 1.5, "share of the capacity that it plans with", tuned=True),
            Knob("lead_s", 420, 0, 7200, "seconds of arrivals that it sees (p95 of the default cold start)"),
            Knob("drain_s", 60, 0, 7200, "seconds more for which it keeps what is wanted again"),
        ),
        build=_oracle,
        foresees=True,
    ),
)
