"""Fixed fleets and the oracle against a trace whose need is known second by second."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from moefleet_replay import policies
from moefleet_replay.observation import Observation
from moefleet_replay.policy import PolicyError

Observe = Callable[..., Observation]


@dataclass
class KnownNeed:
    """Need of 4 replicas, with 10 from `rise_s` on for `high_s`."""

    rise_s: float
    high_s: float
    until_s: float = 3600.0

    def work_at(self, from_s: float, to_s: float) -> float:
        high = max(0.0, min(to_s, self.rise_s + self.high_s) - max(from_s, self.rise_s))
        return 4.0 + 6.0 * high / (to_s - from_s)


def test_static_sizes_come_from_the_peak_and_the_mean_of_the_whole_trace(observe: Observe) -> None:
    o = observe(foresight=KnownNeed(1200, 600))
    assert policies.parse("static:replicas=7")[0].build({"replicas": 7}).decide(o).replicas == 7
    for name, replicas in (("static-peak", 10), ("static-mean", math.ceil(1.3 * 5.0))):
        spec, knobs = policies.parse(name)
        assert spec.foresees
        assert spec.build(knobs).decide(o).replicas == replicas


def test_the_oracle_asks_one_slow_start_before_and_keeps_what_is_wanted_again(observe: Observe) -> None:
    spec, knobs = policies.parse("oracle:rho=1")
    oracle = spec.build(knobs)
    need = KnownNeed(1200, 120)

    def at(now_s: float, target: int) -> int:
        return oracle.decide(observe(foresight=need, now_s=now_s, target=target)).replicas

    assert at(700, 4) == 4  # 500 s before: not yet
    assert at(765, 4) == 10  # a p95 start before
    assert at(720, 10) == 10  # has them, would want them again within start and drain
    assert at(1410, 10) == 4  # over, nothing comes


def test_rho_is_the_share_of_capacity_that_is_planned_with(observe: Observe) -> None:
    need = KnownNeed(1200, 600)
    for rho, replicas in ((1.0, 4), (0.8, 5), (0.5, 8)):
        spec, knobs = policies.parse(f"oracle:rho={rho}")
        assert spec.build(knobs).decide(observe(foresight=need, now_s=0.0)).replicas == replicas


@pytest.mark.parametrize("name", ["oracle", "static-peak", "static-mean"])
def test_who_foresees_says_so_when_there_is_nothing_to_see(name: str, observe: Observe) -> None:
    spec, knobs = policies.parse(name)
    with pytest.raises(PolicyError, match=f"policy {name}: needs"):
        spec.build(knobs).decide(observe())
