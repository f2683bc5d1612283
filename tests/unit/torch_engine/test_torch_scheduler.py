"""What each step computes: tables first, then whole lives of random requests on a pool that is too small."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.torch.blocks import BlockPool
from moefleet_runtime.engine.torch.requests import Generation, Row
from moefleet_runtime.engine.torch.scheduler import Scheduler
from moefleet_testing.torch_engine import generation


def scheduler(*, blocks: int = 100, size: int = 8, tokens: int = 16, reuse: bool = True) -> Scheduler:
    pool = BlockPool(blocks=blocks, block_tokens=4)
    return Scheduler(pool, max_batch_size=size, max_batch_tokens=tokens, reuse=reuse)


def shown(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    return [(r.generation.request.request_id, r.start, r.count) for r in rows]


def step(s: Scheduler, token: int = 7) -> list[tuple[str, int, int]]:
    """One step in which every row that samples gets `token`; ended requests leave."""
    rows = s.plan()
    sampling = [row.generation for row in rows if row.samples]
    s.advance(rows)
    for g in sampling:
        if g.append(token) is not None:
            s.remove(g)
    return shown(rows)


def test_nothing_to_do_is_no_rows() -> None:
    assert scheduler().plan() == []


def test_a_long_prompt_is_cut_by_the_budget_and_the_rest_follows() -> None:
    s = scheduler(tokens=16)
    s.add(generation("long", range(40)))
    assert [step(s) for _ in range(4)] == [
        [("long", 0, 16)],
        [("long", 16, 16)],
        [("long", 32, 8)],
        [("long", 40, 1)],
    ]


def test_rows_that_decode_never_wait_for_a_prompt() -> None:
    s = scheduler(tokens=16)
    s.add(generation("old", range(4)))
    step(s)
    s.add(generation("new", range(100, 140)))
    assert step(s) == [("old", 4, 1), ("new", 0, 15)]
    assert step(s) == [("old", 5, 1), ("new", 15, 15)]


def test_prompts_share_the_budget_in_the_order_of_arrival() -> None:
    s = scheduler(tokens=16)
    for i, length in enumerate((10, 4, 9)):
        s.add(generation(f"r{i}", range(100 * i, 100 * i + length)))
    assert step(s) == [("r0", 0, 10), ("r1", 0, 4), ("r2", 0, 2)]
    assert step(s) == [("r0", 10, 1), ("r1", 4, 1), ("r2", 2, 7)]


def test_the_batch_size_bounds_who_runs() -> None:
    s = scheduler(size=2)
    for i in range(3):
        s.add(generation(f"r{i}", [i]))
    assert [name for name, _, _ in step(s)] == ["r0", "r1"]
    assert [g.request.request_id for g in s.waiting] == ["r2"]


def test_more_places_than_step_tokens_are_not_given() -> None:
    """With every place decoding, the budget must reach for all of them."""
    assert scheduler(size=64, tokens=16).max_running == 16


def test_an_equal_prompt_computes_only_its_last_block_again() -> None:
    s = scheduler()
    s.add(generation("first", range(12), max_tokens=1))
    step(s)
    s.add(generation("second", range(12), max_tokens=1))
    # 12 tokens are three full blocks; the last is computed again, because a step needs a token to go on from.
    assert step(s) == [("second", 8, 4)]
    assert s.cached_tokens_total == 8
    assert s.prompt_tokens_total == 24


def test_another_salt_finds_nothing() -> None:
    s = scheduler()
    s.add(generation("first", range(12), max_tokens=1, salt="a"))
    step(s)
    s.add(generation("second", range(12), max_tokens=1, salt="b"))
    assert step(s) == [("second", 0, 12)]


def test_without_reuse_nothing_is_found() -> None:
    s = scheduler(reuse=False)
    for name in ("first", "second"):
        s.add(generation(name, range(12), max_tokens=1))
        assert step(s) == [(name, 0, 12)]


def test_a_block_is_not_known_before_the_step_that_fills_it_has_worked() -> None:
    s = scheduler(tokens=64)
    s.add(generation("first", range(12)))
    failed = s.plan()
    s.remove(failed[0].generation)
    s.add(generation("second", range(12)))
    assert step(s) == [("second", 0, 12)]


def test_the_youngest_gives_way_and_goes_on_where_it_was() -> None:
    s = scheduler(blocks=5, tokens=16)
    old, young = generation("old", range(8), max_tokens=12), generation("young", range(50, 54), max_tokens=8)
    s.add(old)
    s.add(young)
    while not s.preempted_total:
        step(s)
        s.pool.check_integrity([old.blocks, young.blocks])
    assert s.waiting[0] is young
    assert young.blocks == []
    made = young.made
    assert made > 0
    while young in s.waiting:
        step(s)
    # It came back only when the older one had ended, and lost no token of its answer.
    assert old.made == 12
    assert young.made > made
    while s.has_work:
        step(s)
    assert young.made == 8
    assert s.preempted_total == 1


def test_a_request_that_does_not_fit_beside_the_others_waits_whole() -> None:
    """Begun halfway it would hold blocks that the running ones need, and be thrown out again."""
    s = scheduler(blocks=6, tokens=64)
    s.add(generation("old", range(8), max_tokens=8))
    step(s)
    s.add(generation("big", range(100, 120), max_tokens=2))
    assert [name for name, _, _ in step(s)] == ["old"]
    while s.running[0].request.request_id == "old":
        step(s)
        if not s.running:
            break
    assert step(s) == [("big", 0, 20)]
    assert s.preempted_total == 0


def test_the_higher_priority_waits_less_and_equals_wait_by_age() -> None:
    s = scheduler(size=1)
    for name, priority in (("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5)):
        s.add(generation(name, [1], max_tokens=1, priority=priority))
    assert [step(s)[0][0] for _ in range(5)] == ["c", "e", "a", "d", "b"]


def test_a_higher_priority_takes_no_place_from_one_that_runs() -> None:
    s = scheduler(size=1)
    s.add(generation("runs", [1], max_tokens=3))
    step(s)
    s.add(generation("urgent", [2], max_tokens=1, priority=9))
    assert [step(s)[0][0] for _ in range(3)] == ["runs", "runs", "urgent"]


def test_without_blocks_the_lowest_priority_gives_way_though_it_is_the_oldest() -> None:
    s = scheduler(blocks=5, tokens=16)
    s.add(generation("old and low", range(8), max_tokens=12, priority=-1))
    s.add(generation("young", range(50, 54), max_tokens=8))
    while not s.preempted_total:
        step(s)
    assert [g.request.request_id for g in s.waiting] == ["old and low"]
    assert [g.request.request_id for g in s.running] == ["young"]


def test_a_preempted_one_stands_before_younger_ones_of_its_priority() -> None:
    s = scheduler(blocks=5, tokens=16, size=2)
    s.add(generation("first", range(8), max_tokens=12))
    s.add(generation("second", range(50, 54), max_tokens=8))
    s.add(generation("third", [1], max_tokens=1))
    s.add(generation("urgent", [2], max_tokens=1, priority=1))
    # The urgent one was first of all, then the other two ran until the blocks were out.
    while not s.preempted_total:
        step(s)
    assert [g.request.request_id for g in s.waiting] == ["second", "third"]


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # arrives at this step
        st.lists(st.integers(0, 2), min_size=1, max_size=20),
        st.integers(1, 12),  # tokens to make
        st.one_of(st.none(), st.integers(0, 30)),  # aborted at this step
        st.sampled_from(["", "a"]),
        st.sampled_from([0, 0, 0, 5, -1]),  # priority
        st.one_of(st.none(), st.none(), st.integers(0, 40)),  # deadline: late from this step on
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=REQUESTS,
    blocks=st.integers(8, 14),
    size=st.integers(1, 6),
    tokens=st.integers(1, 12),
    failing=st.sets(st.integers(0, 40), max_size=3),
)
def test_every_request_ends_and_no_block_is_lost(
    requests: list[tuple[int, list[int], int, int | None, str, int, int | None]],
    blocks: int,
    size: int,
    tokens: int,
    failing: set[int],
) -> None:
    """32 tokens at most, at least 8 blocks of 4: each fits alone, so all must end, whoever gives way to whom."""
    s = scheduler(blocks=blocks, size=size, tokens=tokens)
    generations = [
        generation(f"r{i}", prompt, max_tokens=n, salt=salt, priority=priority, deadline_s=late)
        for i, (_, prompt, n, _, salt, priority, late) in enumerate(requests)
    ]
    open_ones: set[Generation] = set()
    ended = 0
    arrivals = sorted(range(len(requests)), key=lambda i: requests[i][0])
    for now in range(4000):
        while arrivals and requests[arrivals[0]][0] <= now:
            g = generations[arrivals.pop(0)]
            s.add(g)
            open_ones.add(g)
        for i, g in enumerate(generations):
            if requests[i][3] == now and g in open_ones:
                s.remove(g)
                open_ones.remove(g)
                ended += 1
        for g in s.late(now):
            assert requests[generations.index(g)][6] is not None
            s.remove(g)
            open_ones.remove(g)
            ended += 1
        rows = s.plan()
        assert (not rows) == (not s.has_work)
        assert not any(g.request.deadline_s is not None and g.request.deadline_s <= now for g in open_ones)
        for queue in (s.running, s.waiting):
            assert queue == sorted(queue, key=lambda g: g.rank)
        assert sum(r.count for r in rows) <= tokens
        assert len({id(r.generation) for r in rows}) == len(rows) <= s.max_running <= size
        for row in rows:
            g = row.generation
            assert row.count >= 1
            assert row.start == g.computed
            assert len(g.blocks) >= s.pool.blocks_for(row.start + row.count)
        if s.running:
            assert rows, "the first always gets on"
            assert any(row.generation is s.running[0] for row in rows)
        sampling = [r.generation for r in rows if r.samples]
        if now in failing:
            for row in rows:
                s.remove(row.generation)
                open_ones.remove(row.generation)
                ended += 1
        else:
            s.advance(rows)
            for g in sampling:
                if g.append(len(g.tokens) % 3) is not None:
                    s.remove(g)
                    open_ones.remove(g)
                    ended += 1
        s.pool.check_integrity([g.blocks for g in generations])
        if not arrivals and not open_ones:
            break
    assert ended == len(requests)
    assert s.pool.used == 0
