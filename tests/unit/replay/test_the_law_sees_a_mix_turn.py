"""What the law believes of the work that arrives, against what the closed form says of the very requests, while chat turns into reasoning."""

import numpy as np
import pytest
from moefleet_operator.scaling import decide
from moefleet_perf import load_calibration
from moefleet_replay.fleet import run
from moefleet_replay.fleet_setup import FleetSetup
from moefleet_replay.ours import EPOCH_S, Ours
from moefleet_replay.policy import Wanted
from moefleet_replay.traces.synthetic import open_synthetic


class Watched(Ours):
    """Ours, and the forecasts that it rests on."""

    def __init__(self):
        super().__init__(0.0)
        self.forecasts = []

    def decide(self, observation):
        decision = decide(self._state, self._sample(observation), EPOCH_S + observation.now_s)
        self._state = decision.state
        self.forecasts.append((observation.now_s, decision.terms.forecast))
        return Wanted(decision.replicas)


def watched(seed, calibration="deepseek-v2-8xh800", **shape):
    policy, setup = Watched(), FleetSetup(load_calibration(calibration), initial_replicas=6, seed=seed)
    result = run(open_synthetic("mix-shift", shape, seed=seed), policy, setup)
    return np.array(policy.forecasts), result.timeline


@pytest.mark.parametrize("calibration", ["deepseek-v2-8xh800", "deepseek-v2-8xh800-aic"])
@pytest.mark.parametrize("share", [0, 1])
def test_work_is_counted_as_it_is_whatever_the_answers_are_like(share, calibration):
    # By mean lengths alone a mix of reasoning counted for 0.78 of what it is.
    shape = {"duration_s": 7200, "rate": 120, "noise": 0, "idc": 2, "at_s": 0, "over_s": 1, "share": share}
    forecasts, timeline = watched(1, calibration, **shape)
    believed = forecasts[(forecasts[:, 0] >= 2700) & (forecasts[:, 0] < 7200), 1].mean()
    assert believed == pytest.approx(np.mean(timeline.need[45:120]), rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_fleet_holds_while_chat_turns_into_reasoning_in_five_minutes(seed):
    # 86 to 97 % of these, when lengths were those of answers that had ended and contexts were not measured.
    _, timeline = watched(seed, duration_s=7200, rate=200, at_s=2700, over_s=300, share=1)
    assert sum(timeline.within[45:]) >= 0.99 * sum(timeline.requests[45:])
