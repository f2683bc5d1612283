"""Runs one effect and says what became of it. No retries beyond a connection that could not be made: the core backs off."""

from __future__ import annotations

import asyncio

from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    DeleteRevision,
    DrainReplica,
    Effect,
    EmitEvent,
    Exit,
    PatchPod,
    PatchPodConditions,
    PatchRevision,
    ReadLease,
    ResumeReplica,
    WakeAt,
    WriteLease,
)
from moefleet_operator.core.events import AlreadyExists, Conflict, Json, NotFound, Ok, Outcome, Transient

from .clock import Clock
from .limits import REPLICA_CALL_TIMEOUT_S, WRITE_TIMEOUT_S
from .outcomes import is_other_uid, outcome_of
from .reads import slim
from .replicas import ReplicaCaller
from .requests import KubeEffect, request_of
from .resources import resource_of
from .wire import NoAnswerError, NotConnectedError, Request, Response, Transport


class KubeRunner:
    def __init__(
        self, *, writes: Transport, lease: Transport, replicas: ReplicaCaller, clock: Clock, instance: str
    ) -> None:
        self._writes = writes
        self._lease = lease
        self._replicas = replicas
        self._clock = clock
        self._instance = instance

    async def run(self, effect: Effect) -> Outcome:
        """Never raises for anything the world does; ends by `not_after`, because our right to act ends there."""
        left_s = effect.not_after - self._clock.now()
        if left_s <= 0:
            return Transient(
                f"not started: {-left_s:.1f} s past the end of the right to act", maybe_done=False
            )
        try:
            async with asyncio.timeout(left_s):
                return await self._run(effect, left_s)
        except TimeoutError:
            return Transient(
                f"not finished before the end of the right to act, {left_s:.1f} s after its start"
            )

    async def _run(self, effect: Effect, left_s: float) -> Outcome:
        match effect:
            case DrainReplica() | ResumeReplica():
                return await self._replicas.call(effect, min(left_s, REPLICA_CALL_TIMEOUT_S))
            case CreatePod() | Apply(create=True):
                outcome = await self._send(self._writes, effect)
                if isinstance(outcome, AlreadyExists):
                    return await self._with_existing(resource_of(effect.body).at(effect.object))
                return outcome
            case DeletePod() | DeleteRevision():
                outcome = await self._send(self._writes, effect)
                return NotFound(outcome.message) if is_other_uid(outcome) else outcome  # type: ignore[union-attr]
            case PatchPodConditions() | PatchPod() | PatchRevision() | Apply() | EmitEvent():
                return await self._send(self._writes, effect)
            case ReadLease():
                return await self._send(self._lease, effect)
            case WriteLease():
                outcome = await self._send(self._lease, effect)
                return (
                    Conflict("the Lease was created by another")
                    if isinstance(outcome, AlreadyExists)
                    else outcome
                )
            case WakeAt() | Exit():
                raise TypeError(f"{type(effect).__name__} is for the loop, not for the runner")
            case _:
                raise TypeError(f"unknown effect {type(effect).__name__}: kube/runner has to learn it")

    async def _with_existing(self, path: str) -> Outcome:
        """409 on create: what has the name decides whether that is success."""
        request = Request(verb="GET", path=path, timeout_s=WRITE_TIMEOUT_S)
        try:
            response = await self._once_more_if_unconnected(self._writes, request)
        except (NotConnectedError, NoAnswerError) as error:
            return Transient(str(error))
        outcome = outcome_of(response)
        match outcome:
            case Ok():
                return AlreadyExists(slim(response.body))
            case NotFound():
                return AlreadyExists(None)
            case _:
                return outcome

    async def _send(self, transport: Transport, effect: KubeEffect) -> Outcome:
        request = request_of(effect, self._clock.wall(), self._instance)
        try:
            response = await self._once_more_if_unconnected(transport, request)
        except (NotConnectedError, NoAnswerError) as error:
            return Transient(str(error), maybe_done=isinstance(error, NoAnswerError))
        outcome = outcome_of(response)
        return Ok(_object(response)) if isinstance(outcome, Ok) else outcome

    async def _once_more_if_unconnected(self, transport: Transport, request: Request) -> Response:
        try:
            return await transport.send(request)
        except NotConnectedError:
            return await transport.send(request)


def _object(response: Response) -> Json:
    return slim(response.body)
