"""Least outstanding work, and when a replica is full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_gateway.picking.choose import BURST, ORDER_MAX, QUEUE_AHEAD, Candidate, order
from moefleet_gateway.picking.facts import Load


def candidate(
    uid: str, prefill: int = 0, *, decode: int = 0, queued: int = 0, sent: int = 0, sent_work: float = 0.0
):
    load = Load(uid, True, "Serving", 0.0, queued=queued, prefill_tokens=prefill, decode_tokens=decode)
    return Candidate(uid, f"{uid}:1", load, sent, sent_work)


def uids(*candidates: Candidate, turn: int = 0, queued_limit: int = 1000, **more: object) -> list[str]:
    return [t.uid for t in order(candidates, turn, queued_limit, **more)]


def test_nobody_to_choose_is_an_answer() -> None:
    assert order([], 7, 1000) == ()


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([candidate("a", 10), candidate("b", 5), candidate("c", 7)], ["b", "c", "a"]),
        # an output token weighs as two prompt tokens
        ([candidate("a", decode=10), candidate("b", 19), candidate("c", 21)], ["b", "a", "c"]),
        # what was sent since the sample counts
        ([candidate("a", 10, sent=1, sent_work=100), candidate("b", 50)], ["b", "a"]),
        # a full one comes last, though it has the least work
        ([candidate("a", 0, queued=QUEUE_AHEAD), candidate("b", 500)], ["b", "a"]),
        ([candidate("a", 0, sent=BURST), candidate("b", 500)], ["b", "a"]),
        # all full: hold
        ([candidate("a", queued=QUEUE_AHEAD), candidate("b", queued=QUEUE_AHEAD)], []),
        # never more than Envoy tries
        ([candidate(n, i) for i, n in enumerate("abcdefg")], ["a", "b", "c", "d"]),
    ],
)
def test_order(candidates: list[Candidate], expected: list[str]) -> None:
    assert uids(*candidates) == expected


def test_ties_go_round() -> None:
    idle = [candidate("a"), candidate("b"), candidate("c")]
    assert [uids(*idle, turn=n)[0] for n in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_fleet_with_a_short_queue_fills_replicas_less_far() -> None:
    assert uids(candidate("a", queued=2), queued_limit=2) == []
    assert uids(candidate("a", queued=1), queued_limit=2) == ["a"]


def test_a_replica_without_load_samples_is_never_full() -> None:
    assert uids(Candidate("a", "a:1", None, 10_000, 1e9)) == ["a"]


def test_credit_takes_tokens_off() -> None:
    assert uids(candidate("a", 100), candidate("b", 10), credit={"a": 95.0}) == ["a", "b"]


@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 300))
    ),
    st.integers(0, 2**32),
)
def test_the_first_has_room_and_nobody_with_room_has_less_work(
    facts: list[tuple[int, int, int, int]], turn: int
) -> None:
    ring = [candidate(str(n), p, decode=d, queued=q, sent=s) for n, (p, d, q, s) in enumerate(facts)]
    by_uid = {c.uid: c for c in ring}
    chosen = order(ring, turn, 1000)
    room = [c for c in ring if c.has_room(1000)]
    assert bool(chosen) == bool(room)
    assert len({t.uid for t in chosen}) == len(chosen) == (min(ORDER_MAX, len(ring)) if room else 0)
    if chosen:
        assert by_uid[chosen[0].uid].work() == min(c.work() for c in room)
