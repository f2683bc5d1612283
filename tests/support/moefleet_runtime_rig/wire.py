"""A few bytes of HTTP/2, for what a gRPC client library does not show: whether an answer is one trailers-only frame."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf.message import Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


class Frame(NamedTuple):
    kind: int
    ends_stream: bool


async def first_response_frames(
    address: str, path: str, request: Message, metadata: Mapping[str, str]
) -> list[Frame]:
    """The frames of stream 1 in an answer, until the stream ends."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        **metadata,
    }
    block = b"".join(_literal(name, value) for name, value in headers.items())
    body = request.SerializeToString()
    writer.write(PREFACE + _frame(SETTINGS, 0, 0, b""))
    writer.write(_frame(HEADERS, END_HEADERS, 1, block))
    writer.write(_frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(body)) + body))
    frames: list[Frame] = []
    while True:
        head = await reader.readexactly(9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        payload = await reader.readexactly(size)
        if kind == SETTINGS and not flags & ACK:
            writer.write(_frame(SETTINGS, ACK, 0, b""))
        if kind == PING and not flags & ACK:
            writer.write(_frame(PING, ACK, 0, payload))
        if stream == 1 and kind in (DATA, HEADERS, RST_STREAM):
            frames.append(Frame(kind, bool(flags & END_STREAM)))
            if flags & END_STREAM or kind == RST_STREAM:
                writer.close()
                return frames


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """HPACK: literal without indexing, no Huffman, both shorter than 127 bytes."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
