"""How a gateway pod ends: no new connections, running streams finish, then the process goes."""

from __future__ import annotations

import asyncio
import time

import structlog

from moefleet_gateway.envoy_admin import ERRORS, EnvoyAdmin

# Clients and kube-proxy learn that the pod is going while it still takes their requests.
SETTLE_S = 2.0
LOOK_EVERY_S = 0.25
log = structlog.get_logger()


async def drain_envoy(admin: EnvoyAdmin, limit_s: float, settle_s: float = SETTLE_S) -> int:
    """Waits until no request runs, at most `limit_s`. Returns how many were left. Safe to call twice at once."""
    deadline = time.monotonic() + limit_s
    await admin.begin_drain()
    await asyncio.sleep(min(settle_s, limit_s))
    while True:
        left = await admin.running()
        if left == 0 or time.monotonic() >= deadline:
            log.info("envoy_drained", left=left)
            return left
        await asyncio.sleep(LOOK_EVERY_S)


async def wait_until_gone(admin: EnvoyAdmin, limit_s: float) -> None:
    """The picker outlives Envoy's streams: until Envoy is gone, or has nothing in hand, or the time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            await admin.running()
        except ERRORS:
            return
        await asyncio.sleep(LOOK_EVERY_S)
