"""WatchLoad on every replica: its load, and whether it is there at all. A broken stream is told at once."""

from __future__ import annotations

import asyncio

import grpc
import structlog
from moefleet.replica.v1 import replica_pb2, replica_pb2_grpc

from moefleet_gateway.credentials import Credentials
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.facts import Load, Replica

# All replicas together may send so many samples a second to this picker (about 5 % of a core).
SAMPLES_PER_S = 500
INTERVAL_MIN_MS, INTERVAL_MAX_MS = 250, 5000
# No sample for this long is a broken stream too (a node that lost power sends no reset). A reset is knowledge and
# withdraws at once; silence is a guess. Four samples, and at least 3 s: a replica, or this picker, that waits for a
# processor is silent for a second or two and serves on, and to withdraw all replicas of a busy node at once would
# send their work to the others. The price: for 3 s new requests still go to a replica that is stopped, and wait.
SILENCE_MIN_S = 3.0
SILENCE_SAMPLES = 4
# A pod that is starting answers soon; one that is unreachable for long is asked every few seconds.
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
CONNECT_TIMEOUT_S = 3.0

_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)
log = structlog.get_logger()


def interval_ms(replicas: int) -> int:
    return max(INTERVAL_MIN_MS, min(INTERVAL_MAX_MS, replicas * 1000 // SAMPLES_PER_S))


class Loads:
    """One task a replica. `tried` tells when every replica known so far had its first answer or failure."""

    def __init__(self, gateway: Gateway, credentials: Credentials) -> None:
        self._gateway = gateway
        self._credentials = credentials
        self._tasks: dict[str, tuple[Replica, asyncio.Task[None]]] = {}
        self._untried: set[str] = set()
        self.all_tried = asyncio.Event()
        self.all_tried.set()
        gateway.load_wanted = self.want
        gateway.load_unwanted = self.unwant

    def want(self, replica: Replica) -> None:
        if not replica.control:
            return
        known = self._tasks.get(replica.uid)
        if known is not None:
            if known[0].control == replica.control:
                return
            known[1].cancel()
        self._untried.add(replica.uid)
        self.all_tried.clear()
        task = asyncio.create_task(self._watch(replica), name=f"load-{replica.name}")
        self._tasks[replica.uid] = (replica, task)

    def unwant(self, uid: str) -> None:
        known = self._tasks.pop(uid, None)
        self._tried(uid)
        if known is not None:
            known[1].cancel()

    def _tried(self, uid: str) -> None:
        self._untried.discard(uid)
        if not self._untried:
            self.all_tried.set()

    async def close(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, replica: Replica) -> None:
        delay_s = RETRY_MIN_S
        while True:
            try:
                async with grpc.aio.insecure_channel(replica.control, options=_CHANNEL_OPTIONS) as channel:
                    await self._stream(channel, replica)
                delay_s = RETRY_MIN_S
            except (TimeoutError, grpc.aio.AioRpcError, OSError, ValueError) as error:
                code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
                log.debug("load_stream_failed", pod=replica.name, uid=replica.uid, error=code)
                if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
                    log.warning("load_stream_refused", pod=replica.name, uid=replica.uid, error=code)
            self._tried(replica.uid)
            self._gateway.put_load(replica.uid, None)
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def _stream(self, channel: grpc.aio.Channel, replica: Replica) -> None:
        every_ms = interval_ms(len(self._tasks))
        silence_s = max(SILENCE_MIN_S, SILENCE_SAMPLES * every_ms / 1000)
        token = self._credentials.replica_token(replica.fleet_uid)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call = replica_pb2_grpc.ReplicaServiceStub(channel).WatchLoad(  # type: ignore[no-untyped-call]
            replica_pb2.WatchLoadRequest(interval_ms=every_ms, prefixes=True), metadata=metadata
        )
        wait_s = CONNECT_TIMEOUT_S
        try:
            while True:
                async with asyncio.timeout(wait_s):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    return
                wait_s = silence_s
                sample = response.sample
                self._tried(replica.uid)
                self._gateway.put_load(
                    replica.uid,
                    Load(
                        pod_uid=sample.pod_uid,
                        serving=sample.state == replica_pb2.REPLICA_STATE_SERVING,
                        state=replica_pb2.ReplicaState.Name(sample.state)
                        .removeprefix("REPLICA_STATE_")
                        .title(),
                        received_s=self._gateway.now(),
                        active=sample.active,
                        queued=sample.queued,
                        prefill_tokens=sample.outstanding_prefill_tokens,
                        decode_tokens=sample.outstanding_decode_tokens,
                    ),
                )
                if response.HasField("prefixes") and sample.pod_uid == replica.uid:
                    changes = response.prefixes
                    self._gateway.put_prefixes(replica.uid, changes.reset, changes.stored, changes.removed)
        finally:
            call.cancel()
