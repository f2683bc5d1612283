"""The server that Envoy calls for each request: what the other side of HTTP/2 and gRPC may do, frame by frame."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_gateway.streams import (
    ANSWER_MAX_BYTES,
    FRAME_MAX_BYTES,
    STREAM_WINDOW_BYTES,
    Connection,
    Listener,
    Stream,
    frame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8
MESSAGE_MAX_BYTES = 100_000


class Echo:
    """Answers each message with itself; ends with the one that says "end", fails with the one that says "fail"."""

    def __init__(self, stream: Stream, told: list[Any]) -> None:
        self.stream = stream
        self.told = told

    def received(self, message: bytes) -> None:
        self.told.append(message)
        if message == b"fail":
            raise RuntimeError("asked to")
        if message == b"long":
            message = bytes(ANSWER_MAX_BYTES)
        if message == b"too long":
            message = bytes(ANSWER_MAX_BYTES + 1)
        if message == b"end":
            self.stream.end(b"over")
        elif message != b"hold":
            self.stream.send(message)

    def closed(self) -> None:
        self.told.append("closed")

    def lost(self) -> None:
        self.told.append("lost")


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


class Peer:
    """The client's side, without a socket."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.streams: list[Stream] = []
        self.transport = Transport()
        self.connection = Connection(self._opened, MESSAGE_MAX_BYTES, set())
        self.connection.connection_made(self.transport)

    def _opened(self, stream: Stream) -> Echo:
        self.streams.append(stream)
        return Echo(stream, self.told)

    def says(self, *parts: bytes) -> list[tuple[int, int, int, bytes]]:
        """Sends frames; returns those that came back for them."""
        self.transport.written = b""
        for part in parts:
            self.connection.data_received(part)
        return list(frames(self.transport.written))


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while data:
        high, low, kind, flags, number = struct.unpack_from(">BHBBL", data)
        size = (high << 16) + low
        yield kind, flags, number, data[9 : 9 + size]
        data = data[9 + size :]


def grpc_message(content: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BL", compressed, len(content)) + content


def opened(number: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS, number, b"anything: nobody reads it")


def data(content: bytes, number: int = 1, flags: int = 0) -> bytes:
    return frame(DATA, flags, number, grpc_message(content))


def greeting() -> bytes:
    return PREFACE + frame(SETTINGS, 0, 0, b"")


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def greeted() -> Peer:
    peer = Peer()
    assert peer.says(greeting()) == [(SETTINGS, ACK, 0, b"")]
    return peer


def test_an_answer_has_headers_once_and_a_last_one_ends_the_stream() -> None:
    peer = greeted()
    first = peer.says(opened(), data(b"one"))
    assert [(kind, flags, at) for kind, flags, at, _ in first] == [(HEADERS, END_HEADERS, 1), (DATA, 0, 1)]
    assert first[1][3] == grpc_message(b"one")
    assert peer.says(data(b"two")) == [(DATA, 0, 1, grpc_message(b"two"))]
    last = peer.says(data(b"end"))
    # Envoy has not closed its side: NO_ERROR says that nothing more is needed of it.
    assert [(kind, flags) for kind, flags, _, _ in last] == [
        (DATA, 0), (HEADERS, END_STREAM | END_HEADERS), (RST_STREAM, 0),
    ]  # fmt: skip
    assert last[2][3] == number(0)


def test_a_client_that_has_closed_its_side_is_not_reset() -> None:
    peer = greeted()
    peer.says(opened(), data(b"hold", flags=END_STREAM))
    assert peer.told == [b"hold", "closed"]
    peer.transport.written = b""
    peer.streams[0].end(b"late")
    assert [kind for kind, *_ in frames(peer.transport.written)] == [HEADERS, DATA, HEADERS]


def test_what_still_comes_for_a_stream_that_is_over_is_no_error() -> None:
    peer = greeted()
    peer.says(opened(), data(b"end"))
    late = peer.says(
        data(b"more"),
        frame(DATA, END_STREAM, 1, b""),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"trailers"),
        frame(RST_STREAM, 0, 1, number(8)),
        frame(WINDOW_UPDATE, 0, 1, number(10)),
    )
    assert late == []
    assert peer.told == [b"end"]
    assert not peer.transport.aborted


