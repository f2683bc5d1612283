"""Ports for servers that are told theirs before they start."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

FIRST_PORT = 10_000
PORT_TRIES = 100


def free_port(host: str) -> int:
    """A port of `host` that nobody listens on, outside the range from which the kernel takes ports of its own choice.

    A port that the kernel chose (bind to 0) is free only until the next client connects from it: tests with hundreds of
    connections met that. Drawn at random, so that two runs side by side do not walk the same row.
    """
    for _ in range(PORT_TRIES):
        port = random.SystemRandom().randrange(FIRST_PORT, first_ephemeral_port())
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port
    raise RuntimeError(f"no free port of {host} found in {PORT_TRIES} tries from {FIRST_PORT} on")


def first_ephemeral_port() -> int:
    """Where the kernel's own range begins (Linux)."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
