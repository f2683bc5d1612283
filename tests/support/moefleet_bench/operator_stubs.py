"""Stubs for a thousand replicas and one gateway in one process: `python -m moefleet_bench.operator_stubs KUBECONFIG`.

The rig of the cluster tests has a server for each replica and lets it start by a write of its own, which is right for
stories about single replicas. Here every pod has an address of its own, all addresses lead to this process, and the only
thing that it asks of the API server is one watch, as a gateway has it; so what is measured is the operator.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.gateway.v1 import gateway_pb2_grpc as gw_rpc
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet.replica.v1 import replica_pb2_grpc as rep_rpc

# As the contract has them.
CONTROL_PORT = 8501
GATEWAY_PORT = 8502
DEMAND_EVERY_S = 5.0
# Changes of so long go into one message; the real gateway waits for Envoy's acknowledgement meanwhile.
GATHER_S = 0.02
INCARNATION = "1"
PODS = "/api/v1/pods"
# Pods of Deployments whose gate we set ourselves, since they have no operator.
PEER_APP = "moefleet-bench"
WATCHED = f"app.kubernetes.io/name in (moefleet-replica,{PEER_APP})"
GATE = "moefleet.io/gateway-registered"
# As many as the operator has.
PATCHERS = 32


class AnyReplica(rep_rpc.ReplicaServiceServicer):
    """Answers as a serving replica without work, whichever address was called: the pod uid stays empty."""

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[rep.WatchLoadResponse]:
        sample = rep.LoadSample(incarnation=INCARNATION, state=rep.REPLICA_STATE_SERVING)
        while True:
            sample.seq += 1
            yield rep.WatchLoadResponse(sample=sample)
            await asyncio.sleep((request.interval_ms or 1000) / 1000)

    async def Drain(self, request: Any, context: Any) -> rep.DrainResponse:
        return rep.DrainResponse(state=rep.REPLICA_STATE_DRAINED)

    async def Resume(self, request: Any, context: Any) -> rep.ResumeResponse:
        return rep.ResumeResponse(state=rep.REPLICA_STATE_SERVING)


class Registrar(gw_rpc.GatewayServiceServicer):
    """Registers every replica whose containers are ready; whoever watches gets all and then the changes."""

    def __init__(self) -> None:
        self._registered: set[str] = set()
        self._version = 0
        self._changed = asyncio.Event()
        self._gated: set[str] = set()
        # Paths of the status of pods whose gate is to be set.
        self.to_gate: asyncio.Queue[str] = asyncio.Queue()

    def put(self, pod: Any, gone: bool = False) -> None:
        uid = pod["metadata"]["uid"]
        well = not gone and _is_well(pod)
        if pod["metadata"]["labels"]["app.kubernetes.io/name"] == PEER_APP:
            if well and uid not in self._gated:
                self._gated.add(uid)
                self.to_gate.put_nowait(
                    f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
                )
            return
        if well == (uid in self._registered):
            return
        (self._registered.add if well else self._registered.discard)(uid)
        self._changed.set()

    async def WatchDemand(self, request: Any, context: Any) -> AsyncIterator[gw.WatchDemandResponse]:
        seq = 0
        while True:
            seq += 1
            sample = gw.DemandSample(incarnation=INCARNATION, seq=seq, time_s=time.time())
            yield gw.WatchDemandResponse(sample=sample)
            await asyncio.sleep(DEMAND_EVERY_S)

    async def WatchEndpoints(self, request: Any, context: Any) -> AsyncIterator[gw.WatchEndpointsResponse]:
        told: set[str] = set()
        full = True
        while True:
            self._changed.clear()
            now = set(self._registered)
            self._version += 1
            yield gw.WatchEndpointsResponse(
                incarnation=INCARNATION,
                version=self._version,
                full=full,
                endpoints=[
                    gw.Endpoint(pod_uid=uid, state=gw.ENDPOINT_STATE_REGISTERED) for uid in now - told
                ],
                gone_pod_uids=[] if full else sorted(told - now),
            )
            told, full = now, False
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)


async def watch(config: Any, registrar: Registrar) -> None:
    """`config` is a kubeconfig. LIST once, then watch, until the server ends it; then again."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
    headers = {"Authorization": f"Bearer {user['token']}"}
    select = {"labelSelector": WATCHED}
    # A pod is 10 kB; a line is one event.
    async with (
        aiohttp.ClientSession(cluster["server"], headers=headers, read_bufsize=2**20) as http,
        asyncio.TaskGroup() as patchers,
    ):
        for _ in range(PATCHERS):
            patchers.create_task(_set_gates(http, trust, registrar))
        while True:
            async with http.get(PODS, params=select, ssl=trust) as answer:
                listed = await answer.json()
            for pod in listed["items"]:
                registrar.put(pod)
            since = {**select, "watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
            unlimited = aiohttp.ClientTimeout(total=None)
            async with http.get(PODS, params=since, ssl=trust, timeout=unlimited) as stream:
                async for line in stream.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        break
                    registrar.put(event["object"], gone=event["type"] == "DELETED")


async def _set_gates(http: aiohttp.ClientSession, trust: ssl.SSLContext, registrar: Registrar) -> None:
    kind = {"Content-Type": "application/strategic-merge-patch+json"}
    while True:
        path = await registrar.to_gate.get()
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": GATE, "status": "True", "reason": "Registered", "lastTransitionTime": since}
        body = json.dumps({"status": {"conditions": [condition]}})
        async with http.patch(path, data=body, headers=kind, ssl=trust) as answer:
            answer.raise_for_status()
            await answer.read()


def _is_well(pod: Any) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or ()}
    return (
        conditions.get("ContainersReady") == "True"
        and conditions.get("moefleet.io/Draining") != "True"
        and not pod["metadata"].get("deletionTimestamp")
    )


async def _serve(config: Any) -> None:
    registrar = Registrar()
    server = grpc.aio.server()
    rep_rpc.add_ReplicaServiceServicer_to_server(AnyReplica(), server)  # type: ignore[no-untyped-call]
    gw_rpc.add_GatewayServiceServicer_to_server(registrar, server)  # type: ignore[no-untyped-call]
    for port in (CONTROL_PORT, GATEWAY_PORT):
        server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    await watch(config, registrar)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text())))
