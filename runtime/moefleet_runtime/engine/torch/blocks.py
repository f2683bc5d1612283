"""Which block of the latent cache belongs to whom, and which can be found again by its content.

A full block is known by a blake2b chain over all token ids up to its end, begun with the tenant's salt, so that equal
prefixes share blocks and tenants with different salts never learn of each other. A free block keeps its content until
it is taken; the longest unused goes first. Only numbers here: the tensors are in `cache`.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from moefleet_runtime.engine.prefixes import PrefixLog

# 128 bits: with 2^40 blocks ever seen, two alike by chance are a matter of 2^-49.
HASH_BYTES = 16
# Rows that pad a batch read this block; nobody owns it.
PADDING_BLOCK = 0


def root_hash(salt: str) -> bytes:
    """What the chain of a prefix begins with."""
    return blake2b(salt.encode(), digest_size=HASH_BYTES).digest() if salt else b""


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block, from that of the block before and its token ids as little-endian 32-bit numbers."""
    ids = array("i", tokens)
    if ids.itemsize != 4:  # pragma: no cover - no platform that torch runs on
        raise RuntimeError(f"wanted 4-byte ints, found {ids.itemsize}")
    return blake2b(parent + ids.tobytes(), digest_size=HASH_BYTES).digest()


class IntegrityError(Exception):
    """The pool's books do not agree: a block is lost, shared without a count or found under a wrong hash."""


class BlockPool:
    """`blocks` usable blocks, numbered from 1."""

    def __init__(self, *, blocks: int, block_tokens: int, log: PrefixLog | None = None) -> None:
        """`log`: who is told which prefixes are known."""
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"pool: wanted at least 1 block of 1 token, found {blocks} of {block_tokens}")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._holders = [0] * (blocks + 1)
        self._hash_of: list[bytes | None] = [None] * (blocks + 1)
        self._by_hash: dict[bytes, int] = {}
        # Of a known block: the prefixes that end in it, as pickers name them.
        self._marks: dict[int, tuple[int, ...]] = {}
        # Blocks with each of them: where blocks are longer than the steps between marks, prompts that part inside a block have
        # blocks of their own and a mark in common.
        self._with_mark: Counter[int] = Counter()
        self._log = log or PrefixLog()
        # Oldest first.
        self._free: OrderedDict[int, None] = OrderedDict((b, None) for b in range(1, blocks + 1))
        # Of the free ones, those that `find` still knows.
        self.reusable = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    def is_free(self, block: int) -> bool:
        return block in self._free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix; takes none of them."""
        found = []
        for h in hashes:
            block = self._by_hash.get(h)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, block: int) -> None:
        """One more holder of a block that `find` gave."""
        if block in self._free:
            del self._free[block]
            self.reusable -= self._hash_of[block] is not None
        self._holders[block] += 1
        if marks := self._marks.get(block):
            self._log.stored(marks)

    def take(self) -> int:
        """An empty block for one holder; what it was known for is forgotten."""
        if not self._free:
            raise IntegrityError("take: wanted a free block, found none; the caller must check `free`")
        block, _ = self._free.popitem(last=False)
        known_as = self._hash_of[block]
        if known_as is not None:
            del self._by_hash[known_as]
            self._hash_of[block] = None
            self._log.removed(self._unmark(block))
            self.reusable -= 1
        self._holders[block] = 1
        return block

    def publish(self, block: int, block_hash: bytes, marks: tuple[int, ...] = ()) -> None:
        """Makes a filled block known, and the prefixes that end in it. A second block of the same content stays private:
        one is enough."""
        if block_hash not in self._by_hash and self._hash_of[block] is None:
            self._by_hash[block_hash] = block
            self._hash_of[block] = block_hash
            if marks:
                self._marks[block] = marks
                self._with_mark.update(marks)
                self._log.stored(marks)

    def _unmark(self, block: int) -> list[int]:
        """The prefixes that no other block has either."""
        gone = []
        for mark in self._marks.pop(block, ()):
            self._with_mark[mark] -= 1
            if not self._with_mark[mark]:
                del self._with_mark[mark]
                gone.append(mark)
        return gone

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each. The end of a prefix is useless without its beginning, so the end goes first."""
        for block in reversed(blocks):
            if self._holders[block] < 1:
                raise IntegrityError(f"release: block {block} has no holder")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                self.reusable += self._hash_of[block] is not None
                if self._hash_of[block] is None:
                    # Nothing to find in it again: take it before any that can be.
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """`held`: the block lists of everyone who holds some. Raises IntegrityError with the first disagreement."""
        counts = Counter(block for blocks in held for block in blocks)
        for block in range(1, self.blocks + 1):
            if self._holders[block] != counts[block]:
                raise IntegrityError(
                    f"block {block}: counted {self._holders[block]} holders, found {counts[block]}"
                )
            if (block in self._free) == (counts[block] > 0):
                raise IntegrityError(
                    f"block {block}: {counts[block]} holders, but free is {block in self._free}"
                )
        if counts[PADDING_BLOCK] or self._holders[PADDING_BLOCK] or PADDING_BLOCK in self._free:
            raise IntegrityError("the padding block is held or free")
        known = {h: b for b, h in enumerate(self._hash_of) if h is not None}
        if known != self._by_hash:
            raise IntegrityError(f"{len(known)} blocks carry a hash, {len(self._by_hash)} are found by one")
        reusable = sum(1 for block in self._free if self._hash_of[block] is not None)
        if reusable != self.reusable:
            raise IntegrityError(f"counted {self.reusable} reusable blocks, found {reusable}")
