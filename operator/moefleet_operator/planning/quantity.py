"""Kubernetes quantities as integers, so that sums and comparisons are exact."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

# Amounts by resource name, in thousandths.
Vector = Mapping[str, int]

_SUFFIX: Mapping[str, Fraction] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}


def millis(quantity: str | float) -> int:
    """Thousandths, rounded up as the scheduler does: "100m" -> 100, "1" -> 1000, "1Ki" -> 1024000."""
    return _millis(str(quantity).strip())


# A cluster has few different quantities, and all of a pod's are read again at each of its changes.
@lru_cache(maxsize=4096)
def _millis(text: str) -> int:
    digits = text.rstrip("numkKMGTPEi") if not _exponent(text) else text
    suffix = text[len(digits) :]
    if suffix not in _SUFFIX:
        raise ValueError(f"not a quantity: {text!r}")
    value = Fraction(digits) * _SUFFIX[suffix] * 1000
    return -((-value.numerator) // value.denominator)


def vector(resources: Mapping[str, Any] | None) -> dict[str, int]:
    """A resource list in thousandths; what cannot be read counts as absent (a node may say anything)."""
    out: dict[str, int] = {}
    for name, quantity in (resources or {}).items():
        try:
            out[str(name)] = millis(quantity)
        except (ValueError, ZeroDivisionError):
            continue
    return out


def _exponent(text: str) -> bool:
    # "1e3" and "1E3" are numbers, "1E" is an exa-suffix.
    lower = text.lower()
    return "e" in lower and lower[-1].isdigit()
