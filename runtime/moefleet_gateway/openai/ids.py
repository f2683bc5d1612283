"""The request id that the edge gives to a request and the inner listener finds again. Pure.

`mf<flags>.<fleet>.<unique>.<mac>`: SMG forwards no header, but makes the engine's request id of this one (`<id>-<uuid>`, or
`<id>-p0-<uuid>` for one prompt of several). So it says for which fleet the picker let the request in, and nobody else
can write it: a client that sends an id of its own in SMG's field `rid` is refused. Flags: `r`, its client sent it before,
and it is not demand for a second time; `o`, its client named no length, and the one that SMG puts there is not meant;
`s<hex>`, its seed, which SMG leaves out.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

PREFIX = "mf"
_HEAD = re.compile(PREFIX + "(r?)(o?)(?:s([0-9a-f]{1,16}))?")
FLEET_HEX, MAC_HEX = 16, 32
# SMG honours ids of at most 128 characters; Envoy's own are UUIDs.
UNIQUE_MAX = 40


@dataclass(frozen=True, slots=True)
class Signed:
    fleet: str  # its mark, see `mark`
    retried: bool
    open_ended: bool
    seed: int | None
    edge_id: str  # what the edge gave out, without what SMG added


def mark(fleet_key: str) -> str:
    """A fleet's key (up to 104 characters) in as many as an id has room for."""
    return hashlib.sha256(fleet_key.encode()).hexdigest()[:FLEET_HEX]


def sign(
    key: bytes,
    fleet_key: str,
    unique: str,
    *,
    retried: bool = False,
    open_ended: bool = False,
    seed: int | None = None,
) -> str:
    """`unique`: Envoy's own id of the request, without dots. `seed`: of 64 bits, without sign."""
    flags = "r" * retried + "o" * open_ended + ("" if seed is None else f"s{seed:x}")
    text = f"{PREFIX}{flags}.{mark(fleet_key)}.{unique[:UNIQUE_MAX]}"
    return f"{text}.{_mac(key, text)}"


def verify(key: bytes, request_id: str) -> Signed | None:
    """None for an id that this gateway did not give out."""
    parts = request_id.split(".", 3)
    head = _HEAD.fullmatch(parts[0])
    if len(parts) != 4 or head is None:
        return None
    text, mac = ".".join(parts[:3]), parts[3][:MAC_HEX]
    rest = parts[3][MAC_HEX:]
    if (rest and not rest.startswith("-")) or not hmac.compare_digest(mac.encode(), _mac(key, text).encode()):
        return None
    retried, open_ended, seed = head.groups()
    return Signed(parts[1], bool(retried), bool(open_ended), int(seed, 16) if seed else None, f"{text}.{mac}")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:MAC_HEX]
