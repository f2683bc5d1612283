"""What a replica tells of its requests: only its own failures count against it."""

from __future__ import annotations

import pytest
from moefleet_runtime.serving.outcomes import OutcomeSums


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [("length", 0), ("stop", 0), ("cancelled", 0), ("invalid", 0), ("full", 0), ("late", 0), ("deadline", 0),
     ("step", 1), ("dead", 1), ("cut", 1)],
)  # fmt: skip
def test_whose_fault_it_was(outcome: str, failed: int) -> None:
    sums = OutcomeSums()
    sums.add(outcome, None, 0.0, 0)
    assert (sums.ended, sums.failed, sums.first_tokens, sums.paced) == (1, failed, 0, 0)


def test_times_are_summed_with_their_squares() -> None:
    sums = OutcomeSums()
    sums.add("stop", 0.5, 1.0, 11)
    sums.add("length", 1.5, 0.0, 1)
    told = sums.message()
    assert (told.ended, told.first_tokens, told.paced) == (2, 2, 1)
    assert told.ttft_s == pytest.approx(2.0)
    assert told.ttft_s_squared == pytest.approx(2.5)
    assert (told.tpot_s, told.tpot_s_squared) == (pytest.approx(0.1), pytest.approx(0.01))
