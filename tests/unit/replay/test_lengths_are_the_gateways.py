"""The replay's gateway expects the answers that the real one would, also while a mix turns longer."""

import random

import numpy as np
import pytest
from moefleet_gateway.picking.lengths import (
    LEAST_CORRECTION,
    MEMORY,
    MOST_CORRECTION,
    PRIOR_OUTPUT_TOKENS,
    PRIOR_WEIGHT,
    Lengths,
)
from moefleet_replay import kernel
from moefleet_replay import layout as k

PROMPT = 100
KIND = 6 * k.LIMIT_CLASSES
STEP_S = 0.03


def test_the_numbers_are_the_same():
    ours = (k.LEAST_CORRECTION, k.MOST_CORRECTION, k.MEMORY, k.PRIOR_OUTPUT_TOKENS, k.PRIOR_WEIGHT)
    assert ours == (LEAST_CORRECTION, MOST_CORRECTION, MEMORY, PRIOR_OUTPUT_TOKENS, PRIOR_WEIGHT)


def learnt(seconds: int, mean_at, seed: int):
    """Ten requests a second of one class through both; yields (second, the mean of those that ended, the gateway's, the kernel's)."""
    chance, gateway = random.Random(seed), Lengths()
    lengths = np.zeros((k.CLASSES * k.LIMIT_CLASSES, k.LENGTH_COLUMNS))
    lengths[:, k.C_MEAN], lengths[:, k.C_WEIGHT] = k.PRIOR_OUTPUT_TOKENS, k.PRIOR_WEIGHT
    running: list[tuple[float, float, int]] = []
    for tenth in range(seconds * 10):
        now = tenth / 10
        for ends_s, began_s, output in sorted(r for r in running if r[0] <= now):
            gateway.left(PROMPT, None, ends_s)
            gateway.learn(
                text_bytes=None,
                estimated_prompt_tokens=PROMPT,
                max_tokens=None,
                prompt_tokens=PROMPT,
                cached_tokens=0,
                output_tokens=output,
                lasted_s=ends_s - began_s,
            )
            kernel._learn(KIND, output, began_s, ends_s, lengths)
        running = [r for r in running if r[0] > now]
        ended = float(lengths[KIND, k.C_MEAN])
        gateways = gateway.output_tokens(PROMPT, None, now)
        yield now, ended, gateways, kernel._expected(KIND, now, lengths)
        output = max(1, round(chance.expovariate(1 / mean_at(now))))
        gateway.began(PROMPT, None, now)
        kernel._count(KIND, now, lengths)
        lengths[KIND, k.C_RUNNING] += 1.0
        running.append((now + output * STEP_S, now, output))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_expected_is_what_the_gateway_expects(seed):
    for now, _, gateways, ours in learnt(240, lambda now: 80 if now < 120 else 800, seed):
        # One rounds halves to even, the other up.
        assert abs(gateways - ours) <= 1, now


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_get_ten_times_longer_are_expected_before_they_end(seed):
    found = {
        round(now, 1): (ended, ours)
        for now, ended, _, ours in learnt(200, lambda now: 80 if now < 120 else 800, seed)
    }
    assert 60 <= found[119][1] <= 110
    ended, ours = found[140]
    assert ours > 1.5 * ended
    assert 500 <= found[199][1] <= 1100
