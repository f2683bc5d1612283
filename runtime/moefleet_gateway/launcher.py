"""The envoy container's process: waits for the picker's configuration, starts Envoy, drains it on SIGTERM.

Envoy alone ends at once on SIGTERM and cuts every stream. This parent turns SIGTERM into a drain.
"""

from __future__ import annotations

import asyncio
import signal

import structlog

from moefleet_gateway.draining import drain_envoy
from moefleet_gateway.envoy_admin import ERRORS, EnvoyAdmin
from moefleet_gateway.settings import Settings

# The picker writes the file in its first second; the socket must be there, or Envoy backs off.
WAIT_S = 300.0
LOOK_EVERY_S = 0.1
# After a drain began the listener takes connections for this long; new pods of a rollout are known by then.
DRAIN_TIME_S = 5
log = structlog.get_logger()


async def run(settings: Settings, arguments: list[str]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    waited_s = 0.0
    while not (settings.bootstrap_path.exists() and settings.picker_socket.is_socket()):
        if waited_s >= WAIT_S:
            log.error(
                "no_picker",
                wanted=[str(settings.bootstrap_path), str(settings.picker_socket)],
                waited_s=waited_s,
            )
            return 1
        if stop.is_set():
            return 0
        await asyncio.sleep(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S
    settings.admin_socket.unlink(missing_ok=True)
    envoy = await asyncio.create_subprocess_exec(*command(settings), *arguments)
    ended = asyncio.create_task(envoy.wait())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        async with EnvoyAdmin(settings.admin_socket) as admin:
            try:
                left = await drain_envoy(admin, settings.drain_s)
                log.info("envoy_stopping", streams_cut=left)
            except ERRORS as error:
                log.error("drain_failed", error=f"{type(error).__name__}: {error}")
        envoy.terminate()
    code = await ended
    stopping.cancel()
    return 128 - code if code < 0 else code


def command(settings: Settings) -> list[str]:
    return [
        settings.envoy_binary,
        "--config-path",
        str(settings.bootstrap_path),
        "--concurrency",
        str(settings.envoy_concurrency),
        "--drain-time-s",
        str(DRAIN_TIME_S),
        "--drain-strategy",
        "immediate",
        "--disable-hot-restart",  # its shared memory would keep a second Envoy on this machine from starting
        "--log-level",
        "warning",
    ]
