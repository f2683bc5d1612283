"""grpc.health.v1 of a replica: what the kubelet's probes and other gateways ask.

``` `` ``` (all), each service's full name and `readiness`: whether this replica takes work. `liveness`: whether waiting can
help. Draining is not ready and live; a failed engine is neither, and the process ends a moment later anyway.
`startup`: whether the kubelet may stop counting: the replica has been ready, or it is late and gets on (`starting.StartWatch`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as services

from moefleet_runtime.life import Life
from moefleet_runtime.serving.admission import Places
from moefleet_runtime.serving.control import Changes
from moefleet_runtime.serving.problems import Context, Problem, answer_with

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
STARTUP: Final = "startup"
SERVICE_NAMES: Final = ("moefleet.inference.v1.InferenceService", "trtllm.TrtllmService")
# A watcher hears of changes at once; this only bounds how long a lost wake-up could go unnoticed.
WATCH_S: Final = 5.0
# Watchers: gateways and load balancers of a cluster, each once.
MAX_WATCHERS: Final = 1024
# A service's name in an answer.
MAX_NAME_CHARACTERS: Final = 128


class Health(services.HealthServicer):  # type: ignore[misc, unused-ignore]
    """Own servicer: statuses follow from Life, so there is nothing to set and nothing to forget."""

    def __init__(self) -> None:
        self._ready = False
        self._live = True
        self._started = False
        self._changes = Changes()
        self._watchers = Places(MAX_WATCHERS, "Watch calls")

    def show(self, life: Life) -> None:
        if (life.takes_work, life.live) != (self._ready, self._live):
            self._ready, self._live = life.takes_work, life.live
            self._started = self._started or life.takes_work
            self._changes.announce()

    def handed_over(self) -> None:
        """From here on liveness decides."""
        if not self._started:
            self._started = True
            self._changes.announce()

    async def Check(self, request: Any, context: Context) -> Any:
        status = self._status(request.service)
        if status is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:MAX_NAME_CHARACTERS]!r}"
            )
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            with self._watchers.one():
                last = None
                while True:
                    seen, status = self._changes.number, self._status(request.service)
                    if status != last:
                        last = status
                        yield pb.HealthCheckResponse(
                            status=pb.HealthCheckResponse.SERVICE_UNKNOWN if status is None else status
                        )
                    await self._changes.wait(seen, WATCH_S)
        except Problem as problem:
            await answer_with(context, problem)

    def _status(self, service: str) -> Any:
        if service == LIVENESS:
            good = self._live
        elif service == STARTUP:
            good = self._started
        elif service in ("", READINESS, *SERVICE_NAMES):
            good = self._ready
        else:
            return None
        return pb.HealthCheckResponse.SERVING if good else pb.HealthCheckResponse.NOT_SERVING
