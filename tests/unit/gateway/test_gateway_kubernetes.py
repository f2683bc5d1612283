"""The Kubernetes source against a small real HTTP server that speaks list and watch."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from moefleet_gateway.picking.facts import Fleet, Replica
from moefleet_gateway.watching import kubernetes
from moefleet_gateway.watching.kubernetes import FLEETS, PODS, Kubernetes

Json = dict[str, Any]


class Api:
    """One API server: collections by path, watchers that are told of changes, faults on demand."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Json]] = {}
        self.version = 100
        self.oldest = 0  # watches from before get 410
        self.watchers: dict[str, list[asyncio.Queue[Json | None]]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.broken = False

    def put(self, path: str, obj: Json, kind: str = "") -> None:
        self.version += 1
        uid = obj["metadata"]["uid"]
        obj["metadata"]["resourceVersion"] = str(self.version)
        known = self.objects.setdefault(path, {})
        event = kind or ("MODIFIED" if uid in known else "ADDED")
        known.pop(uid, None) if event == "DELETED" else known.update({uid: obj})
        self.tell(path, {"type": event, "object": obj})

    def tell(self, path: str, event: Json | None) -> None:
        for queue in self.watchers.get(path, []):
            queue.put_nowait(event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append((request.path, query))
        if self.broken:
            return web.Response(status=500, text="etcd is away")
        if query.get("watch") == "true":
            return await self.watch(request, int(query["resourceVersion"]))
        items = list(self.objects.get(request.path, {}).values())
        first = int(query.get("continue", "0"))
        limit = int(query["limit"])
        meta = {"resourceVersion": str(self.version)}
        if first + limit < len(items):
            meta["continue"] = str(first + limit)
        return web.json_response({"metadata": meta, "items": items[first : first + limit]})

    async def watch(self, request: web.Request, since: int) -> web.StreamResponse:
        if since < self.oldest:
            return web.Response(status=410)
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        self.watchers.setdefault(request.path, []).append(queue)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while (event := await queue.get()) is not None:
                line = json.dumps(event).encode() + b"\n"
                # In two pieces: lines do not come whole.
                await response.write(line[: len(line) // 2])
                await response.write(line[len(line) // 2 :])
        finally:
            self.watchers[request.path].remove(queue)
        return response


class World:
    def __init__(self) -> None:
        self.fleets: dict[str, Fleet] = {}
        self.replicas: dict[str, Replica] = {}
        self.told = 0

    def put_fleets(self, fleets: Any) -> None:
        self.fleets = {f.key: f for f in fleets}
        self.told += 1

    def put_replica(self, replica: Replica) -> None:
        self.replicas[replica.uid] = replica
        self.told += 1

    def drop_replica(self, uid: str) -> None:
        del self.replicas[uid]
        self.told += 1


def pod(uid: str, namespace: str = "ns", **more: Any) -> Json:
    return {
        "metadata": {
            "name": uid,
            "namespace": namespace,
            "uid": uid,
            "labels": {"moefleet.io/fleet": "f"},
            "padding": "x" * 200_000,  # above aiohttp's line limit
        },
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "ContainersReady", "status": "True"}],
            **more,
        },
    }


def fleet(name: str, model: str = "m") -> Json:
    return {"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"model": {"name": model}}}


PODS_PATH, FLEETS_PATH = PODS.format(namespace=""), FLEETS.format(namespace="")


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    yield api
    for path in list(api.watchers):
        api.tell(path, None)
    await runner.cleanup()


@pytest.fixture
async def started(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Api, World]]:
    monkeypatch.setattr(kubernetes, "BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    api.put(FLEETS_PATH, fleet("a"))
    for uid in ("p1", "p2", "p3"):
        api.put(PODS_PATH, pod(uid))
    async for pair in running(api, tmp_path):
        yield pair


async def running(
    api: Api, tmp_path: Path, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Api, World]]:
    config = tmp_path / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    world, synced = World(), asyncio.Event()
    task = asyncio.create_task(Kubernetes(str(config), namespaces).run(world, synced.set))
    try:
        async with asyncio.timeout(30):
            await synced.wait()
        yield api, world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_synced_after_every_page_then_changes_come(started: tuple[Api, World]) -> None:
    api, world = started
    assert set(world.replicas) == {"p1", "p2", "p3"}
    assert set(world.fleets) == {"ns/a"}
    await eventually(
        lambda: len(api.watchers.get(PODS_PATH, [])) == 1 and len(api.watchers.get(FLEETS_PATH, [])) == 1
    )
    api.put(PODS_PATH, pod("p4"))
    api.put(PODS_PATH, pod("p1"), "DELETED")
    api.put(FLEETS_PATH, fleet("b", "other"))
    await eventually(lambda: set(world.replicas) == {"p2", "p3", "p4"} and len(world.fleets) == 2)
    watches = [q for p, q in api.requests if p == PODS_PATH and "watch" in q]
    assert watches[0]["labelSelector"] == "app.kubernetes.io/name=moefleet-replica"
    assert watches[0]["allowWatchBookmarks"] == "true"


async def test_nobody_is_told_when_nothing_that_matters_changed(started: tuple[Api, World]) -> None:
    api, world = started
    await eventually(lambda: api.watchers.get(PODS_PATH) and api.watchers.get(FLEETS_PATH))
    told = world.told
    api.put(PODS_PATH, pod("p1", phase="Running"))
    api.put(FLEETS_PATH, {**fleet("a"), "status": {"replicas": 3}})
    api.put(PODS_PATH, pod("p9"))
    await eventually(lambda: "p9" in world.replicas)
    assert world.told == told + 1


async def test_a_pod_that_ends_is_no_replica_any_more(started: tuple[Api, World]) -> None:
    api, world = started
    await eventually(lambda: api.watchers.get(PODS_PATH))
    api.put(PODS_PATH, pod("p1", phase="Failed"))
    await eventually(lambda: set(world.replicas) == {"p2", "p3"})


async def test_after_a_bookmark_the_watch_goes_on_from_there(started: tuple[Api, World]) -> None:
    api, _ = started
    await eventually(lambda: api.watchers.get(PODS_PATH))
    api.tell(PODS_PATH, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "777"}}})
    api.tell(PODS_PATH, None)
    await eventually(
        lambda: any(q.get("resourceVersion") == "777" for p, q in api.requests if p == PODS_PATH)
    )


