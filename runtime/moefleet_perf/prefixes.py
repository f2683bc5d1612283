"""What the beginning of a prompt is called, so that who routes and who caches mean the same.

A prompt is known by hashes of its first 1, 2, .. 8, 10, 12, .. 512 units, each over everything from the beginning, and over the
tenant's salt. A unit is 32 tokens (the block of TensorRT-LLM) or, where nobody has the tokens, 128 bytes of UTF-8: both
are 128 bytes, so one function serves. Lengths grow by a quarter: a shared beginning is understated by a fifth at most, and a
prompt of any length has at most `len(MARK_UNITS)` hashes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

UNIT_TOKENS: Final = 32
UNIT_BYTES: Final = 128
# What lies behind it is not looked at: 16,384 tokens or 64 KiB.
MAX_UNITS: Final = 512


def _mark_units() -> tuple[int, ...]:
    units = list(range(1, 9))
    while units[-1] < MAX_UNITS:
        units.append(min(MAX_UNITS, units[-1] * 5 // 4))
    return tuple(units)


MARK_UNITS: Final = _mark_units()
# In tokens, for token ids; in bytes, for texts.
MARK_TOKENS: Final = tuple(units * UNIT_TOKENS for units in MARK_UNITS)
MARK_BYTES: Final = tuple(units * UNIT_BYTES for units in MARK_UNITS)
MAX_TOKENS: Final = MARK_TOKENS[-1]
MAX_BYTES: Final = MARK_BYTES[-1]


def token_marks(tokens: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """The i-th is the hash of the first MARK_TOKENS[i] tokens, 64 bits; as many as the prompt has. Ids are below 2**32."""
    if len(tokens) < UNIT_TOKENS:
        return ()
    ids = array("I", tokens if len(tokens) <= MAX_TOKENS else tokens[:MAX_TOKENS])
    if sys.byteorder != "little":  # pragma: no cover - no machine that this runs on
        ids.byteswap()
    return _marks(ids.tobytes(), salt, b"tokens")


def text_marks(text: bytes, salt: str = "") -> tuple[int, ...]:
    """The i-th is the hash of the first MARK_BYTES[i] bytes. Never equal to one of tokens but by chance."""
    return _marks(text[:MAX_BYTES], salt, b"text") if len(text) >= UNIT_BYTES else ()


def _marks(data: bytes, salt: str, kind: bytes) -> tuple[int, ...]:
    # The person keeps the kinds apart. Two alike by chance cost one request a detour, so 64 bits are plenty.
    running = blake2b(salt.encode(), digest_size=8, person=kind)
    marks: list[int] = []
    at, size = 0, len(data)
    for end in MARK_BYTES:
        if end > size:
            break
        running.update(data[at:end])
        marks.append(int.from_bytes(running.digest(), "little"))
        at = end
    return tuple(marks)
