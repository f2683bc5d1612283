"""What SMG wants to know of its only backend, the gateway itself: that it is there. So SMG stays registered while a fleet
has no replica, and requests wait in the picker instead of failing in SMG."""

from __future__ import annotations

from typing import Any

from smg_grpc_proto.generated import trtllm_service_pb2 as pb
from smg_grpc_proto.generated import trtllm_service_pb2_grpc as services

from moefleet_gateway import methods

ANSWERED = tuple(f"/{methods.TRTLLM}/{name}" for name in ("HealthCheck", "GetModelInfo", "GetServerInfo"))


class Facade(services.TrtllmServiceServicer):  # type: ignore[misc]
    """Only these methods ever come here (listeners.py); what differs by fleet is in its registration."""

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return pb.HealthCheckResponse(status="OK")

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return pb.GetModelInfoResponse()

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return pb.GetServerInfoResponse(backend="moefleet")
