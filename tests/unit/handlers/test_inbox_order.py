"""Events on their way to the core: what may be merged, what comes first, what never gets lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.core.events import (
    EffectDone,
    Event,
    Key,
    ObjectChanged,
    Ok,
    Relisted,
    Stop,
    Synced,
    Tick,
)
from moefleet_operator.handlers.inbox import Inbox

A, B = Key("ns", "a"), Key("ns", "b")


def pod(key: Key, version: int | None) -> ObjectChanged:
    raw = None if version is None else {"metadata": {"resourceVersion": str(version)}}
    return ObjectChanged("Pod", key, raw)


def drained(inbox: Inbox) -> list[Event]:
    return [inbox.get_nowait() for _ in range(len(inbox))]


def test_only_the_newest_of_an_object_is_told_in_its_first_place() -> None:
    inbox = Inbox()
    for event in (pod(A, 1), pod(B, 2), pod(A, 3)):
        inbox.put(event)
    assert drained(inbox) == [pod(A, 3), pod(B, 2)]


def test_a_deletion_is_never_merged_away() -> None:
    inbox = Inbox()
    for event in (pod(A, 1), pod(A, None), pod(A, 5), pod(A, 6)):
        inbox.put(event)
    assert drained(inbox) == [pod(A, None), pod(A, 6)]


def test_answers_ticks_and_the_end_pass_the_facts() -> None:
    inbox = Inbox()
    done = EffectDone(7, Ok())
    for event in (pod(A, 1), Relisted("Pod", (), 7), done, Tick(), Stop()):
        inbox.put(event)
    assert drained(inbox) == [done, Tick(), Stop(), pod(A, 1), Relisted("Pod", (), 7)]


def test_an_object_comes_again_after_it_was_taken() -> None:
    inbox = Inbox()
    inbox.put(pod(A, 1))
    assert inbox.get_nowait() == pod(A, 1)
    inbox.put(pod(A, 2))
    assert drained(inbox) == [pod(A, 2)]


def test_lists_keep_their_place_before_the_word_that_they_are_complete() -> None:
    inbox = Inbox()
    for event in (Relisted("Node", (), 7), Synced("Node"), pod(A, 1)):
        inbox.put(event)
    assert drained(inbox) == [Relisted("Node", (), 7), Synced("Node"), pod(A, 1)]


async def test_whoever_waits_is_woken() -> None:
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.put(Tick())
    assert await waiting == Tick()


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.one_of(st.none(), st.integers(1, 9))), max_size=40))
def test_the_last_word_about_every_object_arrives_and_the_inbox_stays_small(
    said: list[tuple[Key, int | None]],
) -> None:
    inbox = Inbox()
    for key, version in said:
        inbox.put(pod(key, version))
    told = drained(inbox)
    for key in (A, B):
        mine = [event for event in told if isinstance(event, ObjectChanged) and event.key == key]
        wanted = [version for k, version in said if k == key]
        assert [event.object is None for event in mine].count(True) == wanted.count(None)
        if wanted:
            assert mine[-1] == pod(key, wanted[-1])
