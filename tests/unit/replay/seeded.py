"""One small run with everything in it, as JSON on stdout: `python seeded.py POLICY`. Nothing that depends on the machine is in it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import numpy as np
from moefleet_perf import load_calibration, with_limits
from moefleet_replay import fleet, policies
from moefleet_replay.arrivals import Arrivals
from moefleet_replay.cold_start import ColdStart
from moefleet_replay.fleet import Death, FleetSetup

SEED = 7


@dataclass(frozen=True)
class Uniform:
    """A rate that doubles for ten minutes. Whole numbers and uniform draws only: no processor rounds them its own way."""

    name: str = "uniform"
    duration_s: float = 1800.0

    def between(self, start_s: float, end_s: float) -> Arrivals:
        chance = np.random.Generator(np.random.PCG64(SEED))
        count = 90 * int(self.duration_s)
        at_s = np.sort(chance.integers(0, int(self.duration_s) * 1024, count) / 1024)
        inputs, outputs = chance.integers(1, 3000, count), chance.integers(1, 200, count)
        kept = ((at_s >= 600) & (at_s < 1200)) | (np.arange(count) % 2 == 0)
        kept &= (at_s >= start_s) & (at_s < end_s)
        cached = inputs[kept] // 3
        tokens = (inputs[kept], outputs[kept], cached)
        return Arrivals(at_s[kept], *(t.astype(np.int32) for t in tokens))


def seeded(policy: str) -> str:
    spec, knobs = policies.parse(policy)
    setup = FleetSetup(
        calibration=with_limits(load_calibration("deepseek-v2-8xh800"), kv_max_tokens=60_000),
        cold_start=ColdStart(90.0, 180.0, 0.2),
        max_replicas=12,
        seed=SEED,
        preempting=True,
        deaths=(Death(700), Death(1111)),
        lost=((900.0, 960.0),),
        restarts=(1234,),
        policy_name=policy,
    )
    result = fleet.run(
        Uniform(), spec.build(knobs), setup, foresees=spec.foresees, rebuild=lambda: spec.build(knobs)
    )
    told = asdict(result)
    del told["compile_s"], told["summary"]["wall_s"]
    return json.dumps(told, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(seeded(sys.argv[1]), end="")
