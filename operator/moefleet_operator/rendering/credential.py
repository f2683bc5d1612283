"""The control credential of a fleet (decision 0001): one key of the release, one token a fleet, its hash in the pods."""

from __future__ import annotations

import hashlib
import hmac


def replica_token(key: bytes, fleet_uid: str) -> str:
    """What the operator and the gateways send to the control port of this fleet's replicas."""
    return hmac.new(key, f"replica:{fleet_uid}".encode(), hashlib.sha256).hexdigest()


def token_sha256(key: bytes | None, fleet_uid: str) -> str:
    """What a pod's configuration holds: fleet namespaces keep no secret. Empty without a key: no check."""
    return "" if key is None else hashlib.sha256(replica_token(key, fleet_uid).encode()).hexdigest()