def test_a_reset_and_a_lost_connection_are_told_and_nothing_is_sent_after_them() -> None:
    peer = greeted()
    peer.says(opened(1), data(b"hold", 1), opened(3), data(b"hold", 3))
    assert peer.says(frame(RST_STREAM, 0, 1, number(8))) == []
    assert peer.told == [b"hold", b"hold", "lost"]
    peer.streams[0].end(b"late")
    peer.connection.connection_lost(None)
    assert peer.told == [b"hold", b"hold", "lost", "lost"]
    peer.streams[1].end(b"late")
    assert peer.transport.written == b""


@pytest.mark.parametrize(
    "bad",
    [
        data(b"fail"),
        data(b"too long"),
        frame(DATA, 0, 1, grpc_message(b"x", compressed=1)),
        frame(DATA, 0, 1, struct.pack(">BL", 0, MESSAGE_MAX_BYTES + 1)),
    ],
    ids=["the call fails", "an answer that is too long", "compressed", "a message above the limit"],
)
def test_what_goes_wrong_in_a_stream_costs_only_that_stream(bad: bytes) -> None:
    peer = greeted()
    peer.says(opened(3), data(b"hold", 3))
    # The number of a new stream is above the older ones': 1 was never opened before 3, so it takes 5.
    moved = bad[:5] + number(5) + bad[9:]
    answer = peer.says(opened(5), moved)
    assert answer == [(RST_STREAM, 0, 5, number(2))]
    assert peer.told[-1] == "lost"
    assert [kind for kind, *_ in peer.says(data(b"end", 3))] == [HEADERS, DATA, HEADERS, RST_STREAM]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not HTTP/2"),
        (greeting() + struct.pack(">BHBBL", 1, 0, DATA, 0, 1), "a frame above the limit"),
        (PREFACE + frame(SETTINGS, 0, 0, b"12345"), "SETTINGS cut"),
        (PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 1000)), "no window for an answer"),
        (greeting() + frame(WINDOW_UPDATE, 0, 0, b"1"), "WINDOW_UPDATE cut"),
        (greeting() + opened() + frame(DATA, PADDED, 1, b"\x05abc"), "more padding than bytes"),
    ],
)
def test_what_envoy_never_does_ends_the_connection(bad: bytes, why: str) -> None:
    peer = Peer()
    peer.says(bad)
    assert peer.transport.aborted, why


def test_padding_priority_and_continuation_are_understood() -> None:
    peer = greeted()
    peer.says(
        frame(HEADERS, 0, 1, b"first part"),
        frame(CONTINUATION, END_HEADERS, 1, b"second part"),
        frame(2, 0, 1, bytes(5)),
        frame(DATA, PADDED, 1, b"\x03" + grpc_message(b"padded") + bytes(3)),
        frame(GOAWAY, 0, 0, bytes(8)),
    )
    assert peer.told == [b"padded"]
    assert not peer.transport.aborted


def test_a_ping_comes_back_and_its_answer_does_not() -> None:
    peer = greeted()
    assert peer.says(frame(PING, 0, 0, b"8 bytes!")) == [(PING, ACK, 0, b"8 bytes!")]
    assert peer.says(frame(PING, ACK, 0, b"8 bytes!"), frame(SETTINGS, ACK, 0, b"")) == []


def test_answers_wait_for_the_connections_window_in_their_order() -> None:
    peer = greeted()
    first = peer.says(opened(1), data(b"long", 1))  # all but 5,530 bytes of the 65,535
    assert sum(len(content) for kind, _, _, content in first if kind == DATA) == ANSWER_MAX_BYTES + 5
    assert max(len(content) for *_, content in first) <= FRAME_MAX_BYTES
    assert peer.says(opened(3), data(b"long", 3), opened(5), data(b"end", 5)) == []
    assert peer.says(frame(WINDOW_UPDATE, 0, 0, number(50_000))) == []
    freed = peer.says(frame(WINDOW_UPDATE, 0, 0, number(50_000)))
    assert [at for _, _, at, _ in freed] == [3] * 5 + [5] * 4


