"""From an engine's cache to whoever routes by it: what is told is what is there, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moefleet_perf import EIGHT_H800, load_calibration
from moefleet_perf.prefixes import MARK_TOKENS, token_marks
from moefleet_runtime.engine.base import EngineRequest
from moefleet_runtime.engine.prefixes import PrefixBook, PrefixChanges, PrefixLog, ReportsPrefixes
from moefleet_runtime.engine.simulated import SimulatedEngine
from moefleet_runtime.engine.simulated_replica import BLOCK_TOKENS, SimulatedReplica, block_hashes
from moefleet_runtime.engine.tensorrt_llm.engine import TensorRTLLMEngine
from moefleet_runtime.engine.tensorrt_llm.prefixes import AskedPrefixes
from moefleet_runtime.engine.torch.blocks import BlockPool
from moefleet_runtime.engine.torch.engine import TorchEngine
from moefleet_runtime.engine.torch.requests import Generation
from moefleet_runtime.engine.torch.scheduler import Scheduler


def after(held: set[int], changes: PrefixChanges) -> set[int]:
    """What a reader knows then."""
    assert not set(changes.stored) & set(changes.removed)
    return ((set() if changes.reset else held) | set(changes.stored)) - set(changes.removed)


@pytest.mark.parametrize("engine", [TorchEngine, SimulatedEngine, TensorRTLLMEngine])
def test_every_engine_tells(engine: type) -> None:
    assert issubclass(engine, ReportsPrefixes)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["store", "remove", "clear", "drain", "read"]), st.integers(0, 9)),
        max_size=80,
    ),
    st.integers(1, 8),
    st.integers(1, 6),
)
def test_readers_end_up_with_what_is_held(events: list[tuple[str, int]], max_held: int, max_log: int) -> None:
    log, book = PrefixLog(max_held), PrefixBook(max_log)
    # The last used, the newest at the end.
    truth: list[int] = []
    readers: list[tuple[int | None, set[int]]] = [(None, set()), (None, set())]
    for what, n in events:
        match what:
            case "store":
                truth = [*(mark for mark in truth if mark != n), n][-max_held:]
                log.stored([n])
            case "remove":
                truth = [mark for mark in truth if mark != n]
                log.removed([n])
            case "clear":
                truth.clear()
                log.clear()
            case "drain":
                book.apply(log.drain())
            case _:
                # Only one of them: the other falls behind.
                cursor, changes = book.since(readers[0][0])
                readers[0] = (cursor, after(readers[0][1], changes))
    book.apply(log.drain())
    for cursor, held in readers:
        assert after(held, book.since(cursor)[1]) == set(truth)
    assert not book.since(book.since(None)[0])[1]


def drained(told: set[int], log: PrefixLog) -> set[int]:
    return after(told, log.drain())


@example([(0, 64, ""), (0, 48, ""), (0, 48, ""), (0, 48, ""), (0, 97, "")], 48)
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(20, 150), st.sampled_from(["", "tenant"])),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([8, 16, 32, 48, 64]),
)
def test_torch_tells_exactly_the_prefixes_that_a_prompt_would_find(
    asked: list[tuple[int, int, str]], block_tokens: int
) -> None:
    log = PrefixLog()
    pool = BlockPool(blocks=max(6, 320 // block_tokens), block_tokens=block_tokens, log=log)
    scheduler = Scheduler(pool, max_batch_size=4, max_batch_tokens=64)
    told: set[int] = set()
    prompts = []
    for n, (shared, length, salt) in enumerate(asked):
        tokens = [shared] * (length // 2) + [100 + n] * (length - length // 2)
        prompts.append((tokens, salt))
        request = EngineRequest(f"r{n}", tuple(tokens), 1, cache_salt=salt)
        generation = Generation(request, 0, frozenset(), len(tokens) + 1, list(tokens))
        scheduler.add(generation)
        while generation.pending:
            scheduler.advance(scheduler.plan())
        scheduler.remove(generation)
        told = drained(told, log)
    for tokens, salt in prompts:
        probe = Generation(
            EngineRequest("p", tuple(tokens), 1, cache_salt=salt), 0, frozenset(), 0, list(tokens)
        )
        found = len(pool.find(probe.hashes_of(len(tokens) // block_tokens, block_tokens))) * block_tokens
        marks = token_marks(tokens, salt)
        # A block in the middle may be gone while later ones are there: what is told beyond it is of no use, and does no harm.
        expected = sum(length <= found for length in MARK_TOKENS[: len(marks)])
        assert all(mark in told for mark in marks[:expected])
    known = {mark for tokens, salt in prompts for mark in token_marks(tokens, salt)}
    assert told <= known


def test_simulated_tells_what_it_keeps_and_what_it_drops() -> None:
    replica = SimulatedReplica(load_calibration(EIGHT_H800), vocabulary_size=1000)
    replica._prefixes._blocks = 12  # of 32 tokens
    told: set[int] = set()
    old, new = tuple(range(300, 300 + 10 * BLOCK_TOKENS)), tuple(range(5000, 5000 + 6 * BLOCK_TOKENS))
    for n, prompt in enumerate((old, new, old[:64])):
        request = EngineRequest(f"r{n}", prompt, 1)
        replica.submit(request, block_hashes(request), float(n))
        replica.catch_up(float(n))
        while (due_s := replica.due_s()) is not None:
            replica.catch_up(due_s)
        told = drained(told, replica.prefixes)
        if n == 0:
            assert told == set(token_marks(old))
    marks = token_marks(new)
    assert told >= set(marks)
    # 12 blocks: 6 of the new one, and the first 6 of the old one.
    assert told - set(marks) == set(token_marks(old)[:6])


def stored(number: int, first: int, parent: int | None, *blocks: list[int], rank: int = 0) -> dict[str, Any]:
    said = [
        {"block_hash": first + i, "tokens": [{"token_id": t} for t in tokens]}
        for i, tokens in enumerate(blocks)
    ]
    return {
        "event_id": number,
        "attention_dp_rank": rank,
        "data": {"type": "stored", "parent_hash": parent, "blocks": said},
    }


def removed(number: int, *hashes: int, rank: int = 0) -> dict[str, Any]:
    return {
        "event_id": number,
        "attention_dp_rank": rank,
        "data": {"type": "removed", "block_hashes": list(hashes)},
    }


PROMPT = list(range(1000, 1096))
BLOCKS = [PROMPT[0:32], PROMPT[32:64], PROMPT[64:96]]


def test_tensorrt_llm_takes_back_what_its_events_remove_under_every_salt() -> None:
    asked = AskedPrefixes()
    told: set[int] = set()
    plain, salted = token_marks(PROMPT), token_marks(PROMPT, "tenant")
    asked.asked(PROMPT, "")
    asked.asked(PROMPT, "tenant")
    told = after(told, asked.drain())
    assert told == {*plain, *salted}
    asked.absorb(stored(0, 10, None, *BLOCKS[:2]), lost=False)
    asked.absorb(stored(1, 12, 11, BLOCKS[2]), lost=False)
    asked.absorb(removed(2, 12), lost=False)
    told = after(told, asked.drain())
    assert told == {*plain[:2], *salted[:2]}


def test_tensorrt_llm_has_a_prefix_while_one_rank_has_it() -> None:
    asked = AskedPrefixes()
    asked.asked(PROMPT, "")
    for rank in (0, 1):
        asked.absorb(stored(0, 10, None, *BLOCKS, rank=rank), lost=False)
    told = after(set(), asked.drain())
    asked.absorb(removed(1, 10, 11, 12, rank=0), lost=False)
    told = after(told, asked.drain())
    assert told == set(token_marks(PROMPT))
    asked.absorb(removed(1, 12, rank=1), lost=False)
    assert after(told, asked.drain()) == set(token_marks(PROMPT)[:2])


@pytest.mark.parametrize("how", ["gap", "created"])
def test_tensorrt_llm_forgets_everything_after_a_gap(how: str) -> None:
    asked = AskedPrefixes()
    asked.asked(PROMPT, "")
    told = after(set(), asked.drain())
    event = removed(9, 77) if how == "gap" else {"event_id": 0, "data": {"type": "created"}}
    asked.absorb(event, lost=how == "gap")
    changes = asked.drain()
    assert changes.reset
    assert after(told, changes) == set()


def test_tensorrt_llm_ignores_blocks_whose_beginning_it_does_not_know() -> None:
    asked = AskedPrefixes()
    asked.asked(PROMPT, "")
    told = after(set(), asked.drain())
    asked.absorb(stored(0, 12, 99, BLOCKS[2]), lost=False)
    asked.absorb(removed(1, 12), lost=False)
    assert after(told, asked.drain()) == set(token_marks(PROMPT))
