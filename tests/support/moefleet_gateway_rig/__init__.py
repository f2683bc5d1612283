"""A real gateway for tests: real Envoy, real picker process, replicas that are gRPC servers on 127.x addresses.

Belongs here: what starts, feeds and ends these. Does not belong here: assertions, and anything of Kubernetes.
"""

from moefleet_gateway_rig.replica import FakeReplica
from moefleet_gateway_rig.rig import MODEL, FleetFile, Rig, envoy_binary, until

__all__ = ["MODEL", "FakeReplica", "FleetFile", "Rig", "envoy_binary", "until"]
