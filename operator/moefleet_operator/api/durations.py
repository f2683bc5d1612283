"""Durations as Go and Kubernetes write them ("1h30m", "2s", "100ms"), and back."""

import re
from decimal import Decimal
from typing import Final

# What the CRD accepts: no sign, no spaces, no micro- or nanoseconds, and the longest form fits DURATION_TEXT_MAX.
DURATION_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
# "168h59m59.999s" has 14 characters; more is a typing error.
DURATION_TEXT_MAX: Final = 24

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_UNIT_S: Final = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def parse_duration_s(text: str) -> float:
    """Seconds of a duration. ValueError with the text when it is none."""
    if re.fullmatch(DURATION_PATTERN, text) is None:
        raise ValueError(f"wanted a duration such as 15m, 2s or 100ms, found {text!r}")
    # Decimal: "0.1s" and "100ms" have to be the same number.
    return float(sum((Decimal(number) * _UNIT_S[unit] for number, unit in _PART.findall(text)), Decimal(0)))


def format_duration(seconds: float) -> str:
    """The shortest usual form: 2.5 -> "2.5s", 0.08 -> "80ms", 5400 -> "1h30m". Rounded to milliseconds."""
    if seconds < 0:
        raise ValueError(f"wanted a duration of at least 0 s, found {seconds} s")
    left_ms = round(seconds * 1000)
    if left_ms < 1000:
        return f"{left_ms}ms" if left_ms else "0s"
    hours, left_ms = divmod(left_ms, 3_600_000)
    minutes, left_ms = divmod(left_ms, 60_000)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if left_ms:
        text += f"{left_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return text
