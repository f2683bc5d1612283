"""What is known of a fleet's revisions: the records that the parts of planning share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .reported import Outcomes

# "": it has not been decided yet.
Verdict = Literal["", "good", "refused"]


@dataclass(frozen=True, slots=True)
class PastRevision:
    """One ControllerRevision of a fleet."""

    name: str
    uid: str
    revision: str
    # The highest is the one that the spec wants, or wanted when it was last looked at.
    number: int
    verdict: Verdict
    # A reason of api/conditions.py and a sentence with the numbers; empty for what was not refused.
    reason: str = ""
    message: str = ""
    # The parts of the spec that pods are made from; empty when they cannot be read.
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mark:
    """A replica's sums when the comparison began, and the process that they are of."""

    incarnation: str
    outcomes: Outcomes


@dataclass(frozen=True, slots=True)
class Watch:
    """Where a comparison began. It may be lost (another leader): then it begins anew."""

    revision: str
    # Unix seconds.
    began_at: float
    marks: Mapping[str, Mark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opinion:
    verdict: Verdict
    # A reason of api/conditions.py where refused.
    reason: str = ""
    message: str = ""
    # Unix seconds at which time alone changes it.
    wake_at: float | None = None
