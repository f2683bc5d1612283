"""The pipe to the engine host, and the streams on the server's side of it."""

import asyncio
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.engine.base import (
    EngineLoad,
    EngineRequest,
    Finish,
    StartFailed,
    StepSumsAccumulator,
    TokenDelta,
)
from moefleet_runtime.host.messages import (
    MAX_FRAME_BYTES,
    Abort,
    Deltas,
    FrameError,
    FrameReader,
    Load,
    NotStarted,
    Refused,
    Submit,
    ToServer,
    encode,
)
from moefleet_runtime.host.stream import StreamFault, TokenStream

MESSAGES: list[ToServer] = [
    NotStarted("CheckpointUnreadable", "model.safetensors: truncated"),
    Deltas([("a", (1, 2), 0, None, "", ()), ("b", (), 3, Finish.FAILED, "boom", ())]),
    Refused("a", "full", "10 requests wait already"),
    Load(EngineLoad(active=3)),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.integers(1, 97))
def test_messages_come_out_whole_however_the_bytes_are_cut(messages: list[ToServer], size: int) -> None:
    data = b"".join(encode(m) for m in messages)
    reader = FrameReader.of_server()
    out = [m for i in range(0, len(data), size) for m in reader.feed(data[i : i + size])]
    assert out == messages


def test_what_is_no_message_of_this_side_is_refused() -> None:
    with pytest.raises(FrameError, match="Abort"):
        FrameReader.of_server().feed(encode(Abort("a")))
    body = pickle.dumps({"not": "a message"})
    with pytest.raises(FrameError, match="dict"):
        FrameReader.of_host().feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(FrameError, match="at most"):
        FrameReader.of_host().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


def test_a_prompt_of_128k_ids_crosses() -> None:
    message = Submit(EngineRequest("r", tuple(range(131071)), 1, stop_token_ids=frozenset({5})))
    assert FrameReader.of_host().feed(encode(message)) == [message]


def test_what_each_request_sends_names_no_module() -> None:
    """A reader would look for it again for every request, on the way to the first token."""
    asked = encode(Submit(EngineRequest("r", (1, 2), 1)))
    made = encode(Deltas([("r", (1,), 0, Finish.LENGTH, "", ())]))
    assert b"moefleet" not in asked + made
    (crossed,) = FrameReader.of_server().feed(made)
    assert isinstance(crossed, Deltas)
    assert crossed.batch[0][3] is Finish.LENGTH


def test_a_start_failure_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(StartFailed("OutOfMemory", "no", permanent=False)))
    assert (error.reason, error.message, error.permanent) == ("OutOfMemory", "no", False)


def test_step_sums_are_sums_of_products() -> None:
    sums = StepSumsAccumulator()
    sums.add(time_s=0.5, prefill=2, sequences=3, kv=5)
    sums.add(time_s=0.25, prefill=0, sequences=1, kv=7)
    got = sums.freeze()
    assert (got.count, got.time_s, got.prefill_tokens, got.sequences, got.kv_tokens) == (2, 0.75, 2, 4, 12)
    assert (got.time_s_prefill, got.time_s_sequences, got.time_s_kv) == (1.0, 1.75, 4.25)
    assert (got.prefill_prefill, got.prefill_sequences, got.prefill_kv) == (4, 6, 10)
    assert (got.sequences_sequences, got.sequences_kv, got.kv_kv) == (10, 22, 74)


async def test_a_reader_gets_what_came_and_then_the_end() -> None:
    stream = TokenStream("r")
    reading = asyncio.ensure_future(stream.wait(1))
    await asyncio.sleep(0)
    stream.feed(TokenDelta("r", (1,), cached_tokens=4), now_s=1.0)
    await reading
    assert (stream.take(), stream.cached_tokens, stream.first_at_s) == ([1], 4, 1.0)
    reading = asyncio.ensure_future(stream.wait(3))
    stream.feed(TokenDelta("r", (2,)), now_s=2.0)
    await asyncio.sleep(0)
    assert not reading.done()
    stream.feed(TokenDelta("r", (3,), finish=Finish.STOP), now_s=3.0)
    await reading
    assert (stream.take(), stream.finish, stream.produced, stream.last_at_s) == ([2, 3], Finish.STOP, 3, 3.0)
    stream.feed(TokenDelta("r", (9,)), now_s=4.0)
    stream.end(StreamFault("dead", "late news"))
    assert (stream.take(), stream.fault) == ([], None)


async def test_waiting_ends_with_the_fault_or_the_cancel() -> None:
    stream = TokenStream("r")
    reading = asyncio.ensure_future(stream.wait(1))
    await asyncio.sleep(0)
    stream.feed(TokenDelta("r", (), finish=Finish.FAILED, error="boom"), now_s=1.0)
    await reading
    assert stream.fault == StreamFault("step", "boom")
    other = TokenStream("s")
    other.cancel()
    await other.wait(5)
    assert other.finish is Finish.CANCELLED
