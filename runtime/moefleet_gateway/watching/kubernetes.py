"""Fleets and replica pods from the Kubernetes API: list, then watch, for ever. Raw JSON: the typed client's models
cost ten times as much a pod, and other releases may have fields that it does not know."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog
from kubernetes.aio import client, config

from moefleet_gateway.picking.facts import Fleet, Replica
from moefleet_gateway.watching import World, objects

PAGE = 500
# The server ends a watch after this; the next begins at the last bookmark. It is also how long a dead
# connection can go unnoticed if TCP does not notice (bookmarks come about once a minute).
WATCH_S = 240
SILENCE_S = 120  # no event and no bookmark for so long: the connection is dead
REQUEST_S = 30
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.2, 10.0
FLEETS = "/apis/moefleet.io/v1alpha1{namespace}/moefleets"
PODS = "/api/v1{namespace}/pods"
REPLICAS = "app.kubernetes.io/name=moefleet-replica"

Json = dict[str, Any]
log = structlog.get_logger()


class ExpiredError(Exception):
    """410: the version to continue from is too old, list again."""


class UnexpectedError(Exception):
    """Any other answer of the API server."""


@dataclass(slots=True)
class Reflector:
    """One collection. `replace` gets every object after a list, `change` one event's type and object."""

    get: Callable[[str, Mapping[str, str], float], Awaitable[aiohttp.ClientResponse]]
    path: str
    selector: str
    replace: Callable[[list[Json]], None]
    change: Callable[[str, Json], None]
    version: str = field(default="", init=False)

    async def run(self) -> None:
        delay_s = BACKOFF_MIN_S
        while True:
            try:
                if not self.version:
                    self.replace(await self._list())
                    delay_s = BACKOFF_MIN_S
                async for kind, obj in self._watch():
                    delay_s = BACKOFF_MIN_S
                    if kind != "BOOKMARK":
                        self.change(kind, obj)
                    self.version = obj["metadata"]["resourceVersion"]
                continue  # the server ended the watch: go on from the last version
            except ExpiredError:
                log.info("watch_expired", path=self.path)
                self.version = ""
                continue
            except (
                TimeoutError,
                aiohttp.ClientError,
                OSError,
                UnexpectedError,
                ValueError,
                KeyError,
            ) as error:
                log.warning(
                    "watch_failed", path=self.path, error=f"{type(error).__name__}: {error}", retry_s=delay_s
                )
            # Spread, so that all gateways do not come back to a restarted API server together.
            await asyncio.sleep(delay_s * (0.5 + random.random()))
            delay_s = min(BACKOFF_MAX_S, delay_s * 2)

    async def _list(self) -> list[Json]:
        items: list[Json] = []
        more = ""
        while True:
            query = {"limit": str(PAGE), "labelSelector": self.selector, "continue": more}
            response = await self.get(self.path, query, REQUEST_S)
            async with response:
                body = await response.read()
                if response.status == 410:
                    raise ExpiredError
                if response.status != 200:
                    raise UnexpectedError(f"list answered {response.status}: {body[:300]!r}")
            page = json.loads(body)
            items += page.get("items") or ()
            more = page["metadata"].get("continue", "")
            if not more:
                self.version = page["metadata"]["resourceVersion"]
                return items

    async def _watch(self) -> AsyncIterator[tuple[str, Json]]:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": self.selector,
            "resourceVersion": self.version,
            "timeoutSeconds": str(WATCH_S),
        }
        response = await self.get(self.path, query, WATCH_S + REQUEST_S)
        async with response:
            if response.status == 410:
                raise ExpiredError
            if response.status != 200:
                raise UnexpectedError(f"watch answered {response.status}: {(await response.read())[:300]!r}")
            rest = b""
            while True:
                # Own lines: aiohttp's readline refuses a pod of more than 64 KiB.
                async with asyncio.timeout(SILENCE_S):
                    chunk = await response.content.readany()
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        if event["object"].get("code") == 410:
                            raise ExpiredError
                        raise UnexpectedError(f"watch sent {event['object'].get('message', '')[:300]!r}")
                    yield event["type"], event["object"]


