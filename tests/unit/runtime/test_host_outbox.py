"""What the engine made goes to the server by the shortest way: in the engine's own thread, while the writer has nothing to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moefleet_runtime.engine.base import Finish, TokenDelta
from moefleet_runtime.host.batches import Fields
from moefleet_runtime.host.messages import Deltas, Died, FrameReader, Refused, encode
from moefleet_runtime.host.outbox import MAX_DIRECT_ENTRIES, Outbox

PATIENCE_S = 10.0


class Wire:
    """The socket: takes so many bytes at once, and knows which thread brought them."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.data = b""
        self.direct_from: list[threading.Thread] = []
        self.fails = False

    def send(self, data: bytes) -> int:
        if self.fails:
            raise BrokenPipeError
        self.direct_from.append(threading.current_thread())
        sent = data[: self.room]
        self.data += sent
        return len(sent)

    def entries(self) -> list[Fields]:
        messages = FrameReader.of_server().feed(self.data)
        return [entry for message in messages if isinstance(message, Deltas) for entry in message.batch]


@contextmanager
def writing(wire: Wire) -> Iterator[Outbox]:
    """An outbox whose writer waits; at the end everything is on the wire."""
    outbox = Outbox(wire.send)

    def write() -> None:
        while (taken := outbox.take()) is not None:
            rest, messages = taken
            wire.data += b"".join((rest, *map(encode, messages)))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    until_s = time.monotonic() + PATIENCE_S
    while not outbox.writer_waits:
        assert time.monotonic() < until_s, "the writer never waited"
        time.sleep(0.001)
    try:
        yield outbox
    finally:
        outbox.close()
        writer.join(PATIENCE_S)
        assert not writer.is_alive()


def test_a_first_token_is_on_the_wire_when_the_engine_has_told_it() -> None:
    wire = Wire()
    with writing(wire) as outbox:
        outbox.deltas([TokenDelta("a", (7,), cached_tokens=32)])
        assert wire.entries() == [("a", (7,), 32, None, "", ())]
        assert wire.direct_from == [threading.current_thread()]
        # It waits for those that come within its window, and for the writer.
        outbox.deltas([TokenDelta("a", (8,))])
        assert len(wire.direct_from) == 1
    assert [entry[1] for entry in wire.entries()] == [(7,), (8,)]


def test_more_than_a_few_entries_are_the_writers_business() -> None:
    wire = Wire()
    with writing(wire) as outbox:
        outbox.deltas([TokenDelta(f"r{i}", (i,)) for i in range(MAX_DIRECT_ENTRIES + 1)])
        assert wire.direct_from == []
    assert len(wire.entries()) == MAX_DIRECT_ENTRIES + 1


def test_what_there_was_no_room_for_goes_before_everything_else() -> None:
    wire = Wire(room=10)
    with writing(wire) as outbox:
        outbox.deltas([TokenDelta("a", (7,))])
        outbox.deltas([TokenDelta("b", (8,))])
        outbox.put(Refused("c", "full", "10 requests wait already"))
        outbox.deltas([TokenDelta("a", (9,), finish=Finish.LENGTH)])
    assert [(e[0], e[1]) for e in wire.entries()] == [("a", (7,)), ("b", (8,)), ("a", (9,))]


def test_a_server_that_is_gone_is_the_writers_to_find_out_and_no_error_of_the_engine() -> None:
    wire = Wire()
    wire.fails = True
    with writing(wire) as outbox:
        outbox.deltas([TokenDelta("a", (7,))])
    assert [entry[1] for entry in wire.entries()] == [(7,)]


def test_a_death_comes_after_every_token() -> None:
    wire = Wire()
    with writing(wire) as outbox:
        outbox.deltas([TokenDelta("a", (7,))])
        outbox.deltas([TokenDelta("a", (8,))])
        outbox.died("step thread ended")
    *deltas, died = FrameReader.of_server().feed(wire.data)
    assert died == Died("step thread ended")
    assert [t for d in deltas if isinstance(d, Deltas) for e in d.batch for t in e[1]] == [7, 8]
