"""What only a person can change, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    # A reason of api/conditions.py.
    reason: str
    # What was wanted, what was found, and what to do.
    message: str
