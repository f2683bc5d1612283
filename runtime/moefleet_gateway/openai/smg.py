"""The smg container's process: SMG with what the edge needs of it, and its control interface as the picker uses it."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Any

import aiohttp

from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, HostPort, OpenAI

# Streams have their limits at the fleet (limits.streamDuration, limits.hold); this is SMG's word for none.
REQUEST_TIMEOUT_S = 7 * 86_400
# SMG is the last but one to end in its pod: Envoy has drained before.
SHUTDOWN_GRACE_S = 10
# Local, and answered from memory.
TIMEOUT_S = 5.0
ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, KeyError, TypeError)


def arguments(openai: OpenAI) -> list[str]:
    """Each guard of SMG that would judge a fleet by one URL is off: behind the URL is the gateway, which has its own."""
    out = [
        "--host", openai.smg.host,
        "--port", str(openai.smg.port),
        "--enable-igw",  # several models, each with its own tokenizer
        "--policy", "round_robin",
        # One connection a fleet: five retries would be five picks, and ten refusals would close the whole fleet.
        "--disable-retries",
        "--disable-circuit-breaker",
        "--disable-health-check",
        "--disable-load-monitoring",
        "--disable-worker-overload-protection",
        # The only header that SMG passes on, in the engine's request id.
        "--request-id-headers", "x-request-id",
        "--request-timeout-secs", str(REQUEST_TIMEOUT_S),
        "--shutdown-grace-period-secs", str(SHUTDOWN_GRACE_S),
        # Envoy alone connects, and keeps its connections.
        "--idle-connection-timeout-secs", "0",
        "--max-concurrent-requests", "0",
        "--max-payload-size", str(ENVOY_BUFFER_BYTES),
        "--max-background-responses", "0",
        "--history-backend", "none",
        "--prometheus-host", openai.smg_metrics.host,
        "--prometheus-port", str(openai.smg_metrics.port),
        "--log-level", "warn",
    ]  # fmt: skip
    if openai.tool_call_parser:
        out += ["--tool-call-parser", openai.tool_call_parser]
    if openai.reasoning_parser:
        out += ["--reasoning-parser", openai.reasoning_parser]
    return out


def run(openai: OpenAI, more: list[str]) -> int:
    """Becomes SMG: signals go to it, and its end is the container's."""
    command = [sys.executable, "-m", "smg.launch_router", *arguments(openai), *more]
    os.execv(sys.executable, command)
    return 0


@dataclass(frozen=True, slots=True)
class Worker:
    id: str
    url: str


@dataclass(frozen=True, slots=True)
class Registered:
    id: str
    name: str
    source: str


class Smg:
    """SMG's own interface, on loopback: who its backends are, and which tokenizers it has."""

    def __init__(self, at: HostPort) -> None:
        self._base = f"http://{at}"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def close(self) -> None:
        await self._session.close()

    async def workers(self) -> list[Worker]:
        data = await self._get("/workers")
        return [Worker(w["id"], w["url"]) for w in data["workers"]]

    async def tokenizers(self) -> list[Registered]:
        data = await self._get("/v1/tokenizers")
        return [Registered(t["id"], t["name"], t["source"]) for t in data["tokenizers"]]

    async def add_worker(self, spec: dict[str, Any]) -> None:
        await self._send("POST", "/workers", spec)

    async def add_tokenizer(self, name: str, source: str) -> None:
        await self._send("POST", "/v1/tokenizers", {"name": name, "source": source})

    async def remove_worker(self, worker_id: str) -> None:
        await self._send("DELETE", f"/workers/{worker_id}")

    async def remove_tokenizer(self, tokenizer_id: str) -> None:
        await self._send("DELETE", f"/v1/tokenizers/{tokenizer_id}")

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._base + path) as response:
            response.raise_for_status()
            return await response.json()

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        async with self._session.request(method, self._base + path, json=body) as response:
            if response.status >= 400:
                raise ValueError(f"{method} {path}: {response.status} {(await response.text())[:300]}")
