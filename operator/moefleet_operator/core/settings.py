"""What the core is told once, at the start. Limits that nobody should tune are constants beside the code that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What happens to twenty replicas of a fleet within a moment becomes one pass and one burst of writes instead of twenty.
GATHER_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    # Our pod's name: unique, so a restarted process is another holder of the Lease.
    identity: str
    # Where the operator runs: the Lease and the gateway pods are there.
    namespace: str
    lease_name: str = "moefleet-operator"
    # Name and uid of our ServiceAccount: the Lease is its child, so it goes with the release, whoever wrote it last.
    lease_owner: tuple[str, str] | None = None
    # The 32 bytes behind every replica's control token; None: no token is rendered and none sent (tests, by hand).
    control_key: bytes | None = None
    # A moefleet gateway belongs to this release: pods get the readiness gate and wait for registration.
    gateway: bool = True
    # "all": pods of all namespaces are watched, so free GPUs are known; "replicas": only our own, so they are not.
    pods_watched: str = "replicas"
    # Nodes appear when pods are pending: as many pods may wait as are wanted, instead of one per fleet.
    node_autoscaler: bool = False
    # A fleet is planned so long after the first thing that happened to it; 0: at once.
    gather_s: float = 0.0
