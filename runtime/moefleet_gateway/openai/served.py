"""Which fleets SMG can serve by now, for those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping


class ServedModels:
    def __init__(self) -> None:
        self._fleets: frozenset[str] = frozenset()
        self._why_not: Mapping[str, str] = {}
        self._changed = asyncio.Condition()

    def has(self, fleet_key: str) -> bool:
        return fleet_key in self._fleets

    def why_not(self, fleet_key: str) -> str:
        return self._why_not.get(fleet_key, "")

    @property
    def fleets(self) -> frozenset[str]:
        return self._fleets

    async def put(self, fleets: frozenset[str], why_not: Mapping[str, str]) -> None:
        self._why_not = why_not
        if fleets != self._fleets:
            self._fleets = fleets
            async with self._changed:
                self._changed.notify_all()

    async def wait(self, fleet_key: str, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                async with self._changed:
                    await self._changed.wait_for(lambda: fleet_key in self._fleets)
        except TimeoutError:
            return False
        return True
