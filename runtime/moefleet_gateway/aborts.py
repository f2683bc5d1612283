"""Abort for a request that another gateway took: every replica of the fleet is told, since nobody here knows which.

Abort is idempotent and rare; a fleet has at most tens of replicas.
"""

from __future__ import annotations

import asyncio

import grpc
import structlog
from smg_grpc_proto.generated import trtllm_service_pb2, trtllm_service_pb2_grpc

from moefleet_gateway import headers as names
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.facts import Fleet

# A replica that does not answer in this time is not worth the caller's wait.
ABORT_TIMEOUT_S = 2.0
# Pods are never behind a proxy; without this gRPC obeys http_proxy of the environment.
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))
log = structlog.get_logger()


class Aborts:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def everywhere(self, fleet: Fleet, request_id: str, but: str) -> None:
        """Tells all replicas except `but`, which gets the caller's own Abort."""
        entries = [
            e
            for e in self._gateway.core.endpoints.by_uid.values()
            if e.replica.fleet == fleet.key and e.replica.uid != but
        ]
        await asyncio.gather(
            *(self._abort(e.replica.address, e.replica.uid, fleet, request_id) for e in entries)
        )

    async def _abort(self, address: str, uid: str, fleet: Fleet, request_id: str) -> None:
        metadata = ((names.POD_UIDS, uid), (names.MODEL, fleet.model))
        async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
            stub = trtllm_service_pb2_grpc.TrtllmServiceStub(channel)
            try:
                request = trtllm_service_pb2.AbortRequest(request_id=request_id)
                await stub.Abort(request, timeout=ABORT_TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                log.info("abort_not_delivered", uid=uid, status=error.code().name)
