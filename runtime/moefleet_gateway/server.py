"""The picker process: its servers, its watchers, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import structlog
from aiohttp import web
from envoy.service.discovery.v3 import ads_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from moefleet.gateway.v1 import gateway_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest
from smg_grpc_proto.generated import trtllm_service_pb2_grpc

from moefleet_gateway.aborts import Aborts
from moefleet_gateway.access_log import AccessLog
from moefleet_gateway.bootstrap import bootstrap
from moefleet_gateway.consumer import add_consumer_services, set_health, set_probe_health
from moefleet_gateway.control import Control, DemandLog
from moefleet_gateway.credentials import Credentials
from moefleet_gateway.draining import drain_envoy, wait_until_gone
from moefleet_gateway.envoy_admin import ERRORS, EnvoyAdmin
from moefleet_gateway.ext_proc import Picker
from moefleet_gateway.gateway import SWEEP_EVERY_S, Gateway
from moefleet_gateway.loads import Loads
from moefleet_gateway.metrics import GatewayCollector
from moefleet_gateway.openai.facade import Facade
from moefleet_gateway.openai.listeners import add_openai
from moefleet_gateway.openai.process import openai_edge
from moefleet_gateway.picking.demand import SAMPLE_EVERY_S
from moefleet_gateway.picking.endpoints import State
from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, Settings
from moefleet_gateway.streams import Listener
from moefleet_gateway.watching import Source

# Replicas that do not answer WatchLoad do not keep the gateway from becoming ready.
FIRST_LOADS_S = 3.0
# Envoy's own counts: often while an endpoint is to be forgotten, else to find requests whose end was lost.
COUNT_DRAINING_S, COUNT_IDLE_S = 0.5, 10.0

# Python's gRPC server cancels new streams at random when more than 1000 arrive at once.
_PENDING = (
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
)
_PICKER_OPTIONS = (
    *_PENDING,
    ("grpc.max_concurrent_streams", 1_000_000),
    ("grpc.so_reuseport", 0),
)
# A whole request in one message, as large as Envoy buffers, and its envelope.
PICK_MAX_BYTES = ENVOY_BUFFER_BYTES + (1 << 20)
# Envoy sends 16 KiB of entries at a time; one alone may have long paths and headers.
ENTRIES_MAX_BYTES = 4 << 20
_CONTROL_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
log = structlog.get_logger()


async def serve(settings: Settings, source: Source) -> None:
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    config = bootstrap(settings)
    if settings.openai is not None:
        config = add_openai(config, settings, settings.openai)
    write_atomically(settings.bootstrap_path, json.dumps(config, indent=1))
    gateway = Gateway(settings.pod_uid, settings.hold_max_s, settings.replica_silence_s)
    credentials = Credentials(settings.control_key_file)
    if credentials.checked:
        credentials.gateway_token()  # a key that cannot be used stops the start
    else:
        log.warning("control_port_open", reason="MOEFLEET_CONTROL_KEY_FILE is not set")
    loads = Loads(gateway, credentials)
    demand = DemandLog(gateway)

    aborts = Aborts(gateway)
    picks = Listener(Picker(gateway, aborts).open, PICK_MAX_BYTES)
    access_log = Listener(AccessLog(gateway).open, ENTRIES_MAX_BYTES)
    # Before picker.sock, for which the launcher waits.
    await picks.start(settings.picks_socket)
    await access_log.start(settings.access_log_socket)
    edge = contextlib.AsyncExitStack()
    if settings.openai is not None:
        await edge.enter_async_context(openai_edge(gateway, aborts, credentials, settings, settings.openai))
    picker, consumer_health = _picker_server(gateway, settings)
    control = grpc.aio.server(options=_CONTROL_OPTIONS)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(  # type: ignore[no-untyped-call]
        Control(gateway, demand, credentials), control
    )
    _bind(control, str(settings.control_listen))
    probes = grpc.aio.server(options=_CONTROL_OPTIONS)
    probe_health = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probe_health, probes)
    _bind(probes, str(settings.health_listen))
    await set_health(consumer_health, False)
    await set_probe_health(probe_health, False)
    for server in (picker, control, probes):
        await server.start()
    settings.picker_socket.chmod(0o660)

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listed = asyncio.Event()

    async with EnvoyAdmin(settings.admin_socket) as admin:
        metrics = await _metrics_server(gateway, admin, settings)
        tasks = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("source", source.run(gateway, listed.set)),
                ("sync", _sync(gateway, loads, admin, listed)),
                ("sweep", _every(SWEEP_EVERY_S, _async(gateway.sweep))),
                ("demand", _tell_demand(gateway, demand)),
                ("count", _count(gateway, admin)),
                ("health", _health(gateway, consumer_health, probe_health)),
            )
        ]
        ended = asyncio.create_task(stop.wait())
        log.info("picker_started", incarnation=gateway.incarnation, socket=str(settings.picker_socket))
        done, _ = await asyncio.wait({ended, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        try:
            for task in done - {ended}:
                # None of them ever ends by itself: the process must not live on without it.
                task.result()
                raise RuntimeError(f"task {task.get_name()} ended")
            log.info("picker_stopping", limit_s=settings.drain_s)
            gateway.draining = True
            await _drain(admin, settings.drain_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await loads.close()
            await asyncio.gather(*(server.stop(0.5) for server in (picker, control, probes)))
            await asyncio.gather(picks.close(), access_log.close(), edge.aclose())
            await metrics.cleanup()
    log.info("picker_stopped")


def write_atomically(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def _picker_server(gateway: Gateway, settings: Settings) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=_PICKER_OPTIONS)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(gateway.ads, server)
    consumer_health = add_consumer_services(server, gateway)
    if settings.openai is not None:
        trtllm_service_pb2_grpc.add_TrtllmServiceServicer_to_server(Facade(), server)
    # A socket that a killed picker left behind would be "in use".
    settings.picker_socket.unlink(missing_ok=True)
    _bind(server, f"unix:{settings.picker_socket}")
    return server, consumer_health


def _bind(server: grpc.aio.Server, address: str) -> None:
    if not server.add_insecure_port(address):
        raise RuntimeError(f"cannot listen on {address}")


async def _sync(gateway: Gateway, loads: Loads, admin: EnvoyAdmin, listed: asyncio.Event) -> None:
    """After a start: know everything before Envoy is told anything, since it may still run streams of an earlier
    picker and would lose endpoints that we merely do not know yet."""
    with contextlib.suppress(*ERRORS):  # no Envoy yet: nothing to inherit
        gateway.core.inherit(await admin.active_requests())
    await listed.wait()
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(FIRST_LOADS_S):
            await loads.all_tried.wait()
    gateway.mark_synced()
    log.info("synced", fleets=len(gateway.core.models.by_key), endpoints=len(gateway.core.endpoints.by_uid))
    await asyncio.Event().wait()


async def _count(gateway: Gateway, admin: EnvoyAdmin) -> None:
    last_s = gateway.now()
    while True:
        await asyncio.sleep(COUNT_DRAINING_S)
        now = gateway.now()
        draining = any(e.state is State.WITHDRAWN for e in gateway.core.endpoints.by_uid.values())
        if not draining and now < last_s + COUNT_IDLE_S:
            continue
        last_s = now
        try:
            active = await admin.active_requests()
        except ERRORS:
            continue
        gateway.core.envoy_counted(active, now)
        gateway.sweep()


async def _health(
    gateway: Gateway, consumer: health.aio.HealthServicer, probe: health.aio.HealthServicer
) -> None:
    changed = gateway.subscribe()
    known: bool | None = None
    while True:
        if gateway.ready != known:
            known = gateway.ready
            await set_health(consumer, known)
            await set_probe_health(probe, known)
            log.info("ready" if known else "not_ready")
        changed.clear()
        try:
            # Nowhere wait_for: in Python 3.11 it swallows a cancel that comes as its wait ends, and this would never end.
            async with asyncio.timeout(0.5):
                await changed.wait()
        except TimeoutError:
            continue


async def _drain(admin: EnvoyAdmin, limit_s: float) -> None:
    try:
        left = await drain_envoy(admin, limit_s)
    except ERRORS:
        return  # Envoy is gone already
    if left == 0:
        # The envoy container drains by itself and ends; until then its last request may still ask us.
        await wait_until_gone(admin, min(limit_s, 10.0))


async def _metrics_server(gateway: Gateway, admin: EnvoyAdmin, settings: Settings) -> web.AppRunner:
    registry = CollectorRegistry()
    registry.register(GatewayCollector(gateway))

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain", charset="utf-8")

    async def envoy_metrics(request: web.Request) -> web.Response:
        try:
            return web.Response(text=await admin.prometheus(), content_type="text/plain")
        except ERRORS as error:
            return web.Response(status=503, text=f"envoy's admin socket: {error}\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/metrics/envoy", envoy_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    # asyncio makes a socket on "::" IPv6-only: None listens on both families, for scrapers on IPv4 pod networks.
    host = settings.metrics_listen.host
    await web.TCPSite(runner, None if host in ("", "::") else host, settings.metrics_listen.port).start()
    return runner


async def _tell_demand(gateway: Gateway, demand: DemandLog) -> None:
    """Every few seconds, and at once when a fleet that sleeps is called: waiting for the next sample would be a large part of
    a short cold start."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAMPLE_EVERY_S):
                await gateway.called.wait()
        gateway.called.clear()
        await demand.take()


async def _every(period_s: float, do: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await do()


def _async(do: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        do()

    return call
