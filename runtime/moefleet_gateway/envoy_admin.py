"""Envoy's admin interface, on the unix socket that only this pod's containers share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

# Local and small; a busy Envoy answers in milliseconds.
TIMEOUT_S = 2.0
_BASE = "http://envoy"
ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, KeyError)


class EnvoyAdmin:
    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def active_requests(self) -> dict[tuple[str, str], int]:
        """Requests that run now, by (cluster, address)."""
        async with self._session.get(f"{_BASE}/clusters?format=json") as response:
            response.raise_for_status()
            data = await response.json(content_type=None)
        out = {}
        for cluster in data.get("cluster_statuses", ()):
            for host in cluster.get("host_statuses", ()):
                at = host["address"].get("socket_address")
                if at is None:
                    continue
                ip = at["address"]
                address = f"[{ip}]:{at['port_value']}" if ":" in ip else f"{ip}:{at['port_value']}"
                active = sum(
                    int(s.get("value", 0)) for s in host.get("stats", ()) if s.get("name") == "rq_active"
                )
                out[cluster["name"], address] = active
        return out

    async def running(self) -> int:
        """Requests of consumers that Envoy has in hand, held ones too."""
        async with self._session.get(
            f"{_BASE}/stats?format=json&filter=^http.(gateway|openai).downstream_rq_active$"
        ) as response:
            response.raise_for_status()
            data = await response.json(content_type=None)
        return sum(int(stat.get("value", 0)) for stat in data["stats"] if "value" in stat)

    async def prometheus(self) -> str:
        async with self._session.get(f"{_BASE}/stats/prometheus?usedonly") as response:
            response.raise_for_status()
            return await response.text()

    async def begin_drain(self) -> None:
        """Connections get GOAWAY with their next answer; the listeners close after Envoy's drain time. Not the one for
        SMG, which needs it to end what consumers have begun."""
        await self._post("/healthcheck/fail")
        await self._post("/drain_listeners?inboundonly&graceful")

    async def quit(self) -> None:
        await self._post("/quitquitquit")

    async def _post(self, path: str) -> None:
        async with self._session.post(_BASE + path) as response:
            response.raise_for_status()
