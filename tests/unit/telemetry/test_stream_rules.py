"""Backoff and tokens: bounded, spread, and exactly what the other side expects."""

import hashlib
import hmac

from moefleet_operator.telemetry import gateway_token, replica_token
from moefleet_operator.telemetry.streams import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    BACKOFF_REFUSED_S,
    backoff_s,
    metadata,
)


def test_waits_double_up_to_a_bound_and_are_at_most_a_quarter_shorter():
    for failures in range(1, 2000, 7):
        full_s = min(BACKOFF_FIRST_S * 2 ** min(failures - 1, 60), BACKOFF_MAX_S)
        assert 0.75 * full_s <= backoff_s("uid", failures) <= full_s
    assert 0.75 * BACKOFF_REFUSED_S <= backoff_s("uid", 1, refused=True) <= BACKOFF_REFUSED_S


def test_streams_that_broke_together_come_back_apart():
    waits = sorted(backoff_s(f"pod-{i}", 8) for i in range(1000))
    assert waits[-1] - waits[0] > 0.2 * BACKOFF_MAX_S
    assert backoff_s("pod-1", 8) == backoff_s("pod-1", 8)


def test_tokens_are_those_of_the_seams():
    key = bytes(range(32))
    assert replica_token(key, "u-1") == hmac.new(key, b"replica:u-1", hashlib.sha256).hexdigest()
    assert gateway_token(key) == hmac.new(key, b"gateway", hashlib.sha256).hexdigest()
    assert metadata("t") == (("authorization", "Bearer t"),)
    assert metadata(None) == ()
