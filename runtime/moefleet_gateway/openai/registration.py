"""Keeps SMG told of what the gateway serves: one backend a fleet, all of them this gateway, each with its fleet's tokenizer.

Looks at both sides and sends the difference, so that a restart of SMG or of the picker needs no word between them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import structlog

from moefleet_gateway.gateway import Gateway
from moefleet_gateway.openai.served import ServedModels
from moefleet_gateway.openai.smg import ERRORS, Smg
from moefleet_gateway.openai.tokenizers import BundleError, Store, fetch
from moefleet_gateway.picking.endpoints import State
from moefleet_gateway.picking.facts import Fleet, Replica
from moefleet_gateway.settings import HostPort

# Two requests on loopback; a fleet that appears waits for its replicas far longer.
LOOK_EVERY_S = 1.0
# While SMG reads what it was just told.
LOOK_SOON_S = 0.1
# A replica that cannot give its tokenizer is asked again after this, or the next one is.
RETRY_S = 5.0
log = structlog.get_logger()


class Registration:
    def __init__(
        self, gateway: Gateway, smg: Smg, store: Store, served: ServedModels, inner: HostPort
    ) -> None:
        self._gateway = gateway
        self._smg = smg
        self._store = store
        self._served = served
        self._inner = inner
        self._folders: dict[str, Path] = {}  # by fleet uid and key
        self._asked: dict[str, set[str]] = {}  # pods whose tokenizer is known, by the same
        self._not_before: dict[str, float] = {}
        self._why_not: dict[str, str] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._smg_error = ""
        self._told = False  # something new, in the last look

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._gateway.synced:
                    await self._look()
                await asyncio.sleep(LOOK_SOON_S if self._told else LOOK_EVERY_S)
        finally:
            for task in self._fetching.values():
                task.cancel()

    async def _look(self) -> None:
        listed = self._gateway.core.models.listed()
        fleets = [fleet for _, fleet in listed]
        known = {_id(fleet) for fleet in fleets}
        for gone in set(self._folders) - known:
            del self._folders[gone]
            self._asked.pop(gone, None)
            await self._store.keep(fleets)
        for fleet in fleets:
            self._want_tokenizer(fleet)
        try:
            served = await self._tell([(name, f) for name, f in listed if _id(f) in self._folders])
        except ERRORS as error:
            self._told = False
            text = f"SMG: {type(error).__name__}: {error}"[:300]
            if text != self._smg_error:
                log.warning("smg_not_told", error=text)
            self._smg_error = text
            # It is away, or starts and knows nothing: requests wait at the edge instead of failing in it.
            await self._served.put(frozenset(), {fleet.key: text for fleet in fleets})
            return
        if self._smg_error:
            log.info("smg_told", fleets=sorted(served))
            self._smg_error = ""
        if served != self._served.fleets:
            log.info("openai_serves", fleets=sorted(served))
        await self._served.put(frozenset(served), dict(self._why_not))

    async def _tell(self, wanted: list[tuple[str, Fleet]]) -> set[str]:
        """Fleets that SMG serves now: backend and tokenizer are there."""
        smg = self._smg
        workers = {worker.url: worker for worker in await smg.workers()}
        tokenizers = {entry.name: entry for entry in await smg.tokenizers()}
        urls = {self._url(fleet, name): (name, fleet) for name, fleet in wanted}
        for url, worker in workers.items():
            if url not in urls:
                await smg.remove_worker(worker.id)
        folders = {name: str(self._folders[_id(fleet)]) for name, fleet in wanted}
        changed = {f.key for n, f in wanted if n in tokenizers and tokenizers[n].source != folders[n]}
        if changed:
            # Between its two tokenizers SMG has none: requests wait at the edge meanwhile.
            await self._served.put(self._served.fleets - changed, dict(self._why_not))
        for name, entry in tokenizers.items():
            if folders.get(name) != entry.source:
                await smg.remove_tokenizer(entry.id)
        served = set()
        for url, (name, fleet) in urls.items():
            entry_there = name in tokenizers and tokenizers[name].source == folders[name]
            if not entry_there:
                await smg.add_tokenizer(name, folders[name])
            if url not in workers:
                await smg.add_worker(worker_spec(url, name, fleet, folders[name]))
            if entry_there and url in workers:
                served.add(fleet.key)
        self._told = len(served) < len(urls)
        return served

    def _url(self, fleet: Fleet, name: str) -> str:
        """SMG knows its backends by their URLs and connects to host and port: the path only tells them apart."""
        return f"grpc://{self._inner}/{fleet.key}/{fleet.uid}/{name}"

    def _want_tokenizer(self, fleet: Fleet) -> None:
        """Asks a pod that was not asked yet: a rollout may bring another chat template."""
        key = _id(fleet)
        if key not in self._folders:
            found = self._store.find(fleet)
            if found is not None:
                self._folders[key] = found
        task = self._fetching.get(key)
        if task is not None and not task.done():
            return
        asked = self._asked.setdefault(key, set())
        pods = _registered(self._gateway, fleet)
        asked &= {pod.uid for pod in pods}
        fresh = [pod for pod in pods if pod.uid not in asked]
        if not fresh or self._gateway.now() < self._not_before.get(key, 0.0):
            return
        self._fetching[key] = asyncio.create_task(self._fetch(fleet, fresh[0]))

    async def _fetch(self, fleet: Fleet, pod: Replica) -> None:
        key = _id(fleet)
        try:
            folder = await self._store.put(fleet, await fetch(pod, fleet))
        except (BundleError, OSError, grpc.aio.AioRpcError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            text = f"pod {pod.name}: {why}"[:300]
            if self._why_not.get(fleet.key) != text:
                log.warning("no_tokenizer", fleet=fleet.key, error=text)
            self._why_not[fleet.key] = text
            self._not_before[key] = self._gateway.now() + RETRY_S
            return
        self._why_not.pop(fleet.key, None)
        self._asked[key].add(pod.uid)
        if self._folders.get(key) != folder:
            log.info("tokenizer_fetched", fleet=fleet.key, pod=pod.name, folder=folder.name)
            self._folders[key] = folder


def worker_spec(url: str, name: str, fleet: Fleet, folder: str) -> dict[str, Any]:
    """A backend in SMG's words."""
    model: dict[str, Any] = {"id": name, "tokenizer_path": folder}
    if name != fleet.qualified_model:
        model["aliases"] = [fleet.qualified_model]
    if fleet.context_length:
        model["context_length"] = fleet.context_length
    return {
        "url": url,
        "connection_mode": "grpc",
        "runtime_type": "trtllm",
        "models": [model],
        "labels": {"tokenizer_path": folder},
    }


def _registered(gateway: Gateway, fleet: Fleet) -> list[Replica]:
    return [
        entry.replica
        for entry in gateway.core.endpoints.by_uid.values()
        if entry.replica.fleet == fleet.key and entry.state is State.REGISTERED
    ]


def _id(fleet: Fleet) -> str:
    return f"{fleet.key} {fleet.uid}"
