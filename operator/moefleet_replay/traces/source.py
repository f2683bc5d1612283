"""What every trace gives, and what it says when it cannot."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Protocol

from moefleet_replay.arrivals import Arrivals, ArrivalSource

DAY_S = 86_400


class TraceError(ValueError):
    """The trace cannot be used. The text says what was wanted, what was found, and in which row, column or field."""


class ArrivalShape(StrEnum):
    """How windows become a rate per second."""

    # Straight lines between the centres of the windows.
    LINEAR = "linear"
    # The same rate for a whole window.
    STEP = "step"


class TraceSource(ArrivalSource, Protocol):
    """All sources of this package answer any interval in any order; a run over them in order is the fast way."""

    @property
    def describe(self) -> str:
        """What it is and what was done to it, as one sentence for the report."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had to be assumed about the data, a sentence each."""
        ...


def fingerprint(arrivals: Arrivals) -> str:
    """sha256 over the bytes of the four arrays: two runs with the same one met the same requests."""
    digest = hashlib.sha256()
    for part in (arrivals.at_s, arrivals.input_tokens, arrivals.output_tokens, arrivals.cached_tokens):
        digest.update(part.tobytes())
    return digest.hexdigest()
