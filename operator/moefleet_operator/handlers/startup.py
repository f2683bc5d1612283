"""What comes before the first event: our rights, asked until the API server answers, and what may be watched by them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, TypeVar

import structlog

from moefleet_operator.core.events import ESSENTIAL
from moefleet_operator.core.settings import GATHER_S, CoreSettings
from moefleet_operator.kube.access import Right, missing_rights, rights_needed
from moefleet_operator.kube.clock import Clock
from moefleet_operator.kube.reads import RefusedError, UnreachableError
from moefleet_operator.kube.wire import Transport
from moefleet_operator.metrics import Metrics
from moefleet_operator.settings import Settings

from .scope import Scope, scope

# The chart narrows the right to this name.
LEASE_NAME: Final = "moefleet-operator"
# A right given or taken while we run is noticed within this time.
RIGHTS_EVERY_S: Final = 60.0
# While nothing is lacking and no LIST was refused, the questions are only for the metric: they are POSTs, and whoever reads the
# API server's audit log should find none of us when nothing happens.
RIGHTS_RARELY_S: Final = 3600.0
# While the API server cannot be reached.
CONNECT_RETRY_S: Final = 2.0

log = structlog.get_logger("moefleet_operator")

T = TypeVar("T")


async def plan_scope(
    settings: Settings,
    transport: Transport,
    clock: Clock,
    metrics: Metrics,
    waiting: Callable[[str], None] = lambda problem: None,
) -> Scope:
    """Waits until the essential kinds may be watched: roles bound a moment ago are not known to every API server yet.

    `waiting` hears what it waits for, and an empty text at the end."""
    said: tuple[Right, ...] = ()
    while True:
        missing = await _rights(settings, transport, clock, metrics)
        if missing != said:
            _say_missing(missing)
            said = missing
        found = scope(settings.watch_namespaces, settings.namespace, settings.gateway, missing)
        lacking = [u.message for u in found.unavailable if u.kind in ESSENTIAL]
        waiting("; ".join(lacking))
        if not lacking:
            break
        await clock.sleep(CONNECT_RETRY_S)
    for kind in found.unavailable:
        log.info("NotWatched", kind=kind.kind, message=kind.message)
    return found


async def rights_changed(
    settings: Settings,
    transport: Transport,
    clock: Clock,
    metrics: Metrics,
    found: Scope,
    *,
    refused: Callable[[], bool],
) -> None:
    """Ends when another kind may be watched than at the start, or one no more: the process is then started anew.

    `refused`: whether a LIST was refused lately for want of a right."""
    asked_at = clock.now()
    missing = found.missing
    while True:
        await clock.sleep(RIGHTS_EVERY_S)
        if not missing and not refused() and clock.now() - asked_at < RIGHTS_RARELY_S:
            continue
        asked_at = clock.now()
        try:
            missing = await missing_rights(transport, clock, _needed(settings))
        except (RefusedError, UnreachableError):
            # What is not known has not changed.
            continue
        _measure_missing(metrics, missing)
        now = scope(settings.watch_namespaces, settings.namespace, settings.gateway, missing)
        if now.unavailable != found.unavailable:
            lacks = [u.message for u in now.unavailable] or ["every kind may be watched"]
            log.warning("RightsChanged", message=f"starting anew: {'; '.join(lacks)}")
            return


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
        gather_s=GATHER_S,
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
    said = ""
    while True:
        try:
            missing = await missing_rights(transport, clock, _needed(settings))
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
    _measure_missing(metrics, missing)
    return missing


def _needed(settings: Settings) -> tuple[Right, ...]:
    return rights_needed(settings.watch_namespaces, settings.namespace, LEASE_NAME)


def _measure_missing(metrics: Metrics, missing: Sequence[Right]) -> None:
    metrics.missing_right.clear()
    for right in missing:
        metrics.missing_right.labels(right=str(right)).set(1)


def _say_missing(missing: Sequence[Right]) -> None:
    for right in missing:
        log.warning(
            "RightMissing", right=str(right), message=f"this operator may not {right}; see the chart's roles"
        )