@pytest.mark.parametrize("how", ["answer", "event"])
async def test_an_expired_watch_lists_again_and_finds_what_it_missed(
    started: tuple[Api, World], how: str
) -> None:
    api, world = started
    await eventually(lambda: api.watchers.get(PODS_PATH))
    api.objects[PODS_PATH].pop("p1")  # without an event
    api.version += 10
    if how == "answer":
        api.oldest = api.version
        api.tell(PODS_PATH, None)
    else:
        api.tell(PODS_PATH, {"type": "ERROR", "object": {"code": 410, "message": "too old"}})
    await eventually(lambda: set(world.replicas) == {"p2", "p3"})


async def test_the_view_stays_while_the_api_server_is_away(started: tuple[Api, World]) -> None:
    api, world = started
    await eventually(lambda: api.watchers.get(PODS_PATH))
    api.broken = True
    api.tell(PODS_PATH, None)
    before = len(api.requests)
    await eventually(lambda: len(api.requests) > before + 3)
    assert set(world.replicas) == {"p1", "p2", "p3"}
    api.broken = False
    await eventually(lambda: len(api.watchers.get(PODS_PATH, [])) == 1)
    api.put(PODS_PATH, pod("p4"))
    await eventually(lambda: "p4" in world.replicas)


async def test_only_the_named_namespaces_are_watched(api: Api, tmp_path: Path) -> None:
    for name in ("n1", "n2", "n3"):
        api.put(PODS.format(namespace=f"/namespaces/{name}"), pod(f"p-{name}", name))
        api.put(
            FLEETS.format(namespace=f"/namespaces/{name}"),
            {
                "metadata": {"name": "f", "namespace": name, "uid": f"f-{name}"},
                "spec": {"model": {"name": name}},
            },
        )
    async for _, world in running(api, tmp_path, ("n1", "n2")):
        assert set(world.replicas) == {"p-n1", "p-n2"}
        assert set(world.fleets) == {"n1/f", "n2/f"}
        assert not [p for p, _ in api.requests if "/n3/" in p]
