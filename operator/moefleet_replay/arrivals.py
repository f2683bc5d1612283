"""What arrives: the seam between traces and the fleet. A source gives the same requests for the same seed, however it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in the order in which they arrive; four arrays of one length."""

    # Seconds since the start of the run, ascending.
    at_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    # Prompt tokens that a warm replica has in its prefix cache; 0 where the trace does not record prefixes.
    cached_tokens: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.at_s)


class ArrivalSource(Protocol):
    """A trace made into requests. `name` and `describe` go into the report: what it is, and what was done to it."""

    @property
    def name(self) -> str: ...

    @property
    def duration_s(self) -> float: ...

    def between(self, start_s: float, end_s: float) -> Arrivals:
        """Requests with start_s <= at_s < end_s. Called with ascending, touching intervals; any cut gives the same requests."""
        ...
