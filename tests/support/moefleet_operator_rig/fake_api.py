"""A small API server in this process: discovery, LIST and WATCH from memory, with faults that a real one has rarely.

Watches can be mute (open, and nothing comes), cut, refused with a code, or ended with 410 Gone.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

PLURALS = {
    "moefleet.io/v1alpha1": {"moefleets": "MoEFleet"},
    "v1": {
        "pods": "Pod",
        "nodes": "Node",
        "services": "Service",
        "namespaces": "Namespace",
        "resourcequotas": "ResourceQuota",
    },
    "apps/v1": {"controllerrevisions": "ControllerRevision"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
}
CLUSTER_SCOPED = {"nodes", "namespaces", "customresourcedefinitions"}


@dataclass
class FakeApi:
    tokens: set[str] = field(default_factory=lambda: {"good"})
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    version: int = 100
    # Kinds (plural) whose watches stay open and say nothing.
    mute: set[str] = field(default_factory=set)
    # Plural -> status codes with which the next requests are refused.
    refuse: dict[str, list[int]] = field(default_factory=dict)
    # Resources (plural) that are served and not named in discovery, as a CRD is moments after it was installed.
    undiscovered: set[str] = field(default_factory=set)
    # "verb plural" for which reviews of access say no.
    denied: set[str] = field(default_factory=set)
    requests: Counter[str] = field(default_factory=Counter)
    lease: dict[str, Any] | None = None
    server: str = ""
    _watches: list[tuple[str, asyncio.Queue[dict[str, Any] | None]]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeApi]:
        application = web.Application(middlewares=[self._authenticate])
        application.router.add_get("/api", self._core_versions)
        application.router.add_get("/apis", self._groups)
        application.router.add_get("/api/v1", self._resources)
        application.router.add_get("/apis/{group}/{version}", self._resources)
        application.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review)
        application.router.add_route(
            "*", "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases{name:.*}", self._lease
        )
        for prefix in ("/api/{version}", "/apis/{group}/{version}"):
            application.router.add_get(prefix + "/{plural}", self._collection)
            application.router.add_get(prefix + "/namespaces/{namespace}/{plural}", self._collection)
        application.router.add_route("*", "/{rest:.*}", self._unknown)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.server = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.cut()
            await runner.cleanup()

    def write_kubeconfig(self, path: Path, token: str = "good") -> Path:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": self.server}}],
                    "users": [{"name": "u", "user": {"token": token}}],
                }
            )
        )
        return path

    def put(self, plural: str, namespace: str, name: str, **fields: Any) -> dict[str, Any]:
        """Creates or changes an object, and tells the watches."""
        self.version += 1
        at = (plural, namespace, name)
        before = self.objects.get(at)
        api_version, kind = _kind_of(plural)
        metadata = {
            "name": name,
            "uid": (before or {}).get("metadata", {}).get("uid") or f"uid-{self.version}",
            "resourceVersion": str(self.version),
            "managedFields": [{"manager": "somebody"}],
            **({"namespace": namespace} if namespace else {}),
            **fields.pop("metadata", {}),
        }
        found = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}
        self.objects[at] = found
        self._tell(plural, "ADDED" if before is None else "MODIFIED", found)
        return found

    def delete(self, plural: str, namespace: str, name: str) -> None:
        self.version += 1
        found = self.objects.pop((plural, namespace, name))
        found = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}
        self._tell(plural, "DELETED", found)

    def cut(self) -> None:
        """Ends every open watch."""
        for _, queue in self._watches:
            queue.put_nowait(None)

    def expire(self, plural: str) -> None:
        """410 Gone: the version from which the watch would go on is too old."""
        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "metadata": {}}
        self._tell(plural, "ERROR", gone)

    def watches(self, plural: str) -> int:
        return sum(1 for kind, _ in self._watches if kind == plural)

    # --- inside -------------------------------------------------------------------------------------------------
    def _tell(self, plural: str, event: str, found: dict[str, Any]) -> None:
        if plural not in self.mute:
            for kind, queue in self._watches:
                if kind == plural:
                    queue.put_nowait({"type": event, "object": found})

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests[f"{request.method} {request.path}"] += 1
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self.tokens:
            return _status(401, "Unauthorized")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _core_versions(self, _: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def _groups(self, _: web.Request) -> web.Response:
        groups = []
        for api_version, plurals in PLURALS.items():
            group, slash, version = api_version.partition("/")
            if slash and not plurals.keys() <= self.undiscovered:
                served = {"groupVersion": api_version, "version": version}
                groups.append({"name": group, "versions": [served], "preferredVersion": served})
        return web.json_response({"kind": "APIGroupList", "groups": groups})

    async def _resources(self, request: web.Request) -> web.Response:
        group = request.match_info.get("group")
        api_version = f"{group}/{request.match_info['version']}" if group else "v1"
        resources = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": plural not in CLUSTER_SCOPED,
                "kind": kind,
                "verbs": ["get", "list", "watch", "create", "patch", "delete"],
            }
            for plural, kind in PLURALS.get(api_version, {}).items()
            if plural not in self.undiscovered
        ]
        return web.json_response(
            {"kind": "APIResourceList", "groupVersion": api_version, "resources": resources}
        )

    async def _review(self, request: web.Request) -> web.Response:
        asked = (await request.json())["spec"]["resourceAttributes"]
        allowed = f"{asked['verb']} {asked['resource']}" not in self.denied
        return web.json_response({"status": {"allowed": allowed}}, status=201)

    async def _lease(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(self.lease) if self.lease else _status(404, "NotFound")
        self.version += 1
        body = await request.json()
        body["metadata"]["resourceVersion"] = str(self.version)
        self.lease = body
        return web.json_response(body)

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace", "")
        if codes := self.refuse.get(plural):
            return _status(codes.pop(0), "Refused")
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        items = [
            {k: v for k, v in found.items() if k not in ("apiVersion", "kind")}
            for (kind, where, _), found in self.objects.items()
            if kind == plural and namespace in ("", where)
        ]
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", "0"))
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        if plural not in self.mute:
            for (kind, _, _), found in list(self.objects.items()):
                if kind == plural and int(found["metadata"]["resourceVersion"]) > since:
                    queue.put_nowait({"type": "MODIFIED", "object": found})
        entry = (plural, queue)
        self._watches.append(entry)
        answer = web.StreamResponse()
        try:
            await answer.prepare(request)
            while (event := await queue.get()) is not None:
                await answer.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.remove(entry)
        return answer

    async def _unknown(self, request: web.Request) -> web.Response:
        return _status(404, f"NotFound {request.path}")


def _kind_of(plural: str) -> tuple[str, str]:
    return next((version, kinds[plural]) for version, kinds in PLURALS.items() if plural in kinds)


def _status(code: int, reason: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code
    )
