"""A door from the host into a cluster's network: connections to a local port come out inside the namespace.

`python -m moefleet_cluster.forward PID HOST:PORT LISTEN_PORT_FILE`. The listening socket is made in the host's network namespace;
then the process moves into the namespace of PID, where its connections start. Sockets stay where they were made.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNET = 0x40000000
CHUNK_BYTES = 1 << 16


def enter_network_of(pid: int) -> None:
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"cannot enter the network of process {pid}: {os.strerror(code)}")


async def serve(listener: socket.socket, host: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()  # nobody listens there: the caller's connection ends
            return
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction until its end, then closes that direction only: the other may still have answers."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def run(pid: int, target: str, listen_port: int, opened: Callable[[int], object]) -> None:
    """Forwards until the process ends; `opened` learns the local port."""
    host, _, port = target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", listen_port))
    enter_network_of(pid)
    opened(listener.getsockname()[1])
    asyncio.run(serve(listener, host, int(port)))


def main() -> None:
    pid, target, port_file = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

    def opened(port: int) -> None:
        partial = port_file.with_suffix(".partial")
        partial.write_text(str(port))
        partial.rename(port_file)

    run(pid, target, 0, opened)


if __name__ == "__main__":
    main()
