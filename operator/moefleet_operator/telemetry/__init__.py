"""What gateways and replicas say, turned into one Sample per fleet and tick, and into views for draining and registration.

Here belong the streams (WatchDemand, WatchEndpoints, WatchLoad: `streams`, `hub`) and the books that add them up (`counters`,
`demand`, `replicas`, `figures`: no I/O, `now` is given). Identity is the pod uid and its incarnation, never a name or an address.
Not here: what a fleet should do about it (scaling), which pods there are (core tells the hub), what is written (status).
Unknown is never zero: a source that exists and says nothing is counted as silent.
"""

from moefleet_operator.telemetry.figures import Figures
from moefleet_operator.telemetry.hub import TelemetryHub
from moefleet_operator.telemetry.targets import GatewayTarget, ReplicaTarget
from moefleet_operator.telemetry.tokens import gateway_token, replica_token

__all__ = ["Figures", "GatewayTarget", "ReplicaTarget", "TelemetryHub", "gateway_token", "replica_token"]
