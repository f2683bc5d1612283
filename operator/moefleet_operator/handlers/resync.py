"""A full LIST of every watched kind: at the start, by each new leader, and every minute against what a watch has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from moefleet_operator.core.events import (
    ESSENTIAL,
    Event,
    Kind,
    Ok,
    Outcome,
    Relisted,
    Synced,
    Transient,
)
from moefleet_operator.kube.clock import Clock
from moefleet_operator.kube.reads import RefusedError, UnreachableError, discovered, pages
from moefleet_operator.kube.resources import key_of
from moefleet_operator.kube.wire import Transport
from moefleet_operator.metrics import Metrics

from .audit import WatchAudit, version_of
from .scope import Scope, Watch

# What a watch has lost is found within this time; a LIST of 1,000 pods costs the API server some 50 ms.
RELIST_EVERY_S: Final = 60.0
# While the API server refuses or does not know the kind (the CRD comes with the same release as we).
RELIST_RETRY_S: Final = 2.0

log = structlog.get_logger(__name__)


class Resync:
    def __init__(
        self,
        *,
        scope: Scope,
        transport: Transport,
        clock: Clock,
        emit: Callable[[Event], None],
        metrics: Metrics,
        audit: WatchAudit,
    ) -> None:
        self._audit = audit
        self._scope = scope
        self._transport = transport
        self._clock = clock
        self._emit = emit
        self._metrics = metrics
        # Kinds whose last LIST was refused for want of a right.
        self._forbidden: set[Kind] = set()
        # One at a time: LISTs that are told in another order than they were read look like a restored backup.
        self._turn = asyncio.Lock()

    def forbidden(self) -> bool:
        return bool(self._forbidden)

    async def first(self) -> None:
        """Until every kind was listed once, before watching begins. A kind that is not there yet is waited for."""
        for lacking in self._scope.unavailable:
            self._emit(Synced(lacking.kind, available=False, message=lacking.message))
        for watch in self._scope.watches:
            said = ""
            while (problem := await self._begin(watch)) is not None:
                if problem != said:
                    log.warning("ListFailed", kind=watch.kind, message=problem)
                    said = problem
                await self._clock.sleep(RELIST_RETRY_S)
            self._emit(Synced(watch.kind))

    async def _begin(self, watch: Watch) -> str | None:
        problem = await self._relist(watch, audited=False)
        if problem is not None:
            return problem
        try:
            # A CRD that was just installed is served before it is discovered, and kopf discovers once.
            if await discovered(self._transport, self._clock, watch.resource):
                return None
        except (RefusedError, UnreachableError) as error:
            return str(error)
        return f"the API server serves {watch.resource.plural} and does not name them in its discovery yet"

    async def run(self) -> None:
        """For ever. A kind that cannot be listed now keeps what is known of it."""
        while True:
            await self._clock.sleep(RELIST_EVERY_S)
            await self.again()

    async def again(self) -> Outcome:
        """Every kind once more; Transient names those that could not be listed. What nothing can be planned without is last."""
        failed = []
        async with self._turn:
            for watch in sorted(self._scope.watches, key=lambda watch: watch.kind in ESSENTIAL):
                problem = await self._relist(watch, audited=True)
                if problem is not None:
                    log.warning("ListFailed", kind=watch.kind, message=problem)
                    failed.append(f"{watch.kind}: {problem}")
        return Transient("; ".join(failed)) if failed else Ok()

    async def _relist(self, watch: Watch, *, audited: bool) -> str | None:
        began = self._clock.now()
        objects: list[dict[str, Any]] = []
        as_of = 0
        try:
            for namespace in watch.namespaces:
                async for page in pages(
                    self._transport, self._clock, watch.resource, namespace, watch.label_selector
                ):
                    objects += page.items
                    # Of several namespaces: the LIST is as old as its oldest part.
                    as_of = min(as_of or page.resource_version, page.resource_version)
        except (RefusedError, UnreachableError) as error:
            self._metrics.list_failures.labels(kind=watch.kind).inc()
            if isinstance(error, RefusedError) and error.status in (401, 403):
                self._forbidden.add(watch.kind)
            return str(error)
        self._forbidden.discard(watch.kind)
        self._metrics.relisted(watch.kind, len(objects), self._clock.wall())
        self._audit.counted(watch.kind, len(objects))
        if audited:
            versions = ((key_of(raw), version_of(raw)) for raw in objects)
            self._audit.listed(watch.kind, versions, as_of, self._clock.now())
        self._emit(Relisted(watch.kind, tuple(objects), as_of, began))
        return None
