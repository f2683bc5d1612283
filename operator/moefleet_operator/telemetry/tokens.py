"""Bearer tokens of the control ports: one key, one token per purpose (decisions/0001-seams.md)."""

from __future__ import annotations

import hashlib
import hmac


def replica_token(key: bytes, fleet_uid: str) -> str:
    return _token(key, f"replica:{fleet_uid}")


def gateway_token(key: bytes) -> str:
    return _token(key, "gateway")


def _token(key: bytes, purpose: str) -> str:
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()
