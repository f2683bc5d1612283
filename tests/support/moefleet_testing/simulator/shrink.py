"""The shortest schedule found that breaks the same rule: acts are left out, and the story is told again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .schedule import Schedule

# Longest search: what is left then is printed.
SHRINK_S = 45.0

# Tells a story; the rule that it breaks, or None.
Tell = Callable[[Schedule], str | None]


def shrink(
    schedule: Schedule, done: Sequence[int], rule: str, tell: Tell, limit_s: float = SHRINK_S
) -> tuple[int, ...]:
    """Numbers of acts that are enough; `done`: those that had happened when the rule broke.

    Delta debugging: halves, then quarters, ... are left out while the rule still breaks; at last, single acts."""
    ends = time.monotonic() + limit_s

    def breaks(numbers: Sequence[int]) -> bool:
        return time.monotonic() < ends and tell(schedule.only(set(numbers))) == rule

    kept = tuple(done)
    if not breaks(kept):
        # Those that had not happened yet matter after all: they set how long an episode lasts.
        return tuple(a.number for a in schedule.acts)
    parts = 2
    while len(kept) >= 1 and time.monotonic() < ends:
        size = -(-len(kept) // parts)
        for begin in range(0, len(kept), size):
            rest = kept[:begin] + kept[begin + size :]
            if breaks(rest):
                kept, parts = rest, max(2, parts - 1)
                break
        else:
            if size <= 1:
                break
            parts = min(len(kept), parts * 2)
    return kept
