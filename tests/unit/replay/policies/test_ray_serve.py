"""Ray Serve. Numbers are those of upstream's test_autoscaling_policy.py (bounds there, exact values in its comments)."""

from collections.abc import Callable

import pytest
from moefleet_replay import policies
from moefleet_replay.observation import Observation, Signal
from moefleet_replay.policies.ray_serve import RayServe, desired_replicas

Observe = Callable[..., Observation]


@pytest.mark.parametrize(
    ("case", "ongoing", "running", "target", "up", "down", "expected"),
    [
        ("test_scale_up 0.5", 10, 10, 0.5, 1, 1, 20),
        ("test_scale_up 1.5", 30, 10, 1.5, 1, 1, 20),
        ("test_scale_down 1.0", 5, 10, 1.0, 1, 1, 5),
        ("test_scaling_factor up: 10 + 0.5 * (40 - 10)", 80, 10, 2, 0.5, 0.5, 25),
        ("test_scaling_factor down: 10 + 0.5 * (1.25 - 10)", 2.5, 10, 2, 0.5, 0.5, 6),
        ("test_upscaling_factor", 80, 10, 2, 0.5, 1, 25),
        ("test_downscaling_factor", 80, 10, 2, 1, 0.5, 40),
        ("fractional 2, 0.3, 0.5", 0.6, 2, 1, 1, 0.5, 1),
        ("fractional 5, 0.4, 0.2", 2, 5, 1, 1, 0.2, 4),
        ("fractional 10, 0.4, 0.1", 4, 10, 1, 1, 0.1, 9),
        ("from 0 with factor 10", 1, 0, 2, 10, 1, 10),
        ("from 0 with factor 0.5", 1, 0, 2, 0.5, 1, 1),
    ],
)
def test_desired(  # noqa: PLR0917
    case: str, ongoing: float, running: int, target: float, up: float, down: float, expected: int
) -> None:
    assert desired_replicas(ongoing, running, target, up, down) == expected, case


def test_wishes_must_point_one_way_for_the_whole_delay() -> None:
    # test_upscale_downscale_delay: 30 s up, 600 s down, a wish the other way starts again.
    serve = RayServe(1)
    assert [serve.delayed(t, 2, 1) for t in (0.0, 10.0, 20.0, 30.0)] == [1, 1, 1, 2]
    assert [serve.delayed(t, 1, 2) for t in (40.0, 630.0, 640.0)] == [2, 2, 1]
    assert serve.delayed(700.0, 3, 1) == 1
    assert serve.delayed(720.0, 1, 1) == 1
    assert serve.delayed(730.0, 3, 1) == 1
    assert serve.delayed(760.0, 3, 1) == 3


def test_queues_count_and_loading_replicas_do_not(observe: Observe) -> None:
    spec, knobs = policies.parse("ray-serve:target=100,upscale_delay_s=0")
    busy = {Signal.RUNNING: 300.0, Signal.GATEWAY_QUEUED: 200.0}
    assert spec.build(knobs).decide(observe(busy, ready=2, pending=(5.0,))).replicas == 5
    assert spec.build(knobs).decide(observe(busy, ready=2, metrics_lost=True)).replicas == 2
