"""What answers at the addresses of kwok's pods: a control port for each replica, and one gateway that registers them.

A pod that kwok runs has no process. This world watches the pods, gives each an address of its own on the loopback
interface, listens there as a replica would, and only then lets kwok make it ready.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.gateway.v1 import gateway_pb2_grpc as gw_rpc
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet.replica.v1 import replica_pb2_grpc as rep_rpc

# As the contract has them.
CONTROL_PORT = 8501
GATEWAY_PORT = 8502
# How often the pods are looked at: a pod waits for it once in its life.
LOOK_EVERY_S = 0.1
BEAT_S = 0.5

_NUMBERS = count(1)


def _new_ip() -> str:
    """127.<pid>.<pid>.<n>: test runs beside each other do not meet."""
    pid, number = os.getpid(), next(_NUMBERS)
    return f"127.{pid % 120 + 130}.{pid // 120 % 16 * 16 + number // 250 % 16}.{number % 250 + 1}"


@dataclass
class StubReplica:
    uid: str
    name: str
    token: str | None
    ip: str = field(default_factory=_new_ip)
    state: rep.ReplicaState = rep.REPLICA_STATE_SERVING
    active: int = 0
    # Requests that have ended in it, and those of them that it failed.
    ended: int = 0
    failed: int = 0
    drains: list[str] = field(default_factory=list)
    resumes: int = 0
    refused_calls: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    server: grpc.aio.Server | None = None

    def tell(self) -> None:
        if self.state == rep.REPLICA_STATE_DRAINING and self.active == 0:
            self.state = rep.REPLICA_STATE_DRAINED
        self.changed.set()
        self.changed = asyncio.Event()


class _ReplicaService(rep_rpc.ReplicaServiceServicer):
    def __init__(self, replica: StubReplica) -> None:
        self.replica = replica

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[rep.WatchLoadResponse]:
        await self._check(context)
        replica, seq = self.replica, 0
        while True:
            seq += 1
            yield rep.WatchLoadResponse(
                sample=rep.LoadSample(
                    pod_uid=replica.uid,
                    incarnation=replica.uid,
                    seq=seq,
                    state=replica.state,
                    active=replica.active,
                    outcomes=rep.Outcomes(ended=replica.ended, failed=replica.failed),
                )
            )
            try:
                await asyncio.wait_for(replica.changed.wait(), BEAT_S)
            except TimeoutError:
                continue

    async def Drain(self, request: Any, context: Any) -> rep.DrainResponse:
        await self._check(context)
        if request.pod_uid != self.replica.uid:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is {self.replica.uid}")
        self.replica.drains.append(request.reason)
        if self.replica.state == rep.REPLICA_STATE_SERVING:
            self.replica.state = rep.REPLICA_STATE_DRAINING
        self.replica.tell()
        return rep.DrainResponse(state=self.replica.state, active=self.replica.active)

    async def Resume(self, request: Any, context: Any) -> rep.ResumeResponse:
        await self._check(context)
        self.replica.resumes += 1
        self.replica.state = rep.REPLICA_STATE_SERVING
        self.replica.tell()
        return rep.ResumeResponse(state=self.replica.state)

    async def _check(self, context: Any) -> None:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.replica.token is not None and sent != f"Bearer {self.replica.token}":
            self.replica.refused_calls += 1
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")


class _GatewayService(gw_rpc.GatewayServiceServicer):
    def __init__(self, world: StubWorld) -> None:
        self.world = world

    async def WatchDemand(self, request: Any, context: Any) -> AsyncIterator[gw.WatchDemandResponse]:
        seq = 0
        while True:
            seq += 1
            yield gw.WatchDemandResponse(
                sample=gw.DemandSample(
                    gateway_uid=self.world.gateway_uid,
                    incarnation="1",
                    seq=seq,
                    time_s=time.time(),
                    fleets=[
                        gw.FleetDemand(
                            namespace=namespace,
                            fleet=fleet,
                            arrivals=arrivals,
                            prompt_tokens=100 * arrivals,
                            predicted_output_tokens=10 * arrivals,
                            queue_requests=waiting,
                        )
                        for (namespace, fleet), (arrivals, waiting) in self.world.called.items()
                    ],
                )
            )
            await asyncio.sleep(BEAT_S)

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncIterator[gw.WatchEndpointsResponse]:
        version = 0
        while True:
            version += 1
            yield gw.WatchEndpointsResponse(
                gateway_uid=self.world.gateway_uid,
                incarnation="1",
                version=version,
                full=True,
                endpoints=[
                    gw.Endpoint(pod_uid=uid, state=gw.ENDPOINT_STATE_REGISTERED)
                    for uid in self.world.registered
                ],
            )
            await asyncio.sleep(LOOK_EVERY_S)


class StubWorld:
    """`api(path, method, body, content_type)` talks to the API server as administrator. Use it as a context."""

    def __init__(
        self, api: Callable[..., Any], namespaces: tuple[str, ...], key: bytes | None = None
    ) -> None:
        self._api = api
        self._namespaces = namespaces
        self._key = key
        self.replicas: dict[str, StubReplica] = {}
        # Uids that the gateway would choose: ready containers, not draining.
        self.registered: set[str] = set()
        # Every pod uid ever seen, with the pod's name: what was created.
        self.seen: dict[str, str] = {}
        # A replica that comes up is held back while this is False.
        self.let_start = True
        # What the gateway has counted: (namespace, fleet) -> requests that arrived, and those that wait.
        self.called: dict[tuple[str, str], tuple[int, int]] = {}
        self.problems: list[str] = []
        self.gateway_uid = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stubs", daemon=True)
        self._watcher: asyncio.Future[None] | None = None
        self._gateway: grpc.aio.Server | None = None

    def __enter__(self) -> StubWorld:
        self._thread.start()
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.cancel()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def add_gateway(self, namespace: str) -> str:
        """A gateway pod that kwok runs, and the service behind its address. Returns its name."""
        ip = _new_ip()
        asyncio.run_coroutine_threadsafe(self._serve_gateway(ip), self._loop).result(10)
        labels = {"app.kubernetes.io/name": "moefleet", "app.kubernetes.io/component": "gateway"}
        pod = self._api(
            f"/api/v1/namespaces/{namespace}/pods",
            "POST",
            {
                "metadata": {
                    "name": "gateway-0",
                    "labels": labels,
                    "annotations": {"fake.moefleet.test/pod-ip": ip},
                },
                "spec": {"containers": [{"name": "picker", "image": "none"}]},
            },
        )
        self.gateway_uid = str(pod["metadata"]["uid"])
        return str(pod["metadata"]["name"])

    def set_active(self, name: str, active: int) -> None:
        """Streams that run in the replica of this name."""

        def change() -> None:
            for replica in self.replicas.values():
                if replica.name == name:
                    replica.active = active
                    replica.tell()

        self._loop.call_soon_threadsafe(change)

    def serve_requests(self, revision: str, ended: int, failed: int) -> None:
        """So many requests end in each replica of this revision, from now on."""

        def change() -> None:
            for replica in self.replicas.values():
                if f"-{revision}-" in replica.name:
                    replica.ended += ended
                    replica.failed += failed
                    replica.tell()

        self._loop.call_soon_threadsafe(change)

    def by_name(self, name: str) -> StubReplica:
        return next(replica for replica in self.replicas.values() if replica.name == name)

    # --- inside -------------------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        while True:
            for namespace in self._namespaces:
                try:
                    await self._look(namespace)
                except Exception as error:
                    self.problems.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, namespace: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector=app.kubernetes.io/name%3Dmoefleet-replica"
        items = (await asyncio.to_thread(self._api, path))["items"]
        there = set()
        for pod in items:
            uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
            there.add(uid)
            self.seen[uid] = name
            if uid not in self.replicas and self.let_start and not pod["metadata"].get("deletionTimestamp"):
                await self._host(namespace, pod)
            self._register(pod)
        for uid in set(self.replicas) - there:
            if (gone := self.replicas[uid]).name in self.seen.values() and gone.server is not None:
                await gone.server.stop(0)
                gone.server = None
            self.registered.discard(uid)

    def _register(self, pod: Any) -> None:
        conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
        well = (
            conditions.get("ContainersReady") == "True" and conditions.get("moefleet.io/Draining") != "True"
        )
        if well and not pod["metadata"].get("deletionTimestamp"):
            self.registered.add(pod["metadata"]["uid"])
        else:
            self.registered.discard(pod["metadata"]["uid"])

    async def _host(self, namespace: str, pod: Any) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        owner = pod["metadata"]["ownerReferences"][0]["uid"]
        token = None
        if self._key is not None:
            token = hmac.new(self._key, f"replica:{owner}".encode(), hashlib.sha256).hexdigest()
        replica = StubReplica(uid, name, token)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rep_rpc.add_ReplicaServiceServicer_to_server(_ReplicaService(replica), server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"{replica.ip}:{CONTROL_PORT}")
        await server.start()
        replica.server = server
        self.replicas[uid] = replica
        annotations = {"fake.moefleet.test/pod-ip": replica.ip, "fake.moefleet.test/ready-after": "0s"}
        await asyncio.to_thread(
            self._api,
            f"/api/v1/namespaces/{namespace}/pods/{name}",
            "PATCH",
            {"metadata": {"annotations": annotations}},
            "application/merge-patch+json",
        )

    async def _serve_gateway(self, ip: str) -> None:
        self._gateway = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        gw_rpc.add_GatewayServiceServicer_to_server(_GatewayService(self), self._gateway)  # type: ignore[no-untyped-call]
        self._gateway.add_insecure_port(f"{ip}:{GATEWAY_PORT}")
        await self._gateway.start()

    async def _close(self) -> None:
        servers = [replica.server for replica in self.replicas.values() if replica.server is not None]
        if self._gateway is not None:
            servers.append(self._gateway)
        await asyncio.gather(*(server.stop(0) for server in servers))
