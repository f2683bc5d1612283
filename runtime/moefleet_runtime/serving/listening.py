"""The sockets of a replica: requests, control and metrics, with the options that long token streams need."""

from __future__ import annotations

import errno
import threading
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from moefleet.inference.v1 import inference_pb2_grpc
from moefleet.replica.v1 import replica_pb2_grpc
from prometheus_client import CollectorRegistry, start_http_server
from smg_grpc_proto.generated import trtllm_service_pb2_grpc

from moefleet_runtime.config import RuntimeConfig
from moefleet_runtime.ending import FatalError
from moefleet_runtime.serving.health import SERVICE_NAMES, Health

log = structlog.get_logger()

# TensorRT-LLM's own limit; a prompt of 128K ids is below 0.5 MB.
MAX_MESSAGE_BYTES: Final = 32 << 20
# Of one request. Said here because grpc's default refuses at random between 8 KiB and this.
MAX_METADATA_BYTES: Final = 16 << 10
# Calls at once, of all kinds, beside the requests that may wait: a full batch, probes, watchers, and those that are just refused.
MAX_OTHER_CALLS: Final = 1 << 14
_ANY_NUMBER: Final = 1 << 20

SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A peer that vanished without a FIN is noticed within 40 s. Gateways and clients ping us to know soon that we are
    # gone, twice a second at most: the default of 5 min answers GOAWAY too_many_pings in the middle of a stream.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_pings_without_data", 0),
    # Streams are bounded by admission. The core's own limit cancels at random when more than 1000 arrive at once.
    ("grpc.max_concurrent_streams", _ANY_NUMBER),
    ("grpc.server.max_pending_requests", _ANY_NUMBER),
    ("grpc.server.max_pending_requests_hard_limit", _ANY_NUMBER),
    # Two replicas that share an address by mistake must not share its requests.
    ("grpc.so_reuseport", 0),
)


class Listeners:
    def __init__(self) -> None:
        self._servers: list[grpc.aio.Server] = []
        self._metrics: WSGIServer | None = None

    async def open(
        self,
        config: RuntimeConfig,
        *,
        inference: inference_pb2_grpc.InferenceServiceServicer,
        trtllm: Any,
        replica: replica_pb2_grpc.ReplicaServiceServicer,
        health: Health,
        registry: CollectorRegistry,
    ) -> None:
        """Raises FatalError(AddressUnavailable)."""
        public = make_server(config.limits.queued_requests + MAX_OTHER_CALLS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, public)  # type: ignore[no-untyped-call]
        trtllm_service_pb2_grpc.add_TrtllmServiceServicer_to_server(trtllm, public)
        health_pb2_grpc.add_HealthServicer_to_server(health, public)
        reflection.enable_server_reflection(
            (*SERVICE_NAMES, "grpc.health.v1.Health", reflection.SERVICE_NAME), public
        )
        control = make_server(MAX_OTHER_CALLS)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(replica, control)  # type: ignore[no-untyped-call]
        self._servers = [public, control]
        grpc_at = _bind(public, config.listen, "listen")
        control_at = _bind(control, config.control.listen, "control.listen")
        await public.start()
        await control.start()
        metrics_at = self._open_metrics(config.metrics_listen, registry)
        log.info("listening", grpc=grpc_at, control=control_at, metrics=metrics_at)

    async def close(self, grace_s: float) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(grace_s)
        if self._metrics is not None:
            # shutdown() waits for the serving thread; it is a daemon, so nobody needs to.
            threading.Thread(target=self._metrics.shutdown, daemon=True).start()
            self._metrics.server_close()
            self._metrics = None

    def _open_metrics(self, address: str, registry: CollectorRegistry) -> str:
        if not address:
            return ""
        host, port = split_address(address, "metricsListen")
        try:
            try:
                self._metrics, _ = start_http_server(port, addr=host, registry=registry)
            except OSError as error:
                # A kernel without IPv6; gRPC does the same for its own wildcard.
                if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                self._metrics, _ = start_http_server(port, addr="0.0.0.0", registry=registry)
        except OSError as error:
            raise FatalError("AddressUnavailable", f"metricsListen {address}: {error}") from error
        return _shown(host, self._metrics.server_port)


def make_server(most_calls: int) -> grpc.aio.Server:
    return grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=most_calls)


def split_address(address: str, field: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `:port`. Raises FatalError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise FatalError("ConfigurationInvalid", f"{field} is {address!r}; wanted host:port or [host]:port")
    return host.strip("[]") or "::", int(port)


def _bind(server: grpc.aio.Server, address: str, field: str) -> str:
    host, _ = split_address(address, field)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise FatalError(
            "AddressUnavailable",
            f"{field} {address}: cannot listen there (taken, or not an address of this machine)",
        ) from error
    return _shown(host, port)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
