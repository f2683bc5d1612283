"""How one request ended, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Client = Literal["ours", "plain"]


class End(StrEnum):
    OK = "ok"
    # An error, and no token had come.
    FAILED = "failed"
    # Tokens came, the end did not.
    CUT = "cut"


@dataclass(slots=True)
class Ended:
    """Times are of the event loop's clock. `pods`: uids of the replicas that answered, in order, as far as their headers came."""

    request_id: str
    client: Client
    began_s: float
    # The gateway's address that a plain client was bound to; empty: the Service.
    through: str = ""
    # Of the client that it came from, when that goes through the Service.
    connection: str = ""
    prompt: int = 0
    ended_s: float = 0.0
    end: End = End.FAILED
    code: str = "OK"
    # google.rpc.ErrorInfo's, empty where none came.
    reason: str = ""
    detail: str = ""
    # What the status says about another try; None: nothing.
    safe_to_retry: bool | None = None
    tokens: list[int] = field(default_factory=list)
    right: bool = True
    # None: no trailer came.
    trailer_tokens: int | None = None
    resumed: int = 0
    # A peer ended it, and the replica relayed that.
    handed_over: bool = False
    pods: list[str] = field(default_factory=list)
    ttft_s: float | None = None
    # Between two messages, from the first on.
    longest_pause_s: float = 0.0

    @property
    def broke(self) -> bool:
        """Whether its client noticed that something happened."""
        return self.end is not End.OK or self.resumed > 0
