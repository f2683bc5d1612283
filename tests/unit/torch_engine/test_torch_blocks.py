"""The block pool: who holds which block, and what can be found again."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from moefleet_runtime.engine.torch.blocks import BlockPool, IntegrityError, chain_hash, root_hash


def hashes(tokens: list[int], block_tokens: int, salt: str = "") -> list[bytes]:
    chain, parent = [], root_hash(salt)
    for at in range(len(tokens) // block_tokens):
        parent = chain_hash(parent, tokens[at * block_tokens : (at + 1) * block_tokens])
        chain.append(parent)
    return chain


def test_the_hash_is_a_contract_with_whoever_computes_it_elsewhere() -> None:
    """blake2b-128 over the parent and little-endian 32-bit ids: pinned, so that a gateway can rely on it."""
    first = chain_hash(root_hash(""), [1, 2, 3, 70000])
    assert first.hex() == "028ba2a9f71f2317a33f1cca0df3483c"
    assert chain_hash(root_hash("tenant"), [1, 2, 3, 70000]).hex() == "7eacf3a341b265214cf4fb1dbf0d28f7"
    assert chain_hash(first, [4, 5, 6, 7]) != chain_hash(root_hash(""), [4, 5, 6, 7])


def test_different_salts_never_share_a_hash() -> None:
    tokens = list(range(32))
    chains = [set(hashes(tokens, 4, salt)) for salt in ("", "a", "b")]
    assert not chains[0] & chains[1]
    assert not chains[1] & chains[2]


def test_a_published_block_is_found_until_its_place_is_needed() -> None:
    pool = BlockPool(blocks=3, block_tokens=4)
    chain = hashes(list(range(8)), 4)
    mine = [pool.take(), pool.take()]
    for block, h in zip(mine, chain, strict=True):
        pool.publish(block, h)
    pool.release(mine)
    assert pool.find(chain) == mine
    assert (pool.free, pool.reusable) == (3, 2)
    # The one that was never published goes first, then the end of the prefix, its beginning last.
    assert pool.take() not in mine
    assert pool.take() == mine[1]
    assert pool.find(chain) == mine[:1]
    assert pool.take() == mine[0]
    assert pool.find(chain) == []


def test_a_prefix_with_a_hole_is_found_up_to_the_hole() -> None:
    pool = BlockPool(blocks=4, block_tokens=4)
    chain = hashes(list(range(12)), 4)
    blocks = [pool.take() for _ in chain]
    pool.publish(blocks[0], chain[0])
    pool.publish(blocks[2], chain[2])
    assert pool.find(chain) == blocks[:1]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p._holders.__setitem__(1, 2), "counted 2 holders"),
        (lambda p: p._free.__setitem__(1, None), "free is True"),
        (lambda p: p._hash_of.__setitem__(1, b"x"), "found by"),
        (lambda p: p._free.__setitem__(0, None), "padding"),
    ],
)
def test_books_that_do_not_agree_are_noticed(damage: object, says: str) -> None:
    pool = BlockPool(blocks=2, block_tokens=4)
    mine = [pool.take()]
    pool.check_integrity([mine])
    damage(pool)  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=says):
        pool.check_integrity([mine])


def test_a_block_cannot_be_given_back_twice_or_taken_from_nothing() -> None:
    pool = BlockPool(blocks=1, block_tokens=4)
    block = pool.take()
    with pytest.raises(IntegrityError, match="wanted a free block"):
        pool.take()
    pool.release([block])
    with pytest.raises(IntegrityError, match="no holder"):
        pool.release([block])


class PoolLife(RuleBasedStateMachine):
    """Requests come with prefixes of each other, fill, publish and end in any order: the books always agree, and a
    block that is found by a hash holds exactly the tokens of that hash."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(blocks=6, block_tokens=2)
        # Blocks and token ids of each holder, and what each block was last filled with (its whole prefix).
        self.held: list[tuple[list[int], list[int]]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=10))
    def begin(self, tokens: list[int]) -> None:
        chain = hashes(tokens, 2)
        found = self.pool.find(chain)
        for at, block in enumerate(found):
            assert self.content[block] == tuple(tokens[: 2 * at + 2])
            self.pool.share(block)
        blocks = list(found)
        while len(blocks) < self.pool.blocks_for(len(tokens)) and self.pool.free:
            block = self.pool.take()
            assert all(block not in other for other, _ in self.held)
            blocks.append(block)
            self.content[block] = tuple(tokens[: 2 * len(blocks)])
        self.held.append((blocks, tokens))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        blocks, tokens = data.draw(st.sampled_from(self.held))
        for block, h in zip(blocks, hashes(tokens, 2), strict=False):
            self.pool.publish(block, h)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        blocks, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)

    @invariant()
    def books_agree(self) -> None:
        self.pool.check_integrity(blocks for blocks, _ in self.held)
        assert self.pool.used + self.pool.free == self.pool.blocks


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
