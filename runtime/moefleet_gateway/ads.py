"""Envoy's aggregated discovery service: one EDS cluster a fleet, and its endpoints.

`Session` holds one connection's state and no I/O; the servicer feeds it. One response of a type is on its way at a
time: changes meanwhile are joined, and an acknowledgement says exactly what Envoy has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import grpc
import structlog
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2  # noqa: F401
from envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format

from moefleet_gateway import headers
from moefleet_gateway.bootstrap import CIRCUIT_BREAKERS, http2_upstream, replica_keepalive
from moefleet_gateway.settings import REPLICA_SILENCE_S, parse_host_port

CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
# A live replica in the cluster answers SYN in milliseconds; the next one is tried after this.
CONNECT_TIMEOUT = "1s"

View = Mapping[str, tuple[str, ...]]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Response:
    type_url: str
    version: int
    nonce: str
    names: tuple[str, ...]


@dataclass(slots=True)
class Session:
    """What one Envoy asked for, was sent and confirmed."""

    subscribed: set[str] = field(default_factory=set)  # type urls
    names: frozenset[str] = frozenset()  # EDS resources asked for
    sent_clusters: tuple[str, ...] | None = None
    sent_endpoints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pending: dict[str, tuple[str, int, bool]] = field(
        default_factory=dict
    )  # type -> nonce, version, complete
    acknowledged: int = 0
    rejected: int = 0
    _nonce: int = 0
    _refused_version: int = -1

    def request(self, type_url: str, names: frozenset[str], nonce: str, error: str) -> None:
        self.subscribed.add(type_url)
        if type_url == EDS:
            for name in self.names - names:
                self.sent_endpoints.pop(name, None)  # asked for again later, it is sent again
            self.names = names
        pending = self.pending.get(type_url)
        if pending is None or pending[0] != nonce:
            return
        del self.pending[type_url]
        if error:
            self.rejected += 1
            self._refused_version = max(self._refused_version, pending[1])
        elif type_url == EDS and pending[2]:
            self.acknowledged = max(self.acknowledged, pending[1])

    def poll(self, version: int, view: View) -> list[Response]:
        """What to send now, given what Envoy should have."""
        out = []
        clusters = tuple(sorted(view))
        if CDS in self.subscribed and CDS not in self.pending and self.sent_clusters != clusters:
            self.sent_clusters = clusters
            out.append(self._respond(CDS, version, clusters, complete=False))
        if EDS in self.subscribed and EDS not in self.pending:
            stale = tuple(
                sorted(n for n in self.names if n in view and self.sent_endpoints.get(n) != view[n])
            )
            complete = self.names.issuperset(view)
            if stale:
                self.sent_endpoints.update({n: view[n] for n in stale})
                out.append(self._respond(EDS, version, stale, complete))
            elif complete and not self.pending and self._refused_version < version:
                self.acknowledged = max(self.acknowledged, version)
        elif not view and CDS in self.subscribed and not self.pending and self._refused_version < version:
            self.acknowledged = max(
                self.acknowledged, version
            )  # without clusters Envoy never asks for endpoints
        return out

    def _respond(self, type_url: str, version: int, names: tuple[str, ...], complete: bool) -> Response:
        self._nonce += 1
        nonce = str(self._nonce)
        self.pending[type_url] = (nonce, version, complete)
        return Response(type_url, version, nonce, names)


class Registrar(Protocol):
    """Who owns the endpoints."""

    def desired(self) -> tuple[int, View] | None:
        """Version and view; None before the first full sync: Envoy then keeps what it has."""

    def confirmed(self, version: int) -> None: ...

    def disconnected(self) -> None: ...


class AdsServicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    def __init__(
        self, registrar: Registrar, incarnation: str, replica_silence_s: float = REPLICA_SILENCE_S
    ) -> None:
        self._registrar = registrar
        self._incarnation = incarnation
        self._replica_silence_s = replica_silence_s
        self._wake: set[asyncio.Event] = set()
        self.rejected = 0

    def notify(self) -> None:
        for event in self._wake:
            event.set()

    @property
    def connected(self) -> bool:
        return bool(self._wake)

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        session = Session()
        wake = asyncio.Event()
        self._wake.add(wake)
        reader = asyncio.create_task(self._read(session, requests, wake))
        log.info("envoy_connected")
        try:
            while not reader.done():
                await wake.wait()
                wake.clear()
                desired = self._registrar.desired()
                if desired is None:
                    continue
                for response in session.poll(*desired):
                    await context.write(self._encode(response, desired[1]))
                if session.acknowledged and wake in self._wake:
                    self._registrar.confirmed(session.acknowledged)
        finally:
            reader.cancel()
            self._wake.discard(wake)
            self.rejected += session.rejected
            # A restarted Envoy may connect before its old stream is seen to end: then the new one's word counts.
            if not self._wake:
                self._registrar.disconnected()
            log.info("envoy_disconnected")

    async def _read(self, session: Session, requests: AsyncIterator[Any], wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                error = request.error_detail.message if request.HasField("error_detail") else ""
                if error:
                    log.error("envoy_rejected", type=request.type_url.rsplit(".", 1)[-1], error=error)
                session.request(
                    request.type_url, frozenset(request.resource_names), request.response_nonce, error
                )
                wake.set()
        finally:
            wake.set()

    def _encode(self, response: Response, view: View) -> Any:
        out = discovery_pb2.DiscoveryResponse(
            version_info=f"{self._incarnation}.{response.version}",
            type_url=response.type_url,
            nonce=response.nonce,
        )
        for name in response.names:
            made = (
                cluster(name, self._replica_silence_s)
                if response.type_url == CDS
                else assignment(name, view[name])
            )
            out.resources.add().Pack(made)
        return out


@lru_cache(maxsize=4096)
def cluster(name: str, replica_silence_s: float = REPLICA_SILENCE_S) -> Any:
    """The same for every fleet and never changed: a changed cluster would warm anew, without endpoints."""
    out = json_format.ParseDict(
        {
            "name": name,
            "type": "EDS",
            "connect_timeout": CONNECT_TIMEOUT,
            "eds_cluster_config": {
                "eds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
            },
            "circuit_breakers": CIRCUIT_BREAKERS,
            # No health checks here: the picker's load streams know more than a probe.
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "load_balancing_policy": {
                "policies": [
                    {
                        "typed_extension_config": {
                            "name": "envoy.load_balancing_policies.override_host",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies"
                                ".override_host.v3.OverrideHost",
                                "override_host_sources": [{"header": headers.DESTINATION}],
                                "fallback_policy": {
                                    "policies": [
                                        {
                                            "typed_extension_config": {
                                                "name": "envoy.load_balancing_policies.least_request",
                                                "typed_config": {
                                                    "@type": "type.googleapis.com/envoy.extensions"
                                                    ".load_balancing_policies.least_request.v3.LeastRequest"
                                                },
                                            }
                                        }
                                    ]
                                },
                            },
                        }
                    }
                ]
            },
        },
        cluster_pb2.Cluster(),
    )
    options = any_pb2.Any()
    json_format.ParseDict(http2_upstream(replica_keepalive(replica_silence_s)), options)
    out.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].CopyFrom(
        options
    )
    return out


def assignment(name: str, addresses: tuple[str, ...]) -> Any:
    out = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    if addresses:
        group = out.endpoints.add()
        for address in addresses:
            at = parse_host_port(address, f"endpoint of {name}")
            socket = group.lb_endpoints.add().endpoint.address.socket_address
            socket.address, socket.port_value = at.host, at.port
    return out
