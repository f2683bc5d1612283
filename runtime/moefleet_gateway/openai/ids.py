"""The request id that the edge gives to a request and the inner listener finds again. Pure.

`mf.<fleet>.<unique>.<mac>`: SMG forwards no header, but makes the engine's request id of this one (`<id>-<uuid>`, or
`<id>-p0-<uuid>` for one prompt of several). So it says for which fleet the picker let the request in, and nobody else
can write it: a client that sends an id of its own in SMG's field `rid` is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

# `mr`: its client sent it before, and it is not demand for a second time.
FIRST, RETRIED = "mf", "mr"
FLEET_HEX, MAC_HEX = 16, 32
# SMG honours ids of at most 128 characters; Envoy's own are UUIDs.
UNIQUE_MAX = 40


@dataclass(frozen=True, slots=True)
class Signed:
    fleet: str  # its mark, see `mark`
    retried: bool
    edge_id: str  # what the edge gave out, without what SMG added


def mark(fleet_key: str) -> str:
    """A fleet's key (up to 104 characters) in as many as an id has room for."""
    return hashlib.sha256(fleet_key.encode()).hexdigest()[:FLEET_HEX]


def sign(key: bytes, fleet_key: str, unique: str, retried: bool) -> str:
    """`unique`: Envoy's own id of the request, without dots."""
    text = f"{RETRIED if retried else FIRST}.{mark(fleet_key)}.{unique[:UNIQUE_MAX]}"
    return f"{text}.{_mac(key, text)}"


def verify(key: bytes, request_id: str) -> Signed | None:
    """None for an id that this gateway did not give out."""
    parts = request_id.split(".", 3)
    if len(parts) != 4 or parts[0] not in (FIRST, RETRIED):
        return None
    text, mac = ".".join(parts[:3]), parts[3][:MAC_HEX]
    rest = parts[3][MAC_HEX:]
    if (rest and not rest.startswith("-")) or not hmac.compare_digest(mac.encode(), _mac(key, text).encode()):
        return None
    return Signed(parts[1], parts[0] == RETRIED, f"{text}.{mac}")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:MAC_HEX]
