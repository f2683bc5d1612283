"""gRPC for one client that is known, Envoy, on a unix socket of the pod: all its calls there are of one method.

Envoy calls the picker for each request and once more when the request has ended. gRPC's own server hands each event
of a stream through two threads before Python sees it: at 32 picks/s that was 1.7 ms of processor a pick, at 256 1 ms,
more than Envoy itself needs for an answer of 50 messages. Here what the socket brings is answered in the same turn of
the loop.

What is left out, because nobody needs it: the content of headers (all calls of a socket are of one method, so HPACK's
state may be forgotten), TLS, push, priorities, compression. What is kept is what a peer may demand: both windows,
SETTINGS, PING, resets, frames of streams that are over. Anything that Envoy never does closes the connection.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import structlog

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_NO_ERROR, _INTERNAL_ERROR = 0, 2
_INITIAL_WINDOW_SIZE = 4  # a setting
_HEAD = struct.Struct(">BHBBL")  # length of 24 bits, kind, flags, stream
_PREFIX = struct.Struct(">BL")  # gRPC: compressed, length
_NUMBER = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
FRAME_MAX_BYTES = 1 << 14  # HTTP/2's default, which neither side changes
WINDOW_MAX_BYTES = (1 << 31) - 1
WINDOW_DEFAULT_BYTES = (1 << 16) - 1
# Of one call: a whole request of a consumer, as large as Envoy buffers, without a wait for a window update.
STREAM_WINDOW_BYTES = 8 << 20
# An answer is some headers, or a status with its details; Envoy takes at most 60 KiB of headers. Below the window
# that every HTTP/2 peer begins with, so that only the connection's window must be watched.
ANSWER_MAX_BYTES = 60_000
# HPACK, literals without indexing: nothing to remember on either side. 0x88 is ":status 200", 31 is "content-type".
_ANSWER_HEADERS = b"\x88" + b"\x0f\x10" + b"\x10application/grpc"
_ANSWER_TRAILERS = b"\x00\x0bgrpc-status" + b"\x010"
log = structlog.get_logger()


class BrokenError(Exception):
    """The client does what Envoy never does: the connection ends."""


class Call(Protocol):
    """What a server does with one stream. An exception resets the stream and nothing else."""

    def received(self, message: bytes) -> None: ...

    def closed(self) -> None:
        """The client has said all."""

    def lost(self) -> None:
        """Nobody waits for an answer any more: reset, or the connection is gone. Nothing can be sent."""


Opened = Callable[["Stream"], Call]


class Stream:
    """One call, as the server's side sees it. After `end` or `Call.lost` what is sent goes nowhere."""

    __slots__ = ("_begun", "_call", "_connection", "_half_closed", "_number", "_partial", "_taken")

    def __init__(self, connection: Connection, number: int, opened: Opened) -> None:
        self._connection = connection
        self._number = number
        self._begun = False
        self._half_closed = False
        self._partial = bytearray()
        self._taken = 0
        self._call = opened(self)

    def send(self, message: bytes) -> None:
        self._connection.answer(self._number, self._frames(message), len(message) + _PREFIX.size)

    def end(self, message: bytes) -> None:
        """The last message and status OK."""
        out = self._frames(message) + frame(
            _HEADERS, _END_STREAM | _END_HEADERS, self._number, _ANSWER_TRAILERS
        )
        if not self._half_closed:
            out += frame(_RST_STREAM, 0, self._number, _NUMBER.pack(_NO_ERROR))
        self._connection.answer(self._number, out, len(message) + _PREFIX.size, last=True)

    def _frames(self, message: bytes) -> bytes:
        if len(message) > ANSWER_MAX_BYTES:
            raise ValueError(f"an answer has at most {ANSWER_MAX_BYTES} bytes, found {len(message)}")
        begin = b"" if self._begun else frame(_HEADERS, _END_HEADERS, self._number, _ANSWER_HEADERS)
        self._begun = True
        data = _PREFIX.pack(0, len(message)) + message
        if len(data) <= FRAME_MAX_BYTES:
            return begin + frame(_DATA, 0, self._number, data)
        pieces = (data[at : at + FRAME_MAX_BYTES] for at in range(0, len(data), FRAME_MAX_BYTES))
        return begin + b"".join(frame(_DATA, 0, self._number, piece) for piece in pieces)

    # --- from the connection ---

    def take(self, data: bytes, message_max_bytes: int) -> None:
        """One DATA frame's content."""
        held = self._partial
        held += data
        while len(held) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(held)
            if compressed or size > message_max_bytes:
                raise ValueError(f"a message of {size} bytes, compressed {compressed}")
            end = _PREFIX.size + size
            if len(held) < end:
                break
            message = bytes(held[_PREFIX.size : end])
            del held[:end]
            self._call.received(message)

    def taken(self, frame_bytes: int) -> int:
        """By how much the stream's window is to be opened again."""
        self._taken += frame_bytes
        if self._taken < STREAM_WINDOW_BYTES // 2:
            return 0
        taken, self._taken = self._taken, 0
        return taken

    def half_close(self) -> None:
        self._half_closed = True
        self._call.closed()

    def lost(self) -> None:
        self._call.lost()


