"""One long stream to one control port, held for ever: reconnects with bounded backoff, and notices silence."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

_log = structlog.get_logger(__name__)

# First wait after a break, then doubled up to the most. A replica that restarts is back in seconds; one that is gone is taken
# off the list by the watch.
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 10.0
# A wrong credential does not heal by itself within seconds.
BACKOFF_REFUSED_S = 30.0
# A stream that lived so long starts again at the first wait.
HEALTHY_AFTER_S = 30.0
# Opening a connection to a pod that answers takes milliseconds; one without a route would take minutes.
CONNECT_TIMEOUT_S = 5.0
# A LoadSample is below 1 kB, a DemandSample of 1,000 fleets below 500 kB, a full endpoints message of 10,000 pods below 1 MB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # The pod network is ours: no proxy from the environment.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


class StreamEndedError(Exception):
    """These streams have no end of their own: the other side goes away."""


class SilenceError(Exception):
    """The stream is open, but nothing came for longer than its sender promises."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a stream is about, for logs and for people: `why` is empty while it is well."""

    uid: str
    address: str
    why: str = "not connected yet"


async def hold(
    uid: str,
    address: str,
    attend: Callable[[grpc.aio.Channel], Awaitable[None]],
    on_broken: Callable[[str], None],
    *,
    clock: Callable[[], float],
) -> None:
    """Runs `attend` on a channel to the address, again and again, until cancelled. It is never expected to return."""
    failures = 0
    while True:
        began_s = clock()
        refused = False
        try:
            async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await channel.channel_ready()
                await attend(channel)
            why = "the other side ended the stream"
        except grpc.aio.AioRpcError as error:
            refused = error.code() in _REFUSED
            why = f"{error.code().name}: {error.details()}"
        except TimeoutError:
            why = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        except (SilenceError, StreamEndedError, OSError) as error:
            why = str(error)
        except Exception as error:
            # A message that we cannot digest must not end the telemetry of all others.
            _log.exception("telemetry_stream_failed", uid=uid, address=address)
            why = f"{type(error).__name__}: {error}"
        failures = 1 if clock() - began_s >= HEALTHY_AFTER_S else failures + 1
        on_broken(why)
        await asyncio.sleep(backoff_s(uid, failures, refused=refused))


def backoff_s(uid: str, failures: int, *, refused: bool = False) -> float:
    """Doubles, bounded, and 75 to 100 % of that by uid and try: a thousand streams that broke together come back apart."""
    full_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_MAX_S)
    if refused:
        full_s = BACKOFF_REFUSED_S
    spread = zlib.crc32(f"{uid}/{failures}".encode()) / 2**32
    return full_s * (0.75 + 0.25 * spread)


async def listen(call: AsyncIterator[Any], silence_s: float | None) -> AsyncIterator[Any]:
    """Messages of a stream; SilenceError when the next one takes too long."""
    messages = call.__aiter__()
    while True:
        try:
            async with asyncio.timeout(silence_s):
                message = await messages.__anext__()
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SilenceError(f"nothing for {silence_s:g} s") from None
        yield message


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()
