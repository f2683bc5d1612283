"""moefleet.replica.v1.ReplicaService: the control port. Inside the cluster only, and with the fleet's token."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc
from moefleet.replica.v1 import replica_pb2 as pb
from moefleet.replica.v1 import replica_pb2_grpc as services

from moefleet_runtime.engine.prefixes import PrefixBook
from moefleet_runtime.life import DrainWanted, Event, Life, ResumeWanted
from moefleet_runtime.serving.admission import Places
from moefleet_runtime.serving.problems import Context, Problem, Violation, answer_with, invalid

DEFAULT_INTERVAL_MS: Final = 1000
MIN_INTERVAL_MS: Final = 100
MAX_INTERVAL_MS: Final = 60000
# Gateway pods and the operator's, each once.
MAX_WATCHERS: Final = 256
DRAIN_REASONS: Final = ("ScaleDown", "Rollout", "Eviction")


class Changes:
    """Wakes everybody who watches, at each change of state. The number lets nobody miss one while it was sending."""

    def __init__(self) -> None:
        self.number = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def announce(self) -> None:
        self.number += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Until there is a change after number `seen`, or the time is over."""
        if self.number != seen:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)


class ReplicaService(services.ReplicaServiceServicer):
    def __init__(
        self,
        *,
        pod_uid: str,
        token_sha256: str,
        life: Callable[[], Life],
        apply: Callable[[Event], None],
        sample: Callable[[], pb.LoadSample],
        changes: Changes,
        prefixes: PrefixBook,
    ) -> None:
        self._pod_uid = pod_uid
        self._token_sha256 = token_sha256
        self._life = life
        self._apply = apply
        self._sample = sample
        self._changes = changes
        self._prefixes = prefixes
        self._watchers = Places(MAX_WATCHERS, "WatchLoad calls")

    async def WatchLoad(
        self, request: pb.WatchLoadRequest, context: Context
    ) -> AsyncIterator[pb.WatchLoadResponse]:
        await self._authenticate(context)
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
            await answer_with(
                context,
                invalid(
                    Violation(
                        "interval_ms",
                        f"is {interval_ms}; wanted {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}, or 0 for {DEFAULT_INTERVAL_MS}",
                    )
                ),
            )
        try:
            with self._watchers.one():
                told: int | None = None
                while True:
                    seen, over = self._changes.number, self._life().over
                    response = pb.WatchLoadResponse(sample=self._sample())
                    if request.prefixes and self._prefixes.reports:
                        told, changes = self._prefixes.since(told)
                        if changes:
                            response.prefixes.reset = changes.reset
                            response.prefixes.stored.extend(changes.stored)
                            response.prefixes.removed.extend(changes.removed)
                    yield response
                    if over:
                        return
                    await self._changes.wait(seen, interval_ms / 1000)
        except Problem as problem:
            await answer_with(context, problem)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        await self._authenticate(context)
        await self._check_pod(request.pod_uid, context)
        if request.reason not in DRAIN_REASONS:
            await answer_with(
                context,
                invalid(
                    Violation("reason", f"is {request.reason!r}; wanted one of {', '.join(DRAIN_REASONS)}")
                ),
            )
        self._apply(DrainWanted(request.reason))
        life = self._life()
        return pb.DrainResponse(state=pb.ReplicaState.Name(life.state), active=life.active)

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        await self._authenticate(context)
        await self._check_pod(request.pod_uid, context)
        life = self._life()
        if life.terminated or life.failure:
            await answer_with(
                context,
                Problem(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "CANNOT_RESUME",
                    f"the process is ending: {life.explanation}",
                ),
            )
        self._apply(ResumeWanted())
        return pb.ResumeResponse(state=pb.ReplicaState.Name(self._life().state))

    async def _authenticate(self, context: Context) -> None:
        if not self._token_sha256:
            return
        for name, value in context.invocation_metadata() or ():
            if name == "authorization" and isinstance(value, str):
                scheme, _, token = value.partition(" ")
                found = hashlib.sha256(token.strip().encode()).hexdigest()
                if scheme.lower() == "bearer" and hmac.compare_digest(found, self._token_sha256):
                    return
        await answer_with(
            context,
            Problem(
                grpc.StatusCode.UNAUTHENTICATED,
                "TOKEN_REFUSED",
                "the control port wants `authorization: Bearer <token of this fleet>`",
            ),
        )

    async def _check_pod(self, pod_uid: str, context: Context) -> None:
        """An address may have a new owner: what was meant for another pod must not happen to this one."""
        if self._pod_uid and pod_uid != self._pod_uid:
            await answer_with(
                context,
                Problem(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "WRONG_POD",
                    f"this is pod {self._pod_uid}, the call is for {pod_uid or '(none named)'}",
                    metadata={"podUid": self._pod_uid},
                ),
            )
