"""/metrics, /healthz and /readyz. A standby serves them, too; unhealthy means: start this process anew."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from moefleet_operator.metrics import Metrics

# One sentence for each thing that is wrong; none: all is well.
Check = Callable[[], list[str]]


async def serve(
    host: str, port: int, *, metrics: Metrics, alive: Check, ready: Check
) -> tuple[web.AppRunner, int]:
    """The runner to clean up, and the port that is really used (0 asks for any)."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def get_health(_: web.Request) -> web.Response:
        return _answer(alive())

    async def get_ready(_: web.Request) -> web.Response:
        return _answer(ready())

    application = web.Application()
    application.router.add_get("/metrics", get_metrics)
    application.router.add_get("/healthz", get_health)
    application.router.add_get("/readyz", get_ready)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    # asyncio makes a socket on "::" IPv6-only, so the kubelet's probe at an IPv4 pod address would be refused: None is both.
    await web.TCPSite(runner, None if host in ("", "::") else host, port).start()
    return runner, int(runner.addresses[0][1])


def _answer(problems: list[str]) -> web.Response:
    if problems:
        return web.Response(status=503, text="".join(f"{problem}\n" for problem in problems))
    return web.Response(text="ok\n")