class Connection(asyncio.Protocol):
    """One connection of Envoy: one of its workers."""

    def __init__(self, opened: Opened, message_max_bytes: int, all_of_server: set[Connection]) -> None:
        self._opened = opened
        self._message_max_bytes = message_max_bytes
        self._all = all_of_server
        self._transport: asyncio.WriteTransport | None = None
        self._rest = b""
        self._greeted = False
        self._streams: dict[int, Stream] = {}
        self._newest = 0
        self._taken = 0
        self._window = WINDOW_DEFAULT_BYTES
        self._waiting: deque[tuple[bytes, int]] = deque()  # answers for which the client has no room yet

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # of uvloop, which has no such base
        self._all.add(self)
        settings = _SETTING.pack(_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES)
        more = _NUMBER.pack(WINDOW_MAX_BYTES - WINDOW_DEFAULT_BYTES)
        self._write(frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._all.discard(self)
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._rest = self._frames(self._rest + data if self._rest else data)
        except BrokenError as error:
            log.error("connection_broken", reason=str(error))
            self.close()

    def _frames(self, data: bytes) -> bytes:
        """Handles the whole ones and returns the rest."""
        position, end = 0, len(data)
        if not self._greeted:
            if end < len(_PREFACE):
                return data
            if not data.startswith(_PREFACE):
                raise BrokenError(f"wanted HTTP/2, found {data[:24]!r}")
            self._greeted, position = True, len(_PREFACE)
        while end - position >= _HEAD.size:
            high, low, kind, flags, number = _HEAD.unpack_from(data, position)
            start = position + _HEAD.size
            size = (high << 16) + low
            if size > FRAME_MAX_BYTES:
                raise BrokenError(f"a frame of {size} bytes, at most {FRAME_MAX_BYTES}")
            if start + size > end:
                break
            position = start + size
            self._frame(kind, flags, number & 0x7FFFFFFF, data[start:position])
        return data[position:]

    # --- from streams ---

    def answer(self, number: int, frames: bytes, window_bytes: int, last: bool = False) -> None:
        if self._transport is None or number not in self._streams:
            return
        if last:
            del self._streams[number]
        if self._waiting or self._window < window_bytes:
            self._waiting.append((frames, window_bytes))
            return
        self._window -= window_bytes
        self._transport.write(frames)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # --- frames ---

    def _frame(self, kind: int, flags: int, number: int, content: bytes) -> None:
        match kind:
            case 0:  # DATA
                self._data(flags, number, content)
            case 1:  # HEADERS
                self._headers(flags, number)
            case 3:  # RST_STREAM
                stream = self._streams.pop(number, None)
                if stream is not None:
                    stream.lost()
            case 4 if not flags & _ACK:  # SETTINGS
                self._settings(content)
            case 6 if not flags & _ACK:  # PING
                self._write(frame(_PING, _ACK, 0, content))
            case 8 if number == 0:  # WINDOW_UPDATE
                self._widen(content)
            case _:
                pass  # says nothing that matters here: CONTINUATION (headers are not read), PRIORITY, GOAWAY

    def _settings(self, content: bytes) -> None:
        if len(content) % _SETTING.size:
            raise BrokenError(f"SETTINGS of {len(content)} bytes")
        for name, value in _SETTING.iter_unpack(content):
            if name == _INITIAL_WINDOW_SIZE and value < ANSWER_MAX_BYTES + 2 * _PREFIX.size:
                raise BrokenError(f"a window of {value} bytes, an answer has up to {ANSWER_MAX_BYTES}")
        self._write(frame(_SETTINGS, _ACK, 0, b""))

    def _widen(self, content: bytes) -> None:
        if len(content) != _NUMBER.size:
            raise BrokenError(f"WINDOW_UPDATE of {len(content)} bytes")
        self._window += _NUMBER.unpack(content)[0] & 0x7FFFFFFF
        while self._waiting and self._window >= self._waiting[0][1]:
            frames, window_bytes = self._waiting.popleft()
            self._window -= window_bytes
            self._write(frames)

    def _headers(self, flags: int, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            if number <= self._newest:
                return  # trailers of a stream that is over
            self._newest = number
            stream = self._streams[number] = Stream(self, number, self._opened)
        if flags & _END_STREAM:
            self._guard(number, stream.half_close)

    def _data(self, flags: int, number: int, content: bytes) -> None:
        size = len(content)
        self._taken += size
        if self._taken >= WINDOW_MAX_BYTES // 4:
            self._write(frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._taken)))
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None:
            return  # it was on its way when the stream ended
        if flags & _PADDED:
            if not content or content[0] >= size:
                raise BrokenError(f"a frame of {size} bytes with more padding than that")
            content = content[1 : size - content[0]]
        self._guard(number, partial(stream.take, content, self._message_max_bytes))
        if number not in self._streams:
            return
        if flags & _END_STREAM:
            self._guard(number, stream.half_close)
        elif more := stream.taken(size):
            self._write(frame(_WINDOW_UPDATE, 0, number, _NUMBER.pack(more)))

    def _guard(self, number: int, do: Callable[[], None]) -> None:
        """A call that goes wrong, here or in what it means, costs this stream; the others go on."""
        try:
            do()
        except Exception:
            log.exception("stream_failed")
            stream = self._streams.pop(number, None)
            if stream is not None:
                self._write(frame(_RST_STREAM, 0, number, _NUMBER.pack(_INTERNAL_ERROR)))
                stream.lost()

    def _write(self, frames: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frames)


def frame(kind: int, flags: int, number: int, content: bytes) -> bytes:
    return _HEAD.pack(len(content) >> 16, len(content) & 0xFFFF, kind, flags, number) + content


class Listener:
    """A socket on which every call is of the method that `opened` answers."""

    def __init__(self, opened: Opened, message_max_bytes: int) -> None:
        self._opened = opened
        self._message_max_bytes = message_max_bytes
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        _remove(path)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self._opened, self._message_max_bytes, self._connections), str(path)
        )
        _share(path)

    async def close(self) -> None:
        """At once: what may still be answered was answered before."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        await self._server.wait_closed()


def _remove(path: Path) -> None:
    """A socket that a killed picker left behind would be "in use"."""
    path.unlink(missing_ok=True)


def _share(path: Path) -> None:
    """With the envoy container, which runs as the same user or group."""
    path.chmod(0o660)