def test_a_stream_that_lives_long_gets_its_window_back() -> None:
    peer = greeted()
    peer.says(opened())
    size = FRAME_MAX_BYTES - 5
    given: list[int] = []
    for _ in range(STREAM_WINDOW_BYTES // size + 1):
        for kind, _, at, content in peer.says(data(b"x" * size)):
            if kind == WINDOW_UPDATE:
                assert at == 1
                given.append(int.from_bytes(content, "big"))
        peer.says(frame(WINDOW_UPDATE, 0, 0, number(size + 5)))  # for the echo
    # Half of it twice: there was always room for a whole message.
    assert given == [STREAM_WINDOW_BYTES // 2] * 2


@given(
    messages=st.lists(st.binary(min_size=6, max_size=200), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 2000), max_size=30),
    frame_bytes=st.integers(1, 300),
)
def test_however_the_bytes_are_cut_the_messages_are_the_same(
    messages: list[bytes], cuts: list[int], frame_bytes: int
) -> None:
    content = b"".join(grpc_message(message) for message in messages)
    pieces = [content[at : at + frame_bytes] for at in range(0, len(content), frame_bytes)]
    wire = greeting() + opened() + b"".join(frame(DATA, 0, 1, piece) for piece in pieces)
    peer = Peer()
    at = 0
    for cut in cuts:
        peer.says(wire[at : at + cut])
        at += cut
    peer.says(wire[at:])
    assert peer.told == messages


# --- beside another implementation: gRPC's own client ---


def run_with_client(path: Path, do: Callable[[grpc.aio.Channel, list[Any]], Any]) -> list[Any]:
    told: list[Any] = []

    async def run() -> None:
        listener = Listener(lambda stream: Echo(stream, told), MESSAGE_MAX_BYTES)
        await listener.start(path)
        try:
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await do(channel, told)
        finally:
            await listener.close()

    asyncio.run(run())
    return told


async def told_of(told: list[Any], what: Any) -> None:
    while what not in told:  # noqa: ASYNC110  (what another implementation makes of it)
        await asyncio.sleep(0.01)


def test_grpcs_own_client_understands_it(tmp_path: Path) -> None:
    async def talk(channel: grpc.aio.Channel, told: list[Any]) -> None:
        call = channel.stream_stream("/any/Method")()
        for message in (b"one", b"", b"two" * 15_000, b"long"):
            await call.write(message)
            assert await call.read() == (bytes(ANSWER_MAX_BYTES) if message == b"long" else message)
        await call.write(b"end")
        assert await call.read() == b"over"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        # Many at once and one after the other, on one connection.
        unary = channel.unary_unary("/any/Other")
        assert await asyncio.gather(*(unary(b"end") for _ in range(200))) == [b"over"] * 200

    told = run_with_client(tmp_path / "socket", talk)
    assert told.count(b"end") == 201


def test_grpcs_own_client_sees_one_failed_stream_and_goes_on(tmp_path: Path) -> None:
    async def talk(channel: grpc.aio.Channel, told: list[Any]) -> None:
        unary = channel.unary_unary("/any/Method")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"fail")
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert await unary(b"end") == b"over"

    run_with_client(tmp_path / "socket", talk)


def test_grpcs_own_client_that_leaves_is_told(tmp_path: Path) -> None:
    async def talk(channel: grpc.aio.Channel, told: list[Any]) -> None:
        call = channel.stream_stream("/any/Method")()
        await call.write(b"hold")
        async with asyncio.timeout(30):
            await told_of(told, b"hold")
            call.cancel()
            await told_of(told, "lost")

    assert run_with_client(tmp_path / "socket", talk) == [b"hold", "lost"]
