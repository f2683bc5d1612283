"""What became of requests, as sums: what the operator compares a new revision's replica by. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moefleet.replica.v1 import replica_pb2 as pb

# Ends that this replica is to blame for, as StreamFault.kind has them; all others are the client's, or what was agreed.
FAILURES: Final = frozenset({"step", "dead", "cut"})


@dataclass(slots=True)
class OutcomeSums:
    """Since the process started. Seconds; `tpot` is each request's mean after its first token."""

    ended: int = 0
    failed: int = 0
    first_tokens: int = 0
    ttft_s: float = 0.0
    ttft_s_squared: float = 0.0
    paced: int = 0
    tpot_s: float = 0.0
    tpot_s_squared: float = 0.0

    def add(self, outcome: str, first_s: float | None, spread_s: float, tokens: int) -> None:
        """first_s: None without a token; spread_s: from the first token to the last of `tokens`."""
        self.ended += 1
        self.failed += outcome in FAILURES
        if first_s is not None:
            self.first_tokens += 1
            self.ttft_s += first_s
            self.ttft_s_squared += first_s * first_s
        if tokens > 1:
            each_s = spread_s / (tokens - 1)
            self.paced += 1
            self.tpot_s += each_s
            self.tpot_s_squared += each_s * each_s

    def message(self) -> pb.Outcomes:
        return pb.Outcomes(**{name: getattr(self, name) for name in self.__slots__})
