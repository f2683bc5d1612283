"""The door into a cluster's network, on loopback: bytes, ends of stream, and closed doors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from moefleet_cluster.forward import serve


@asynccontextmanager
async def door_to(host: str, port: int) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(serve(listener, host, port))
    try:
        yield listener.getsockname()[1]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_answers_arrive_after_the_caller_has_finished_sending() -> None:
    async def counts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await reader.read()  # to the caller's end of stream
        writer.write(f"{len(body)} bytes".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(counts, "127.0.0.1", 0) as far:
        async with door_to("127.0.0.1", far.sockets[0].getsockname()[1]) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * 1_000_000)
            writer.write_eof()
            assert await reader.read() == b"1000000 bytes"
            writer.close()


async def test_a_closed_port_behind_the_door_ends_the_connection_and_not_the_door() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    async with door_to("127.0.0.1", closed) as port:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
