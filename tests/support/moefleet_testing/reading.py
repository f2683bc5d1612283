"""Does a sentence for people count as people do? `faults(text)` says where not; empty for what reads well."""

from __future__ import annotations

import re

_NOUN = "replica|gateway|node|request|pod|fleet|stream"
# Not what follows a decimal point, the end of a pod's name, nor the scheduler's "0/1 nodes". A revision has 8 digits.
_START = r"(?<![\d./-])"
# Nor the whole in "1 of 3 replicas is": there the verb belongs to the part.
_ONE = rf"{_START}(?<!of )1 "
_MANY = rf"{_START}(?<!of )(?!1 )\d{{1,6}} "
_WRONG = (
    # "1 replicas"; "1 requests/s" is a rate.
    re.compile(rf"{_START}1 (?:(?!of )\w+ )?(?:{_NOUN})s\b(?!/)"),
    re.compile(rf"{_START}(?!1 )\d{{1,6}} (?:(?!of )\w+ )?(?:{_NOUN})\b(?!s)"),
    re.compile(rf"{_ONE}(?:(?:{_NOUN})s? )?(?:are|have|stay|live|wait|finish)\b"),
    re.compile(rf"{_MANY}(?:(?:{_NOUN})s? )?(?:is|has|stays|lives|waits|finishes)\b"),
    re.compile(rf"\b1 of \d+ (?:\w+ )?(?:{_NOUN})s? (?:of revision \w+ )?are\b"),
    re.compile(rf"\bof 1 (?:\w+ )?(?:{_NOUN}) (?:of revision \w+ )?are\b"),
    re.compile(rf"\b(?!1 )\d+ of (?!1 )\d+ (?:\w+ )?(?:{_NOUN})s (?:of revision \w+ )?is\b"),
    # Left over from a part that was empty.
    re.compile(r"  |: :|, ,|\bNone\b|[:;,]\s*$|^\s*[:;,]"),
    # A decision inside a sentence that has just said the number.
    re.compile(r": \d+ replicas?: "),
)


def faults(text: str) -> list[str]:
    return [found.group(0) for wrong in _WRONG if (found := wrong.search(text))]
