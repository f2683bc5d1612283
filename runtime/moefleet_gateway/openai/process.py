"""The edge's part of the picker process: two more sockets for Envoy, and the care for SMG."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from moefleet_gateway.aborts import Aborts
from moefleet_gateway.credentials import Credentials
from moefleet_gateway.ext_proc import Picker
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.openai.edge import Edge
from moefleet_gateway.openai.inner import Reader
from moefleet_gateway.openai.registration import Registration
from moefleet_gateway.openai.served import ServedModels
from moefleet_gateway.openai.smg import Smg
from moefleet_gateway.openai.tokenizers import Store
from moefleet_gateway.picking.refusals import Refusal
from moefleet_gateway.settings import ENVOY_BUFFER_BYTES, OpenAI, Settings
from moefleet_gateway.streams import Listener

# A whole request in one message, as large as Envoy buffers, and its envelope.
_MESSAGE_MAX_BYTES = ENVOY_BUFFER_BYTES + (1 << 20)


@asynccontextmanager
async def openai_edge(
    gateway: Gateway, aborts: Aborts, credentials: Credentials, settings: Settings, openai: OpenAI
) -> AsyncIterator[None]:
    key = id_key(credentials, settings.pod_uid)
    served = ServedModels()
    edge = Edge(gateway, served, key)
    reader = Reader(key)

    def refused(engine_request_id: str, refusal: Refusal) -> None:
        edge.refused(reader.edge_id(engine_request_id), refusal)

    edges = Listener(edge.open, _MESSAGE_MAX_BYTES)
    inner = Listener(Picker(gateway, aborts, reader, refused).open, _MESSAGE_MAX_BYTES)
    await edges.start(settings.edge_socket)
    await inner.start(settings.inner_picks_socket)
    smg = Smg(openai.smg)
    registration = Registration(gateway, smg, Store(settings.tokenizers_dir), served, openai.inner)
    task = asyncio.create_task(registration.run(), name="openai")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await smg.close()
        await asyncio.gather(edges.close(), inner.close())


def id_key(credentials: Credentials, pod_uid: str) -> bytes:
    """Of this pod alone: its SMG sends to its own picker. The same after a restart of the picker, so that requests on their
    way through SMG are still known; by hand, without the release's key, a new one each time."""
    if not credentials.checked:
        return secrets.token_bytes(32)
    return hmac.new(
        credentials.gateway_token().encode(), f"openai:{pod_uid}".encode(), hashlib.sha256
    ).digest()
