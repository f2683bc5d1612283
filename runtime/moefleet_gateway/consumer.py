"""What the gateway itself answers to consumers: ListModels, health, reflection."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from moefleet.inference.v1 import inference_pb2, inference_pb2_grpc
from smg_grpc_proto.generated import trtllm_service_pb2  # noqa: F401  (reflection finds it in the pool)

from moefleet_gateway import methods
from moefleet_gateway.gateway import Gateway

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Models(inference_pb2_grpc.InferenceServiceServicer):
    """Only ListModels ever comes here: Envoy routes the other methods to replicas."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ListModels(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return inference_pb2.ListModelsResponse(
            models=[
                inference_pb2.Model(
                    name=name, fleet=fleet.key, engine=fleet.engine, context_length=fleet.context_length
                )
                for name, fleet in self._gateway.core.models.listed()
            ]
        )


def add_consumer_services(server: grpc.aio.Server, gateway: Gateway) -> health.aio.HealthServicer:
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Models(gateway), server)  # type: ignore[no-untyped-call]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (methods.INFERENCE, methods.TRTLLM, methods.HEALTH, methods.REFLECTION)
    reflection.enable_server_reflection(names, server)
    return servicer


async def set_health(servicer: health.aio.HealthServicer, ready: bool) -> None:
    """What consumers see, by service; they ask for the services they call."""
    state = SERVING if ready else NOT_SERVING
    for name in ("", methods.INFERENCE, methods.TRTLLM, methods.HEALTH, methods.REFLECTION):
        await servicer.set(name, state)


async def set_probe_health(servicer: health.aio.HealthServicer, ready: bool) -> None:
    """What the kubelet sees on the health port. Alive is whoever can answer."""
    await servicer.set("liveness", SERVING)
    for name in ("", "readiness"):
        await servicer.set(name, SERVING if ready else NOT_SERVING)
