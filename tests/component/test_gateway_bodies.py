"""Requests whose bytes come as gRPC's own client never sends them: the picker is asked once, with all of the body, and none is lost."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet_gateway.methods import GENERATE
from moefleet_gateway.streams import frame
from moefleet_gateway_rig import FakeReplica, Rig, until

DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, END_HEADERS = 0x1, 0x4
HEADS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": GENERATE,
    ":authority": "gateway",
    "content-type": "application/grpc",
    "te": "trailers",
}


class Raw:
    """One connection and on it one request, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, kind: int, content: bytes, flags: int = 0) -> None:
        self._writer.write(frame(kind, flags, 1, content))
        await self._writer.drain()

    async def answer(self) -> list[inf.GenerateResponse]:
        """Every message until the stream ends."""
        body = b""
        while True:
            head = await self._reader.readexactly(9)
            size, kind, flags, number = int.from_bytes(head[:3], "big"), head[3], head[4], head[5:]
            content = await self._reader.readexactly(size)
            if int.from_bytes(number, "big") != 1:
                continue
            body += content if kind == DATA else b""
            if flags & END_STREAM and kind in (DATA, HEADERS):
                break
        out = []
        while body:
            size = int.from_bytes(body[1:5], "big")
            out.append(inf.GenerateResponse.FromString(body[5 : 5 + size]))
            body = body[5 + size :]
        return out


@asynccontextmanager
async def raw(rig: Rig) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.ports["grpc"])
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
    writer.write(frame(HEADERS, END_HEADERS, 1, literals(HEADS)))
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def literals(headers: dict[str, str]) -> bytes:
    """HPACK without its table. Names and values have less than 127 bytes."""
    out = b""
    for text in headers.items():
        out += b"\x00" + b"".join(bytes([len(part)]) + part.encode() for part in text)
    return out


def body_of(prompt: str) -> bytes:
    message = inf.GenerateRequest(model="tiny", prompt=prompt).SerializeToString()
    return struct.pack(">BL", 0, len(message)) + message


async def ready(rig: Rig, *refuse: str) -> Sequence[FakeReplica]:
    rig.world.fleet()
    await rig.start()
    made = [await rig.replica(f"r{n}", refuse=reason) for n, reason in enumerate(refuse)]
    await rig.registered(*(f"r{n}" for n in range(len(refuse))))
    return made


@pytest.mark.parametrize("ending", ["with the last byte", "in a frame of its own", "with trailers"])
async def test_a_body_in_pieces_arrives_whole_however_it_ends(rig: Rig, ending: str) -> None:
    (replica,) = await ready(rig, "")
    body = body_of("word " * 20_000)  # 100 kB: 7 frames
    async with raw(rig) as client:
        pieces = [body[at : at + 16_000] for at in range(0, len(body), 16_000)]
        for number, piece in enumerate(pieces):
            last = ending == "with the last byte" and number == len(pieces) - 1
            await client.send(DATA, piece, END_STREAM if last else 0)
            await asyncio.sleep(0.02)
        if ending == "in a frame of its own":
            await client.send(DATA, b"", END_STREAM)
        if ending == "with trailers":
            await client.send(HEADERS, literals({"x-end": "1"}), END_STREAM | END_HEADERS)
        async with asyncio.timeout(30):
            assert len(await client.answer()) == 3
    assert [s.request.prompt for s in replica.seen] == ["word " * 20_000]


async def test_nothing_goes_on_while_the_body_still_comes(rig: Rig) -> None:
    """A client may send slowly, and go. Neither is an arrival."""
    (replica,) = await ready(rig, "")
    body = body_of("word " * 20_000)
    async with raw(rig) as client:
        await client.send(DATA, body[:16_000])
        await asyncio.sleep(0.5)
        assert await rig.metric("moefleet_gateway_requests_total") == 0
    async with raw(rig) as client:
        await client.send(DATA, body[:16_000])
        await client.send(DATA, body[16_000:32_000])
        await asyncio.sleep(0.2)
        for at in range(32_000, len(body), 16_000):
            await client.send(DATA, body[at : at + 16_000])
        await client.send(DATA, b"", END_STREAM)
        async with asyncio.timeout(30):
            assert len(await client.answer()) == 3
    assert len(replica.seen) == 1
    assert await rig.metric("moefleet_gateway_requests_total") == 1


async def test_large_bodies_at_once_reach_the_next_replica_whole_when_the_first_refuses(rig: Rig) -> None:
    """Envoy kept forwarding some of them before the picker had answered, in a mode that we do not use (bootstrap.py)."""
    refusing, serving = await ready(rig, "draining", "")
    stub = rig.stub()
    prompts = [f"{number} " + "word " * (100 * 4**number) for number in range(7)]  # 0.5 kB to 2 MB
    asked = [prompt for prompt in prompts for _ in range(12)]
    answers = await asyncio.gather(*(rig.generate(stub, prompt=prompt, timeout=120) for prompt in asked))
    assert {m.text for messages in answers for m in messages} == {"r1"}
    assert sorted(s.request.prompt for s in serving.seen) == sorted(asked)
    assert refusing.refused > 0
    await until(lambda: serving.active == 0)
