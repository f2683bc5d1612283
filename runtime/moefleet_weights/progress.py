"""How far a fetch is, in numbers and in words: "37 % of 236 GB, 1.1 GB/s, 2 min left". Pure: `now_s` comes in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

# The speed shown is that of so many last seconds: long enough to be calm, short enough to show a stall.
WINDOW_S: Final = 10.0

Stage = Literal["asking", "waiting", "fetching", "checking", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    stage: Stage
    done_bytes: int = 0
    # 0: not known yet.
    total_bytes: int = 0
    bytes_per_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        """None: nobody can say."""
        left = self.total_bytes - self.done_bytes
        return left / self.bytes_per_s if self.bytes_per_s > 0 and self.total_bytes else None

    def __str__(self) -> str:
        if not self.total_bytes:
            return {"waiting": "another pod fetches", "asking": "asks what there is"}.get(
                self.stage, self.stage
            )
        text = f"{100 * self.done_bytes // self.total_bytes} % of {size(self.total_bytes)}"
        match self.stage:
            case "checking":
                return f"{text}, checksums"
            case "done":
                return text
            case _:
                pass
        text += f", {size(self.bytes_per_s)}/s"
        if self.left_s is not None:
            text += f", {duration(self.left_s)} left"
        return f"another pod fetches: {text}" if self.stage == "waiting" else text


def size(count: float) -> str:
    """Decimal units, as disks and networks are sold: 999 B, 1.1 GB, 236 GB."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 59.5 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


class Meter:
    """Speed of the last WINDOW_S."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def bytes_per_s(self, now_s: float, received_bytes: int) -> float:
        """`received_bytes`: over the network so far; it never falls."""
        points = self._points
        points.append((now_s, received_bytes))
        while len(points) > 2 and points[1][0] <= now_s - WINDOW_S:
            points.popleft()
        since_s, before = points[0]
        return (received_bytes - before) / (now_s - since_s) if now_s > since_s else 0.0
