"""Whom to listen to, as the operator sees its pods."""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_operator.core.events import Key


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    uid: str
    # host:port of GatewayService (pod IP, 8502).
    address: str


@dataclass(frozen=True, slots=True)
class ReplicaTarget:
    uid: str
    fleet: Key
    fleet_uid: str
    # host:port of ReplicaService (pod IP, 8501).
    address: str
    # Serves and counts as supply: its silence makes the load unknown. One that starts may be silent.
    ready: bool = False
