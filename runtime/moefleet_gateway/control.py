"""GatewayService: demand and endpoints for the operator, on a port of its own, with the credential."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from moefleet.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from moefleet_gateway.credentials import Credentials, bearer_matches
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.demand import TPOT_BOUNDS_S, TTFT_BOUNDS_S, Ring

# in_flight of withdrawn endpoints is told at least this often while it changes.
IN_FLIGHT_EVERY_S = 0.25


class DemandLog:
    """Takes a sample when told to; the watchers of the control port read it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # As bytes: 50 fleets for an hour are 15 MiB so, and ten times that as messages.
        self._ring: Ring[bytes] = Ring()
        self._new = asyncio.Condition()

    async def take(self) -> None:
        async with self._new:
            sample = self._sample()
            sample.seq = self._ring.last_seq + 1
            self._ring.push(sample.SerializeToString())
            self._new.notify_all()

    async def after(self, seq: int) -> list[tuple[int, bytes]]:
        """Samples after `seq`; waits for the next when there are none."""
        async with self._new:
            await self._new.wait_for(lambda: self._ring.last_seq > seq)
            return self._ring.after(seq)

    def _sample(self) -> Any:
        gateway, now = self._gateway, self._gateway.now()
        sample = gateway_pb2.DemandSample(
            gateway_uid=gateway.gateway_uid,
            incarnation=gateway.incarnation,
            time_s=time.time(),
            endpoints_version_applied=gateway.core.endpoints.acknowledged,
            ttft_bounds_s=TTFT_BOUNDS_S,
            tpot_bounds_s=TPOT_BOUNDS_S,
        )
        for lane in gateway.core.lanes.values():
            fleet, demand, queue = lane.fleet, lane.demand, lane.queue_now(now)
            out = sample.fleets.add(
                namespace=fleet.namespace,
                fleet=fleet.name,
                fleet_uid=fleet.uid,
                arrivals=demand.arrivals,
                retries=demand.retries,
                shed=demand.shed,
                held=demand.held,
                prompt_tokens=demand.prompt_tokens,
                predicted_cached_tokens=demand.predicted_cached_tokens,
                predicted_output_tokens=demand.predicted_output_tokens,
                served_requests=demand.served_requests,
                served_prompt_tokens=demand.served_prompt_tokens,
                served_cached_tokens=demand.served_cached_tokens,
                served_output_tokens=demand.served_output_tokens,
                failed=demand.failed,
                queue_requests=queue.requests,
                queue_prompt_tokens=queue.prompt_tokens,
                queue_oldest_s=queue.oldest_s,
                ttft_counts=demand.ttft_counts,
                tpot_counts=demand.tpot_counts,
                in_flight=max(0, lane.in_flight),
            )
            for (prompt, output), count in sorted(demand.lengths.items()):
                out.lengths.add(prompt_log2=prompt, output_log2=output, count=count)
        return sample


class Control(gateway_pb2_grpc.GatewayServiceServicer):
    def __init__(self, gateway: Gateway, demand: DemandLog, credentials: Credentials) -> None:
        self._gateway = gateway
        self._demand = demand
        self._credentials = credentials

    async def WatchDemand(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        await self._check(context)
        seen = request.since_seq if request.incarnation == self._gateway.incarnation else 0
        while True:
            for seq, sample in await self._demand.after(seen):
                seen = seq
                yield gateway_pb2.WatchDemandResponse(sample=gateway_pb2.DemandSample.FromString(sample))

    async def WatchEndpoints(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        await self._check(context)
        gateway = self._gateway
        changed = gateway.subscribe()
        told: dict[str, tuple[bool, int]] | None = None
        told_version = -1
        try:
            while True:
                changed.clear()
                states, version = gateway.endpoint_states(), gateway.core.endpoints.acknowledged
                # in_flight of a registered endpoint is no news by itself: it changes with every request.
                news = [
                    uid
                    for uid, state in states.items()
                    if told is None
                    or uid not in told
                    or told[uid][0] != state[0]
                    or (not state[0] and told[uid] != state)
                ]
                gone = [] if told is None else [uid for uid in told if uid not in states]
                if told is None or news or gone or version != told_version:
                    yield gateway_pb2.WatchEndpointsResponse(
                        gateway_uid=gateway.gateway_uid,
                        incarnation=gateway.incarnation,
                        version=version,
                        full=told is None,
                        endpoints=[_endpoint(uid, states[uid]) for uid in news],
                        gone_pod_uids=gone,
                    )
                    told, told_version = states, version
                try:
                    # A timeout is the step at which in_flight of withdrawn endpoints is looked at.
                    async with asyncio.timeout(IN_FLIGHT_EVERY_S):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            gateway.unsubscribe(changed)

    async def _check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if not self._credentials.checked:
            return
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not bearer_matches(str(sent), self._credentials.gateway_token()):
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "the gateway's control port needs the release's credential"
            )


def _endpoint(uid: str, state: tuple[bool, int]) -> Any:
    registered, in_flight = state
    return gateway_pb2.Endpoint(
        pod_uid=uid,
        state=gateway_pb2.ENDPOINT_STATE_REGISTERED if registered else gateway_pb2.ENDPOINT_STATE_WITHDRAWN,
        in_flight=in_flight,
    )
