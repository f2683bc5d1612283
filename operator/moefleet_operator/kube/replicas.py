"""Drain and Resume on a replica's control port: a channel for each call, because they are minutes apart."""

from __future__ import annotations

from typing import Any, Protocol

import grpc
import grpc.aio
from moefleet.replica.v1 import replica_pb2, replica_pb2_grpc

from moefleet_operator.core.effects import DrainReplica, ReplicaCall, ResumeReplica
from moefleet_operator.core.events import Conflict, Forbidden, Invalid, NotFound, Ok, Outcome, Transient

from .limits import ERROR_MAX_CHARS, REPLICA_CALL_TIMEOUT_S

_STATE_PREFIX = "REPLICA_STATE_"


class ReplicaCaller(Protocol):
    async def call(self, effect: ReplicaCall, timeout_s: float) -> Outcome: ...


class GrpcReplicas:
    async def call(self, effect: ReplicaCall, timeout_s: float = REPLICA_CALL_TIMEOUT_S) -> Outcome:
        metadata = (("authorization", f"Bearer {effect.token}"),) if effect.token else ()
        deadline_s = min(timeout_s, REPLICA_CALL_TIMEOUT_S)
        async with grpc.aio.insecure_channel(effect.address, options=_OPTIONS) as channel:
            stub = replica_pb2_grpc.ReplicaServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                match effect:
                    case DrainReplica():
                        drained = await stub.Drain(
                            replica_pb2.DrainRequest(reason=effect.drain_reason, pod_uid=effect.uid),
                            timeout=deadline_s,
                            metadata=metadata,
                        )
                        return Ok({"state": state_name(drained.state), "active": int(drained.active)})
                    case ResumeReplica():
                        resumed = await stub.Resume(
                            replica_pb2.ResumeRequest(pod_uid=effect.uid),
                            timeout=deadline_s,
                            metadata=metadata,
                        )
                        return Ok({"state": state_name(resumed.state)})
            except grpc.aio.AioRpcError as error:
                return outcome_of_code(error.code(), f"{effect.address}: {error.details() or 'no details'}")


# No retry by the library: the core backs off. A proxy from the environment never leads to a pod.
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))


def outcome_of_code(code: Any, details: str) -> Outcome:
    message = f"{code.name}: {details}"[:ERROR_MAX_CHARS]
    match code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Forbidden(message)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(message)
        case grpc.StatusCode.ABORTED:
            return Conflict(message)
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.INVALID_ARGUMENT:
            return Invalid(message)
        case _:
            # Also UNIMPLEMENTED: a replica of another release, or a port that something else answers for now.
            return Transient(message)


def state_name(number: int) -> str:
    """`SERVING` for REPLICA_STATE_SERVING; a number of a later release is UNSPECIFIED to us."""
    value = replica_pb2.ReplicaState.DESCRIPTOR.values_by_number.get(number)
    return value.name.removeprefix(_STATE_PREFIX) if value is not None else "UNSPECIFIED"
