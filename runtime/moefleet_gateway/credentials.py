"""The control credential: one key of the release, from which each fleet's and the gateways' tokens are made."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

KEY_BYTES = 32


class Credentials:
    """Reads the key file at each use, so that a rotated Secret needs no restart; it is 44 bytes in memory-backed storage."""

    def __init__(self, key_file: Path | None) -> None:
        self._key_file = key_file

    @property
    def checked(self) -> bool:
        return self._key_file is not None

    def replica_token(self, fleet_uid: str) -> str:
        """Empty without a key: then nobody checks."""
        return self._token(f"replica:{fleet_uid}")

    def gateway_token(self) -> str:
        return self._token("gateway")

    def _token(self, subject: str) -> str:
        if self._key_file is None:
            return ""
        return hmac.new(decode_key(self._key_file.read_bytes()), subject.encode(), hashlib.sha256).hexdigest()


def decode_key(content: bytes) -> bytes:
    """The file holds base64 of 32 bytes."""
    try:
        key = base64.b64decode(content.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the control key must be base64 of {KEY_BYTES} bytes: {error}") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"the control key must be base64 of {KEY_BYTES} bytes, found {len(key)} bytes")
    return key


def bearer_matches(authorization: str, token: str) -> bool:
    return hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())
