"""What comes before the first event: our rights, asked until the API server answers, and what may be watched by them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final, TypeVar

import structlog

from moefleet_operator.core.settings import CoreSettings
from moefleet_operator.kube.access import Right, missing_rights, rights_needed
from moefleet_operator.kube.clock import Clock
from moefleet_operator.kube.reads import RefusedError, UnreachableError
from moefleet_operator.kube.wire import Transport
from moefleet_operator.metrics import Metrics
from moefleet_operator.settings import Settings

from .scope import Scope, scope

# The chart narrows the right to this name.
LEASE_NAME: Final = "moefleet-operator"
# While the API server cannot be reached.
CONNECT_RETRY_S: Final = 2.0

log = structlog.get_logger("moefleet_operator")

T = TypeVar("T")


async def plan_scope(settings: Settings, transport: Transport, clock: Clock, metrics: Metrics) -> Scope:
    missing = await _rights(settings, transport, clock, metrics)
    found = scope(settings.watch_namespaces, settings.namespace, settings.gateway, missing)
    for lacking in found.unavailable:
        log.info("NotWatched", kind=lacking.kind, message=lacking.message)
    return found


def core_settings(settings: Settings, found: Scope) -> CoreSettings:
    return CoreSettings(
        identity=settings.pod_name,
        lease_name=LEASE_NAME,
        lease_owner=settings.service_account,
        namespace=settings.namespace,
        control_key=settings.control_key,
        gateway=settings.gateway,
        pods_watched=found.pods_watched,
        node_autoscaler=settings.node_autoscaler,
    )


class ToldToEnd(Exception):  # noqa: N818  # It is no error.
    """SIGTERM came before there was anything to give back."""


async def unless(told: asyncio.Event, work: Coroutine[object, object, T]) -> T:
    """The result of the work; raises ToldToEnd when `told` is set before it is done."""
    doing = asyncio.create_task(work)
    waiting = asyncio.create_task(told.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ToldToEnd
        return doing.result()
    finally:
        doing.cancel()
        waiting.cancel()
        await asyncio.gather(doing, waiting, return_exceptions=True)


async def _rights(
    settings: Settings, transport: Transport, clock: Clock, metrics: Metrics
) -> tuple[Right, ...]:
    needed = rights_needed(settings.watch_namespaces, settings.namespace, LEASE_NAME)
    said = ""
    while True:
        try:
            missing = await missing_rights(transport, clock, needed)
            break
        except (RefusedError, UnreachableError) as error:
            if isinstance(error, RefusedError) and error.status == 403:
                log.warning(
                    "RightsUnknown", message=f"the API server does not answer reviews of access: {error}"
                )
                return ()
            if str(error) != said:
                log.warning("ApiServerAway", message=str(error))
                said = str(error)
            await clock.sleep(CONNECT_RETRY_S)
    for right in missing:
        metrics.missing_right.labels(right=str(right)).set(1)
        log.warning(
            "RightMissing", right=str(right), message=f"this operator may not {right}; see the chart's roles"
        )
    return missing