class Kubernetes:
    """One reflector a kind and namespace; the view stays when the API server is away."""

    def __init__(self, kubeconfig: str, namespaces: tuple[str, ...]) -> None:
        self._kubeconfig = kubeconfig
        self._scopes = namespaces or ("",)
        self._fleets: dict[str, dict[str, Fleet]] = {}
        self._pods: dict[str, dict[str, Replica]] = {}

    async def run(self, world: World, synced: Callable[[], None]) -> None:
        configuration = client.Configuration()
        if self._kubeconfig:
            await config.load_kube_config(self._kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
        # Each watch keeps a connection for itself.
        configuration.connection_pool_maxsize = 4 + 4 * len(self._scopes)
        async with client.ApiClient(configuration) as api:

            async def get(path: str, query: Mapping[str, str], timeout_s: float) -> aiohttp.ClientResponse:
                request = await api.param_serialize(
                    "GET",
                    path,
                    query_params=[(k, v) for k, v in query.items() if v],
                    header_params={"Accept": "application/json"},
                    auth_settings=["BearerToken"],
                )
                response = await api.call_api(*request, _request_timeout=timeout_s)
                raw: aiohttp.ClientResponse = response.response
                return raw

            waiting = {(kind, scope) for kind in ("fleets", "pods") for scope in self._scopes}

            def listed(kind: str, scope: str) -> None:
                if waiting:
                    waiting.discard((kind, scope))
                    if not waiting:
                        synced()

            async with asyncio.TaskGroup() as tasks:
                for scope in self._scopes:
                    namespace = f"/namespaces/{scope}" if scope else ""
                    fleets = self._fleet_reflector(get, namespace, scope, world, listed)
                    pods = self._pod_reflector(get, namespace, scope, world, listed)
                    tasks.create_task(fleets.run(), name=f"watch-fleets-{scope}")
                    tasks.create_task(pods.run(), name=f"watch-pods-{scope}")

    def _fleet_reflector(
        self, get: Any, namespace: str, scope: str, world: World, listed: Callable[[str, str], None]
    ) -> Reflector:
        known = self._fleets.setdefault(scope, {})

        def tell() -> None:
            world.put_fleets([fleet for each in self._fleets.values() for fleet in each.values()])

        def replace(items: list[Json]) -> None:
            known.clear()
            known.update({item["metadata"]["uid"]: fleet for item in items if (fleet := objects.fleet(item))})
            tell()
            listed("fleets", scope)

        def change(kind: str, obj: Json) -> None:
            uid = obj["metadata"]["uid"]
            fleet = None if kind == "DELETED" else objects.fleet(obj)
            if fleet == known.get(uid):
                return  # only its status moved
            if fleet is None:
                known.pop(uid, None)
            else:
                known[uid] = fleet
            tell()

        return Reflector(get, FLEETS.format(namespace=namespace), "", replace, change)

    def _pod_reflector(
        self, get: Any, namespace: str, scope: str, world: World, listed: Callable[[str, str], None]
    ) -> Reflector:
        known = self._pods.setdefault(scope, {})

        def put(uid: str, replica: Replica | None) -> None:
            if replica == known.get(uid):
                return
            if replica is None:
                del known[uid]
                world.drop_replica(uid)
            else:
                known[uid] = replica
                world.put_replica(replica)

        def replace(items: list[Json]) -> None:
            now = {item["metadata"]["uid"]: objects.replica(item) for item in items}
            for uid in [*known, *now]:
                put(uid, now.get(uid))
            listed("pods", scope)

        def change(kind: str, obj: Json) -> None:
            put(obj["metadata"]["uid"], None if kind == "DELETED" else objects.replica(obj))

        return Reflector(get, PODS.format(namespace=namespace), REPLICAS, replace, change)
